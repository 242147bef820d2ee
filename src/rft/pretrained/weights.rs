//! The weights of a folder: one `model.safetensors`, or shards behind
//! `model.safetensors.index.json`. Headers are read at once and held against each other; data come
//! tensor by tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::io::json;
use crate::io::safetensors::{TensorData, TensorInfo};
use crate::io::tensor_file::TensorFile;
use gradus::error::{Error, Result};

/// Open weight files.
#[derive(Debug)]
pub struct WeightFiles {
    folder: PathBuf,
    files: Vec<TensorFile>,
    places: BTreeMap<String, Place>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    file: usize,
    /// What it is called there.
    name: String,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Beginnings of names in a model of pictures, behind `model.`.
const LANGUAGE: &str = "language_model.";
const TOWER: &str = "visual.";

/// Whether the tensor belongs to the part of a model that looks at pictures.
pub(super) fn is_of_tower(name: &str) -> bool {
    name.strip_prefix("model.").is_some_and(|inner| inner.starts_with(TOWER))
}

impl WeightFiles {
    /// Opens the weights in `folder`.
    ///
    /// # Errors
    /// `Io`; `Format` for a file that is not strict safetensors, an index that names a file outside
    /// the folder, a tensor that is in two shards, in another than the index says, or in none.
    pub fn open(folder: &Path) -> Result<WeightFiles> {
        let index = folder.join(INDEX);
        let named = match folder.join(SINGLE).exists() || !index.exists() {
            true => None,
            false => Some(read_index(&index)?),
        };
        let mut names: Vec<&str> = match &named {
            None => vec![SINGLE],
            Some(map) => map.values().map(String::as_str).collect(),
        };
        names.sort_unstable();
        names.dedup();
        if named.is_none() && !folder.join(SINGLE).exists() {
            return Err(Error::format(folder, missing(folder)));
        }
        let (mut files, mut places) = (Vec::new(), BTreeMap::new());
        for name in &names {
            let file = TensorFile::open(&folder.join(name))?;
            for tensor in file.tensors().keys() {
                if named
                    .as_ref()
                    .is_some_and(|map| map.get(tensor).map(String::as_str) != Some(name))
                {
                    let reason =
                        format!("tensor `{tensor}` is in {name}, the index says otherwise");
                    return Err(Error::format(&index, reason));
                }
                let place = Place { file: files.len(), name: tensor.clone() };
                places.insert(tensor.clone(), place);
            }
            files.push(file);
        }
        if let Some(lost) = named.iter().flat_map(|m| m.keys()).find(|t| !places.contains_key(*t)) {
            return Err(Error::format(&index, format!("tensor `{lost}` is in no file")));
        }
        Ok(WeightFiles { folder: folder.into(), files, places })
    }

    /// Calls the tensors of a model of pictures what transformers 5 calls them, whichever version wrote
    /// the folder: those of the language part `model.language_model.…`, those of the tower
    /// `model.visual.…`.
    pub(super) fn name_parts(&mut self) -> Result<()> {
        let mut places = BTreeMap::new();
        for (name, place) in std::mem::take(&mut self.places) {
            let inner = name.strip_prefix("model.");
            let known = |inner: &str| inner.starts_with(LANGUAGE) || inner.starts_with(TOWER);
            let full = match inner {
                Some(inner) if !known(inner) => format!("model.{LANGUAGE}{inner}"),
                None if name.starts_with(TOWER) => format!("model.{name}"),
                Some(_) | None => name.clone(),
            };
            if places.insert(full.clone(), place).is_some() {
                let reason = format!("`{full}` is there twice, also as `{name}`");
                return Err(Error::format(&self.folder, reason));
            }
        }
        self.places = places;
        Ok(())
    }

    /// What tensor `name` is called in its file; `name` itself for one that no file has.
    pub(super) fn name_in_file<'a>(&'a self, name: &'a str) -> &'a str {
        self.places.get(name).map_or(name, |place| &place.name)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Type, extents and place of tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let place = self.places.get(name)?;
        self.files[place.file].tensors().get(&place.name)
    }

    /// Reads tensor `name`.
    ///
    /// # Errors
    /// `Format` if there is none; what [`TensorFile::read`] says.
    pub fn read(&mut self, name: &str) -> Result<TensorData> {
        match self.places.get(name) {
            Some(place) => self.files[place.file].read(&place.name),
            None => Err(Error::format(&self.folder, format!("the weights lack `{name}`"))),
        }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        let size = |i: &TensorInfo| (i.end - i.begin) as u64;
        self.files.iter().flat_map(|f| f.tensors().values()).map(size).sum()
    }

    /// Bytes of the largest tensor.
    pub fn largest(&self) -> u64 {
        let size = |i: &TensorInfo| (i.end - i.begin) as u64;
        self.files.iter().flat_map(|f| f.tensors().values()).map(size).max().unwrap_or(0)
    }

    /// SHA-256 of names, sizes and headers: what tells one base model from another without reading
    /// its data. Values that change in place are not seen.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for file in &self.files {
            hash.update(file.path().file_name().unwrap_or_default().as_encoded_bytes());
            hash.update(file.header());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// `weight_map` of an index, its file names checked.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let raw = json::read_object(path)?;
    let Some(Value::Object(map)) = raw.get("weight_map") else {
        return Err(Error::format(path, "`weight_map` is missing"));
    };
    let mut named = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().unwrap_or_default();
        let plain = Path::new(file).file_name().is_some_and(|n| n == file);
        if !plain || !file.ends_with(".safetensors") || file.contains('\0') {
            let reason = format!("`{tensor}`: `{file}` is not a .safetensors file of the folder");
            return Err(Error::format(path, reason));
        }
        named.insert(tensor.clone(), file.to_string());
    }
    Ok(named)
}

/// Says what is there instead of weights.
fn missing(folder: &Path) -> String {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    match pickled.iter().find(|name| folder.join(name).exists()) {
        Some(name) => format!(
            "no {SINGLE}; {name} is a pickle, which can run code and is never read: save the \
             model with safe_serialization"
        ),
        None => format!("neither {SINGLE} nor {INDEX} in this folder"),
    }
}
