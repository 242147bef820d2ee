//! Quantization to 4 bits and dequantization.

pub(crate) mod block_max_gpu;
pub(crate) mod decode;
mod tensor;

pub mod nf4_dequantize;
pub mod nf4_quantize;

pub use nf4_dequantize::*;
pub use nf4_quantize::*;
