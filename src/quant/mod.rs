//! Quantised weights: the bitsandbytes 4-bit layout, byte for byte, as the only copy in memory.

pub mod nf4;

pub use nf4::{Absmax, Nf4Options, Nf4Tensor, Nf4View, QuantType};
