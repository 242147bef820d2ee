//! Files: atomic writes, strict safetensors, bounded JSON; and what the system says of its memory.

pub mod atomic;
pub mod host;
pub mod json;
pub mod python;
pub mod safetensors;
pub mod tensor_file;
