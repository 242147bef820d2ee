//! Files: atomic writes, strict safetensors, bounded JSON; and what the system says of its memory and
//! by signals.

pub mod atomic;
pub mod interrupt;
pub mod json;
pub mod python_json;
pub mod safetensors;
pub mod system_memory;
pub mod tensor_file;
