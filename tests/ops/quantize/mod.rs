//! 4-bit weights.

mod nf4_dequantize;
mod nf4_quantize;
mod tensors;
