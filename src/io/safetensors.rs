//! safetensors with the checks the format's own reader leaves out: no duplicate keys, no names
//! that could be paths, no absurd headers. Data is copied into aligned buffers; nothing is mapped.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};

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
    let mut views = Vec::with_capacity(tensors.len());
    for (name, t) in tensors {
        let view = TensorView::new(to_file(t.dtype), t.shape.clone(), &t.bytes).map_err(|e| {
            Error::invalid("safetensors", name.clone(), e, "bytes that fit the shape")
        })?;
        views.push((name.clone(), view));
    }
    let done = safetensors::serialize(views, None);
    done.map_err(|e| Error::invalid("safetensors", "tensors", e, "serialisable tensors"))
}

/// Reads a file's bytes; `path` is only for messages.
pub fn deserialize(path: &Path, bytes: &[u8]) -> Result<Tensors> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| Error::format(path, format!("not a valid safetensors file: {e}")))?;
    check_unique(path, bytes)?;
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors() {
        if name.is_empty() || name.contains("..") || name.starts_with('/') || name.contains('\0') {
            return Err(Error::format(path, format!("tensor name `{name}` could be a path")));
        }
        let Some(dtype) = from_file(view.dtype()) else {
            let reason = format!("tensor `{name}` has unsupported dtype {:?}", view.dtype());
            return Err(Error::format(path, reason));
        };
        let data = TensorData { dtype, shape: view.shape().to_vec(), bytes: view.data().to_vec() };
        tensors.insert(name, data);
    }
    Ok(tensors)
}

/// The crate keeps one of two tensors with the same name; a file that has two is refused.
fn check_unique(path: &Path, bytes: &[u8]) -> Result<()> {
    let length = bytes.first_chunk().map_or(0, |b: &[u8; 8]| u64::from_le_bytes(*b)) as usize;
    let header = bytes.get(8..8usize.saturating_add(length)).unwrap_or_default();
    struct Keys;
    impl<'de> serde::de::Visitor<'de> for Keys {
        type Value = Option<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut map: A,
        ) -> std::result::Result<Option<String>, A::Error> {
            let (mut seen, mut twice) = (HashSet::new(), None);
            while let Some(key) = map.next_key::<String>()? {
                map.next_value::<serde::de::IgnoredAny>()?;
                if !seen.insert(key.clone()) {
                    twice = Some(key);
                }
            }
            Ok(twice)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(header);
    match serde::de::Deserializer::deserialize_map(&mut reader, Keys) {
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
