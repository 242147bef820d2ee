//! A safetensors file that is read tensor by tensor: only the header is in memory. Nothing is
//! mapped, so a file that is cut or rewritten meanwhile gives an error, not a signal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::io::json;
use crate::io::safetensors::{TensorData, TensorInfo, header, header_length};
use gradus::error::{Error, Result};

/// An open file with a checked header.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    start: usize,
    header: Vec<u8>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// `Io`; `Format` for anything but a regular file, and for a header that
    /// [`crate::io::safetensors::deserialize`] refuses.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let (mut file, length) = json::open(path)?;
        let mut first = Vec::new();
        Read::by_ref(&mut file).take(8).read_to_end(&mut first).map_err(Error::io(path))?;
        let start = header_length(path, &first, length)?;
        let rest = Read::by_ref(&mut file).take(start as u64 - 8).read_to_end(&mut first);
        rest.map_err(Error::io(path))?;
        let (start, tensors) = header(path, &first, length)?;
        Ok(TensorFile { path: path.into(), file, start, header: first, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header's bytes as they are in the file.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// All tensors with their places.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Reads tensor `name`.
    ///
    /// # Errors
    /// `Format` if the file does not have it; `OutOfMemory`; `Io`, also for a file that became
    /// shorter since it was opened.
    pub fn read(&mut self, name: &str) -> Result<TensorData> {
        let Some(info) = self.tensors.get(name) else {
            return Err(Error::format(&self.path, format!("no tensor `{name}`")));
        };
        let count = info.end - info.begin;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(count).map_err(|_| Error::OutOfMemory {
            what: format!("tensor {name}"),
            bytes: count as u64,
        })?;
        let at = (self.start + info.begin) as u64;
        self.file.seek(SeekFrom::Start(at)).map_err(Error::io(&self.path))?;
        let read = Read::by_ref(&mut self.file).take(count as u64).read_to_end(&mut bytes);
        if read.map_err(Error::io(&self.path))? < count {
            return Err(Error::format(&self.path, format!("the file ends within `{name}`")));
        }
        Ok(TensorData { dtype: info.dtype, shape: info.shape.clone(), bytes })
    }
}
