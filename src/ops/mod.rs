//! Public ops. Each takes a [`Device`](crate::device::Device) and an argument struct that holds
//! inputs, outputs and settings; it validates everything before it computes anything. A refused call has written
//! nothing. A call that fails later (no memory, a driver) leaves its outputs unspecified, and everything else as
//! it was.
//!
//! Extents: `T` tokens, `V` vocabulary, `B` sequences, `M N K` matrix products (`Y[M, N] = X[M, K]
//! · W[N, K]ᵀ`), `H` heads, `D` head dimension. Packed sequences are described by `cu_seqlens`:
//! `B + 1` offsets, `cu_seqlens[i]..cu_seqlens[i + 1]` being the tokens of sequence `i`.
//!
//! # Where an op is
//! An op is a folder in one of six families: `mod.rs` holds arguments, documentation and checks, `cpu.rs` the
//! reference, `gpu.rs` the launch. Its name is the folder's, with these exceptions:
//!
//! | ops | folder |
//! |---|---|
//! | `*_bwd`, `*_dx`, `*_dw` | that of the forward op |
//! | [`logprob_fused`], [`score_scale`] | `vocabulary/logprob`, `vocabulary/linear_logprob` |
//! | [`top_fraction`], [`seq_broadcast`], [`seq_weights`] | `policy/quantile`, `policy/seq_reduce`, `policy/policy_loss` |
//! | [`preference_loss()`], [`kto_loss()`], [`copg_loss()`], [`beta_mml_loss()`], [`prdp_loss()`], [`info_nce_loss()`] | `policy/pair_loss/*` |
//! | [`nf4_quantize_absmax`] | `quantize/nf4_quantize` |
//! | [`delta_count`], [`delta_encode`], [`delta_apply`] | `optim/delta` |
//! | [`adamw_8bit`] | `optim/adamw` |
//! | [`matmul_fan`], [`nf4_matmul_fan`] | `products/fan` |
//! | [`rope_store`] | `decoder/rope` |
//!
//! What the ops of a family share lies beside their folders, what all share in `support`. A new op is a folder;
//! kernelc writes its `pub mod` and `pub use` lines into the family's `mod.rs`.

pub mod decoder;
pub mod optim;
pub mod policy;
pub mod products;
pub mod quantize;
mod support;
pub mod vocabulary;

pub use {decoder::*, optim::*, policy::*, products::*, quantize::*, vocabulary::*};
