//! Quantized weights: the bitsandbytes 4-bit layout, byte for byte, as the only copy in memory.

pub mod codebook;
mod matrix;
pub mod nf4;
mod parts;
mod tensor;

pub use codebook::{FP4_CODE, NF4_CODE, dynamic_map};
pub use matrix::Nf4Matrix;
pub use nf4::{Nf4Options, Nf4View, QuantType};
pub use parts::{Absmax, BlockAbsmax, Nf4Parts, OwnedAbsmax};
pub use tensor::Nf4Tensor;
