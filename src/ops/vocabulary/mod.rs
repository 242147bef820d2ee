//! Ops over rows of the vocabulary: log-probabilities, their gradients, divergences and sampling.

pub(crate) mod row_cpu;
pub(crate) mod rows_gpu;

pub mod gather_k;
pub mod linear_logprob;
pub mod logprob;
pub mod sample;
pub mod top_k;
pub mod vocab_kl;

pub use gather_k::*;
pub use linear_logprob::*;
pub use logprob::*;
pub use sample::*;
pub use top_k::*;
pub use vocab_kl::*;
