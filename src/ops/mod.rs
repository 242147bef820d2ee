//! Public ops. Each takes a [`Device`](crate::device::Device) and an argument struct that holds
//! inputs, outputs and settings; it validates everything before it computes anything. A refused call has written
//! nothing. A call that fails later (no memory, a driver) leaves its outputs unspecified, and everything else as
//! it was.
//!
//! Extents: `T` tokens, `V` vocabulary, `B` sequences, `M N K` matrix products (`Y[M, N] = X[M, K]
//! · W[N, K]ᵀ`), `H` heads, `D` head dimension. Packed sequences are described by `cu_seqlens`:
//! `B + 1` offsets, `cu_seqlens[i]..cu_seqlens[i + 1]` being the tokens of sequence `i`.

pub(crate) mod check;
mod fused_head;

pub mod adamw;
pub mod attention;
pub mod convert;
pub mod copy_rows;
pub mod embedding;
pub mod gae;
pub mod gather_k;
pub mod grad_norm;
pub mod group_advantage;
pub mod lerp;
pub mod linear_logprob;
pub mod logprob;
pub mod lora_grad;
pub mod matmul;
pub mod nf4_dequantize;
pub mod nf4_matmul;
pub mod nf4_matmul_dx;
pub mod nf4_matmul_grouped;
pub mod nf4_quantize;
pub mod offpolicy_weight;
pub mod paged_adamw;
pub mod pair_loss;
pub mod policy_loss;
pub mod quantile;
pub mod rmsnorm;
pub mod rope;
pub mod sample;
pub mod seq_reduce;
pub mod sparsity_stats;
pub mod swiglu;
pub mod value_loss;
pub mod vocab_kl;

pub use {
    adamw::*, attention::*, convert::*, copy_rows::*, embedding::*, gae::*, gather_k::*,
    grad_norm::*, group_advantage::*, lerp::*, linear_logprob::*, logprob::*, lora_grad::*,
    matmul::*, nf4_dequantize::*, nf4_matmul::*, nf4_matmul_dx::*, nf4_matmul_grouped::*,
    nf4_quantize::*, offpolicy_weight::*, paged_adamw::*, pair_loss::*, policy_loss::*,
    quantile::*, rmsnorm::*, rope::*, sample::*, seq_reduce::*, sparsity_stats::*, swiglu::*,
    value_loss::*, vocab_kl::*,
};
