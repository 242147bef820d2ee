//! Optimizer steps, gradient norms and statistics of weight updates.

pub mod adamw;
pub mod delta;
pub mod grad_norm;
pub mod lerp;
pub mod paged_adamw;
pub mod sparsity_stats;

pub use {adamw::*, delta::*, grad_norm::*, lerp::*, paged_adamw::*, sparsity_stats::*};
