//! Writing a model folder: tensors come one at a time, shards leave memory when they are full, and
//! the folder has its name only when it is complete.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::io::atomic::{self, TemporaryFolder};
use crate::io::python_json;
use crate::io::safetensors::{TensorData, Tensors, write_pt};
use crate::pretrained::quantized;
use gradus::error::{Error, Result};
use gradus::quant::Nf4Parts;

/// Bytes of a shard at which the next one begins.
pub const SHARD: u64 = 1 << 30;

/// Files beside the weights that a written folder takes over from the one it is made of.
pub(crate) const COMPANIONS: [&str; 13] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
];

/// A model folder on its way. Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct FolderWriter {
    partial: TemporaryFolder,
    target: PathBuf,
    limit: u64,
    open: Tensors,
    held: u64,
    shards: Vec<Vec<String>>,
    total: u64,
}

impl FolderWriter {
    /// Begins the folder `target` with shards of about `limit` bytes.
    ///
    /// # Errors
    /// `Io`; `Config` if there is something at `target` already.
    pub fn create(target: &Path, limit: u64) -> Result<FolderWriter> {
        if target.exists()
            && fs::read_dir(target).map_or(true, |mut entries| entries.next().is_some())
        {
            return Err(occupied(target));
        }
        Ok(FolderWriter {
            partial: TemporaryFolder::create(target)?,
            target: target.into(),
            limit,
            open: Tensors::new(),
            held: 0,
            shards: Vec::new(),
            total: 0,
        })
    }

    /// Adds a tensor.
    pub fn put(&mut self, name: &str, data: TensorData) -> Result<()> {
        self.held += data.bytes.len() as u64;
        self.total += data.bytes.len() as u64;
        self.open.insert(name.into(), data);
        self.flush_if(self.limit)
    }

    /// Adds a 4-bit weight; its parts stay together.
    pub fn put_quantized(&mut self, name: &str, parts: &Nf4Parts) -> Result<()> {
        let mut tensors = Tensors::new();
        quantized::insert(&mut tensors, name, parts);
        let bytes: u64 = tensors.values().map(|t| t.bytes.len() as u64).sum();
        self.held += bytes;
        self.total += bytes;
        self.open.append(&mut tensors);
        self.flush_if(self.limit)
    }

    fn flush_if(&mut self, limit: u64) -> Result<()> {
        if self.held < limit || self.open.is_empty() {
            return Ok(());
        }
        let path = self.partial.path().join(part(self.shards.len()));
        write_pt(&path, &self.open)?;
        self.shards.push(std::mem::take(&mut self.open).into_keys().collect());
        self.held = 0;
        Ok(())
    }

    /// Writes what is left, `config` (without one, that of `from`) and, if the weights come from a
    /// folder, their companions in `from`; then the folder takes its name.
    pub fn finish(
        mut self,
        config: Option<&Map<String, Value>>,
        from: Option<&Path>,
    ) -> Result<()> {
        self.flush_if(0)?;
        self.name_shards()?;
        if let Some(config) = config {
            let config = Value::Object(config.clone());
            write_json(&self.partial.path().join("config.json"), &config)?;
        }
        if let Some(from) = from {
            let own = config.is_none().then_some("config.json");
            let companions = COMPANIONS.into_iter().filter(|name| from.join(name).is_file());
            own.into_iter().chain(companions).try_for_each(|name| self.copy(name, from))?;
        }
        // An empty folder at the target gives way.
        match self.partial.publish_new()? {
            true => Ok(()),
            false => Err(occupied(&self.target)),
        }
    }

    fn copy(&self, name: &str, from: &Path) -> Result<()> {
        let (from, to) = (from.join(name), self.partial.path().join(name));
        fs::copy(&from, &to).map_err(Error::io(&from))?;
        fs::File::open(&to).and_then(|file| file.sync_all()).map_err(Error::io(&to))
    }

    /// Gives the shards the names readers expect, now that their number is known.
    fn name_shards(&self) -> Result<()> {
        let (count, folder) = (self.shards.len(), self.partial.path());
        let rename = |i: usize, name: &str| {
            let (from, to) = (folder.join(part(i)), folder.join(name));
            fs::rename(from, &to).map_err(Error::io(&to))
        };
        if count == 1 {
            return rename(0, "model.safetensors");
        }
        let mut map = BTreeMap::new();
        for (i, tensors) in self.shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            rename(i, &name)?;
            map.extend(tensors.iter().map(|tensor| (tensor.clone(), name.clone())));
        }
        let index = json!({ "metadata": { "total_size": self.total }, "weight_map": map });
        write_json(&folder.join("model.safetensors.index.json"), &index)
    }
}

fn occupied(target: &Path) -> Error {
    let reason = format!("{} exists and is not an empty folder", target.display());
    Error::config("out", reason)
}

fn part(index: usize) -> String {
    format!("part-{index}.safetensors")
}

/// JSON as transformers and PEFT write it: sorted keys, two spaces, a newline at the end.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    atomic::write_synced(path, (python_json::pretty(value) + "\n").as_bytes())
}
