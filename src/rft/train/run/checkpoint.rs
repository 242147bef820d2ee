//! Checkpoints that survive a kill at any moment: a folder is written under a temporary name,
//! synced, renamed, and only then named in `LATEST`. Every file's SHA-256 stands in the manifest,
//! and a checkpoint is only loaded if all of them agree.
//!
//! ```text
//! checkpoints/
//!   LATEST               name of the newest folder
//!   00000120/
//!     state.safetensors  everything that moves
//!     meta.json          phase, step, running figures
//!     manifest.json      version, configuration fingerprint, SHA-256 and size of each file, and
//!                        its own checksum
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::io::atomic::{self, TemporaryFolder};
use crate::io::json::read_limited;
use crate::io::safetensors::{Tensors, deserialize, serialize};
use gradus::error::{Error, Result};

/// A saved state.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Steps done in the whole run, over all phases; orders the checkpoints.
    pub step: u64,
    /// Fingerprint of the configuration that wrote it.
    pub fingerprint: String,
    /// Everything else a run needs to go on.
    pub meta: serde_json::Value,
    /// Everything that moves.
    pub tensors: Tensors,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: String,
    fingerprint: String,
    step: u64,
    files: Vec<Entry>,
    /// SHA-256 of all of the above.
    checksum: String,
}

impl Manifest {
    fn sum(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.version, self.fingerprint, self.step);
        for Entry { name, bytes, sha256 } in &self.files {
            text += &format!("{name} {bytes} {sha256}\n");
        }
        sha256(text.as_bytes())
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

const FILES: [&str; 2] = ["state.safetensors", "meta.json"];
/// Largest file of a checkpoint that is read.
const LIMIT: u64 = 1 << 40;

/// Saves `checkpoint` under `folder` and removes all older ones but the newest `keep`. The folder
/// that `folder` lies in has to be there.
pub fn save(folder: &Path, checkpoint: &Checkpoint, keep: usize) -> Result<()> {
    match fs::create_dir(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::io(folder))?,
    }
    let target = folder.join(name(checkpoint.step));
    // Nothing is made where somebody has just taken the run's folder away.
    let held = atomic::hold(folder);
    let temporary = TemporaryFolder::beside(&target, held.is_some())?;
    drop(held);
    write_all(temporary.path(), checkpoint)?;
    temporary.publish()?;
    settle(folder, checkpoint.step, keep)
}

/// Names the checkpoint of `step` in `LATEST` and removes all older ones but the newest `keep`. Part
/// of [`save`]; a resumed run repeats it, as the run before may have been killed on the way.
pub fn settle(folder: &Path, step: u64, keep: usize) -> Result<()> {
    atomic::write(&folder.join("LATEST"), name(step).as_bytes())?;
    // One behind this step was passed over because it is damaged: it is none of the newest.
    let ours = folder.join(name(step));
    let up_to_this = newest_first(folder)?.into_iter().skip_while(|path| *path != ours);
    up_to_this.skip(keep.max(1)).try_for_each(|path| atomic::remove_whole(&path))
}

fn name(step: u64) -> String {
    format!("{step:08}")
}

fn write_all(folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let meta = serde_json::to_vec_pretty(&checkpoint.meta).map_err(|e| json(folder, e))?;
    let mut files = Vec::new();
    for (name, bytes) in FILES.into_iter().zip([serialize(&checkpoint.tensors)?, meta]) {
        atomic::write_synced(&folder.join(name), &bytes)?;
        files.push(Entry { name: name.into(), bytes: bytes.len() as u64, sha256: sha256(&bytes) });
    }
    let mut manifest = Manifest {
        version: env!("CARGO_PKG_VERSION").into(),
        fingerprint: checkpoint.fingerprint.clone(),
        step: checkpoint.step,
        files,
        checksum: String::new(),
    };
    manifest.checksum = manifest.sum();
    let bytes = serde_json::to_vec_pretty(&manifest).map_err(|e| json(folder, e))?;
    atomic::write_synced(&folder.join("manifest.json"), &bytes)
}

/// The newest checkpoint under `folder` whose files all agree with its manifest, and a line for
/// each newer one that was passed over.
pub fn load_latest(folder: &Path) -> Result<(Option<Checkpoint>, Vec<String>)> {
    let mut warnings = Vec::new();
    for path in newest_first(folder)? {
        match load(&path) {
            Ok(checkpoint) => return Ok((Some(checkpoint), warnings)),
            Err(error) => warnings.push(format!("checkpoint passed over: {error}")),
        }
    }
    Ok((None, warnings))
}

/// Loads one checkpoint folder after checking every file against the manifest.
pub fn load(folder: &Path) -> Result<Checkpoint> {
    let path = folder.join("manifest.json");
    let bytes = read_limited(&path, 1 << 20)?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| json(&path, e))?;
    if manifest.checksum != manifest.sum() {
        return Err(Error::format(&path, "its checksum is that of another content"));
    }
    if folder.file_name().is_none_or(|n| n.to_string_lossy() != name(manifest.step)) {
        return Err(Error::format(&path, format!("this is the checkpoint {}", manifest.step)));
    }
    let mut contents = Vec::new();
    for name in FILES {
        let path = folder.join(name);
        let bytes = read_limited(&path, LIMIT)?;
        let Some(entry) = manifest.files.iter().find(|entry| entry.name == name) else {
            return Err(Error::format(&path, "the manifest does not list this file"));
        };
        if entry.bytes != bytes.len() as u64 || entry.sha256 != sha256(&bytes) {
            return Err(Error::format(&path, "the checksum does not match the manifest"));
        }
        contents.push(bytes);
    }
    let meta = serde_json::from_slice(&contents[1]).map_err(|e| json(&folder.join(FILES[1]), e))?;
    let tensors = deserialize(&folder.join(FILES[0]), &contents[0])?;
    Ok(Checkpoint { step: manifest.step, fingerprint: manifest.fingerprint, meta, tensors })
}

/// Checkpoint folders, newest first. A missing folder holds none.
fn newest_first(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(Error::io(folder))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.len() >= 8 && name.bytes().all(|b| b.is_ascii_digit())
        })
        .collect();
    // Longer names are greater numbers.
    found.sort_by_key(|path| std::cmp::Reverse((path.as_os_str().len(), path.clone())));
    Ok(found)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(path: &Path, error: serde_json::Error) -> Error {
    Error::format(path, error.to_string())
}
