//! safetensors with the checks the format's own reader leaves out: no duplicate keys, no names
//! that could be paths, no absurd headers. Data is copied, and may lie at any byte; nothing is mapped.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensorError};

use crate::io::json;
use gradus::dtype::{DType, Element};
use gradus::error::{Error, Result};

/// A tensor's bytes with its type.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// Element type.
    pub dtype: DType,
    /// Extents, row-major.
    pub shape: Vec<usize>,
    /// Elements, little-endian.
    pub bytes: Vec<u8>,
}

impl TensorData {
    /// From elements.
    pub fn new<T: Element>(shape: &[usize], data: &[T]) -> TensorData {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        let bytes = bytemuck::cast_slice(data).to_vec();
        TensorData { dtype: T::DTYPE, shape: shape.to_vec(), bytes }
    }

    /// To elements.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype != T::DTYPE {
            let (got, want) = (self.dtype.name(), T::DTYPE.name());
            return Err(Error::invalid("safetensors", "dtype", got, want));
        }
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.bytes))
    }
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, TensorData>;

/// The file's bytes for `tensors`.
pub fn serialize(tensors: &Tensors) -> Result<Vec<u8>> {
    let done = safetensors::serialize(views(tensors)?, None);
    done.map_err(|e| Error::invalid("safetensors", "tensors", e, "serializable tensors"))
}

/// Writes `tensors` to a new file that torch's readers take for one of theirs: `format` is `pt`.
/// Names are sorted within a dtype, so equal tensors give equal bytes. The file is on the disk then,
/// and readable for whom the process lets read its files.
///
/// # Errors
/// `Io`; the file may be incomplete then, and the caller writes to a temporary folder.
pub fn write_pt(path: &Path, tensors: &Tensors) -> Result<()> {
    let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    // The format's own writer replaces the file by one that only its owner may read.
    let made = File::create_new(path).and_then(|file| file.metadata()).map_err(Error::io(path))?;
    safetensors::serialize_to_file(views(tensors)?, Some(metadata), path).map_err(|e| match e {
        SafeTensorError::IoError(e) => Error::io(path)(e),
        other => Error::format(path, other.to_string()),
    })?;
    let file = File::open(path).map_err(Error::io(path))?;
    file.set_permissions(made.permissions()).and_then(|()| file.sync_all()).map_err(Error::io(path))
}

fn views(tensors: &Tensors) -> Result<Vec<(String, TensorView<'_>)>> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, t) in tensors {
        let view = TensorView::new(to_file(t.dtype), t.shape.clone(), &t.bytes).map_err(|e| {
            Error::invalid("safetensors", name.clone(), e, "bytes that fit the shape")
        })?;
        views.push((name.clone(), view));
    }
    Ok(views)
}

/// Reads a file's bytes; `path` is only for messages.
pub fn deserialize(path: &Path, bytes: &[u8]) -> Result<Tensors> {
    let (start, header) = header(path, bytes, bytes.len() as u64)?;
    let mut tensors = Tensors::new();
    for (name, info) in header {
        let bytes = bytes[start + info.begin..start + info.end].to_vec();
        tensors.insert(name, TensorData { dtype: info.dtype, shape: info.shape, bytes });
    }
    Ok(tensors)
}

/// A tensor's entry in a header. Offsets count from the end of the header.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: DType,
    /// Extents, row-major.
    pub shape: Vec<usize>,
    /// First byte.
    pub begin: usize,
    /// Byte behind the last.
    pub end: usize,
}

/// Largest header that is read: that of the format's own reader.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes of the header of a file of `length` bytes that begins with `first`, its length field
/// included. Refuses lengths no file has before anything is allocated.
pub(super) fn header_length(path: &Path, first: &[u8], length: u64) -> Result<usize> {
    let Some(n) = first.first_chunk().map(|b: &[u8; 8]| u64::from_le_bytes(*b)) else {
        return Err(Error::format(path, "not a safetensors file: shorter than 8 bytes"));
    };
    if n > MAX_HEADER || n > length.saturating_sub(8) {
        let reason = format!("a header of {n} bytes in a file of {length}");
        return Err(Error::format(path, format!("not a valid safetensors file: {reason}")));
    }
    Ok(8 + n as usize)
}

/// Reads and checks the header at the start of `bytes`, which belong to a file of `length` bytes.
/// Returns where the data begin, and the tensors. Beyond what the format's own reader checks
/// (complete, in order, no overlap, sizes that fit): no name twice, no name that could be a path,
/// nothing before the opening brace. The format aligns no tensor: an f32 one may follow one of 3 bytes.
pub(super) fn header(
    path: &Path,
    bytes: &[u8],
    length: u64,
) -> Result<(usize, BTreeMap<String, TensorInfo>)> {
    let invalid = |e: String| Error::format(path, format!("not a valid safetensors file: {e}"));
    let start = header_length(path, bytes, length)?;
    let text = bytes.get(8..start).ok_or_else(|| invalid("the header is cut off".into()))?;
    if text.first() != Some(&b'{') {
        return Err(invalid("the header does not begin with `{`".into()));
    }
    let metadata: Metadata = serde_json::from_slice(text).map_err(|e| invalid(e.to_string()))?;
    check_unique(path, text)?;
    let end = start as u64 + metadata.data_len() as u64;
    if end != length {
        return Err(invalid(format!("data end at byte {end} of {length}")));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        if name.is_empty() || name.contains("..") || name.starts_with('/') || name.contains('\0') {
            return Err(Error::format(path, format!("tensor name `{name}` could be a path")));
        }
        let Some(dtype) = from_file(info.dtype) else {
            let reason = format!("tensor `{name}` has unsupported dtype {:?}", info.dtype);
            return Err(Error::format(path, reason));
        };
        let (begin, end) = info.data_offsets;
        tensors.insert(name, TensorInfo { dtype, shape: info.shape.clone(), begin, end });
    }
    Ok((start, tensors))
}

/// The crate keeps one of two tensors with the same name; a file that has two is refused.
fn check_unique(path: &Path, header: &[u8]) -> Result<()> {
    match json::repeated_key(header) {
        Ok(None) => Ok(()),
        Ok(Some(name)) => Err(Error::format(path, format!("tensor `{name}` appears twice"))),
        Err(e) => Err(Error::format(path, format!("header: {e}"))),
    }
}

fn to_file(dtype: DType) -> Dtype {
    match dtype {
        DType::U8 => Dtype::U8,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
    }
}

fn from_file(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::U8 => DType::U8,
        Dtype::I32 => DType::I32,
        Dtype::I64 => DType::I64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        _ => return None,
    })
}
