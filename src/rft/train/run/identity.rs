//! What a run is: its settings, and the content of every file it reads. A run goes on only as what
//! it began as, and says in what it would be another.
//!
//! `run.json` in the run folder holds it from the beginning, with its own checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::io::{atomic, json};
use crate::pretrained::COMPANIONS;
use crate::reward::spec;
use crate::train::config::{self, RunConfig};
use gradus::device::Device;
use gradus::error::{Error, Result};

const FILE: &str = "run.json";
/// Bytes of a reward's file, and of a teacher's weights, that are read: scripts are shorter, and
/// weights need not be read whole to be told apart.
const REWARD_BYTES: u64 = 64 << 20;

/// What two beginnings of one run have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The version of gradus that it began with.
    pub version: String,
    /// `cpu` or `cuda`: their sums have different orders.
    device: String,
    /// The settings, as TOML.
    config: String,
    /// SHA-256 of the files that are read, under the key that names them and their path.
    files: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    identity: Identity,
    sha256: String,
}

impl Identity {
    /// The identity of a run of `config` on `device`, as its files are now. A file that is not there is not
    /// in it; opening the run says what it needs.
    ///
    /// # Errors
    /// `Io`, `Format` for a file that cannot be read.
    pub fn of(config: &RunConfig, device: &Device) -> Result<Identity> {
        let mut files = BTreeMap::new();
        let plans = config.plan()?;
        for config in [config].into_iter().chain(plans.iter().map(|plan| &plan.config)) {
            for (key, path, limit) in read_by(config)? {
                let name = format!("{key}: {}", path.display());
                if files.contains_key(&name) {
                    continue;
                }
                if let Some(digest) = digest(&path, limit)? {
                    files.insert(name, digest);
                }
            }
        }
        Ok(Identity {
            version: env!("CARGO_PKG_VERSION").into(),
            device: match device {
                Device::Cpu => "cpu".into(),
                Device::Gpu(_) => "cuda".into(),
            },
            config: config.to_toml(),
            files,
        })
    }

    /// Writes `run.json` into a new run folder.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let sealed = Sealed { identity: self.clone(), sha256: self.checksum() };
        let text =
            serde_json::to_vec_pretty(&sealed).map_err(|e| Error::format(&path, e.to_string()))?;
        atomic::write_synced(&path, &text)
    }

    /// Reads that of the run in `folder`.
    ///
    /// # Errors
    /// `Io`; `Format` if it is damaged.
    pub fn read(folder: &Path) -> Result<Identity> {
        let path = folder.join(FILE);
        let damaged = |why: &str| {
            let reason = format!("{why}: this run cannot go on; begin a new one without --resume");
            Error::format(&path, reason)
        };
        let bytes = json::read_limited(&path, 16 << 20).map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                Error::format(folder, format!("not a run folder: there is no {FILE} in it"))
            }
            e => e,
        })?;
        let sealed: Sealed =
            serde_json::from_slice(&bytes).map_err(|e| damaged(&format!("damaged ({e})")))?;
        if sealed.sha256 != sealed.identity.checksum() {
            return Err(damaged("damaged (its checksum is that of another content)"));
        }
        Ok(sealed.identity)
    }

    fn checksum(&self) -> String {
        let Identity { version, device, config, files } = self;
        let mut hash = Sha256::new();
        let names = files.iter().flat_map(|(name, digest)| [name, digest]);
        for text in [version, device, config].into_iter().chain(names) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hex(hash)
    }

    /// The settings in which a run of `now` would be another than this one, each with both values.
    ///
    /// # Errors
    /// `Format` if these settings are no TOML.
    pub fn other_settings(&self, now: &Identity) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let (before, after) = (settings(&self.config)?, settings(&now.config)?);
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let (before, after) = (before.get(key), after.get(key));
            if before != after {
                let shown = |value: Option<&String>| value.map_or("unset".into(), String::clone);
                found.push(format!("{key} was {}, is {}", shown(before), shown(after)));
            }
        }
        if self.device != now.device {
            found.push(format!("the device was {}, is {}", self.device, now.device));
        }
        Ok(found)
    }

    /// The files in which it would be another.
    pub fn other_files(&self, now: &Identity) -> Vec<String> {
        let keys: BTreeSet<&String> = self.files.keys().chain(now.files.keys()).collect();
        let changed = |key: &&String| self.files.get(*key) != now.files.get(*key);
        let say = |key: &String| match (self.files.get(key), now.files.get(key)) {
            (Some(_), None) => format!("{key} is gone"),
            (None, _) => format!("{key} is new"),
            _ => format!("{key} holds other bytes"),
        };
        keys.into_iter().filter(changed).map(say).collect()
    }
}

