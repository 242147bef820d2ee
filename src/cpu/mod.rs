//! The CPU implementation of every op: one file per op, f32 (or f64) data, wide accumulation in a
//! fixed order, rayon over rows. Arguments arrive validated by [`crate::ops`].

pub(crate) mod math;
pub(crate) mod par;
pub(crate) mod team;

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod convert;
pub(crate) mod copy_rows;
pub(crate) mod embedding;
pub(crate) mod gae;
pub(crate) mod gather_k;
pub(crate) mod grad_norm;
pub(crate) mod group_advantage;
pub(crate) mod lerp;
pub(crate) mod linear_logprob;
pub(crate) mod logprob;
pub(crate) mod lora_grad;
pub(crate) mod matmul;
pub(crate) mod nf4_decode;
pub(crate) mod nf4_matmul;
pub(crate) mod nf4_matmul_grouped;
pub(crate) mod nf4_quantize;
pub(crate) mod offpolicy_weight;
pub(crate) mod pair_loss;
pub(crate) mod policy_loss;
pub(crate) mod prefetch;
pub(crate) mod quantile;
pub(crate) mod rmsnorm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod seq_reduce;
pub(crate) mod sparsity_stats;
pub(crate) mod swiglu;
pub(crate) mod value_loss;
pub(crate) mod vocab_kl;
