//! Optimizer steps, gradient norms and statistics of weight updates.

pub mod adamw;
pub mod delta;
pub mod grad_norm;
pub mod lerp;
pub mod paged_adamw;
pub mod sparsity_stats;

pub use adamw::*;
pub use delta::*;
pub use grad_norm::*;
pub use lerp::*;
pub use paged_adamw::*;
pub use sparsity_stats::*;