fn settings(text: &str) -> Result<BTreeMap<String, String>> {
    let table = text.parse().map_err(|e: toml::de::Error| Error::format(FILE, e.to_string()))?;
    Ok(config::settings(&table))
}

/// What a run of `config` reads: key, file, and how many bytes of it count.
fn read_by(config: &RunConfig) -> Result<Vec<(&'static str, PathBuf, u64)>> {
    let mut files = Vec::new();
    for (key, path) in [("data.path", &config.data.path), ("data.heldout", &config.data.heldout)] {
        if !path.is_empty() {
            files.extend(data_files(path.as_ref())?.into_iter().map(|file| (key, file, u64::MAX)));
        }
    }
    for (_, path) in config.data.suites()? {
        files.extend(data_files(path)?.into_iter().map(|file| ("data.suites", file, u64::MAX)));
    }
    let model = Path::new(&config.model.path);
    if !config.model.path.is_empty() {
        let names = ["config.json"].into_iter().chain(COMPANIONS);
        files.extend(names.map(|name| ("model.path", model.join(name), u64::MAX)));
    }
    let adapter = Path::new(&config.model.adapter);
    if !config.model.adapter.is_empty() {
        let names = ["adapter_config.json", "adapter_model.safetensors"];
        files.extend(names.map(|name| ("model.adapter", adapter.join(name), u64::MAX)));
    }
    let teacher = Path::new(&config.distill.teacher);
    if !config.distill.teacher.is_empty() {
        let names = ["config.json"].into_iter().chain(COMPANIONS);
        files.extend(names.map(|name| ("distill.teacher", teacher.join(name), u64::MAX)));
        let weights = weights(teacher)?;
        files.extend(weights.into_iter().map(|file| ("distill.teacher", file, REWARD_BYTES)));
    }
    for folder in &config.rl.only_changed {
        let all = weights(Path::new(folder))?.into_iter();
        files.extend(all.map(|file| ("rl.only_changed", file, u64::MAX)));
    }
    let programs = spec::files(&[&config.env.kind]);
    files.extend(programs.into_iter().map(|file| ("env.kind", file, REWARD_BYTES)));
    let programs = spec::files(&config.reward.functions);
    files.extend(programs.into_iter().map(|file| ("reward.functions", file, REWARD_BYTES)));
    Ok(files)
}

/// The weight files of a folder, if there is one.
fn weights(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let paths = entries.map(|entry| Ok(entry.map_err(Error::io(folder))?.path()));
    let mut paths = paths.collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    Ok(paths)
}

#[cfg(feature = "hf")]
fn data_files(path: &Path) -> Result<Vec<PathBuf>> {
    match path.exists() {
        true => crate::data::files(path),
        false => Ok(Vec::new()),
    }
}

#[cfg(not(feature = "hf"))]
fn data_files(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(vec![path.to_owned()])
}

/// SHA-256 of a file's length and its first `limit` bytes; none if there is no such file.
fn digest(path: &Path, limit: u64) -> Result<Option<String>> {
    let (file, length) = match json::open(path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    let mut buffer = vec![0; 1 << 16];
    let mut file = file.take(limit);
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(Some(hex(hash))),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
