//! Public ops. Each takes a [`Device`](crate::device::Device) and an argument struct that holds
//! inputs, outputs and settings; it validates everything before it computes anything. A refused call has written
//! nothing. A call that fails later (no memory, a driver) leaves its outputs unspecified, and everything else as
//! it was.
//!
//! Extents: `T` tokens, `V` vocabulary, `B` sequences, `M N K` matrix products (`Y[M, N] = X[M, K]
//! · W[N, K]ᵀ`), `H` heads, `D` head dimension. Packed sequences are described by `cu_seqlens`:
//! `B + 1` offsets, `cu_seqlens[i]..cu_seqlens[i + 1]` being the tokens of sequence `i`.

pub mod decoder;
pub mod optim;
pub mod policy;
pub mod products;
pub mod quantize;
mod support;
pub mod vocabulary;

pub use {decoder::*, optim::*, policy::*, products::*, quantize::*, vocabulary::*};
