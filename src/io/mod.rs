//! Files: atomic writes and strict safetensors.

pub mod atomic;
pub mod safetensors;
