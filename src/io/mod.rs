//! Files: atomic writes, strict safetensors, bounded JSON.

pub mod atomic;
pub mod json;
pub mod safetensors;
pub mod tensor_file;
