//! Files: atomic writes, strict safetensors, bounded JSON; and what the system says of its memory and
//! by signals.

pub mod atomic;
pub mod host;
pub mod interrupt;
pub mod json;
pub mod python;
pub mod safetensors;
pub mod tensor_file;
