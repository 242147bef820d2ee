//! Updates of weights.

mod adamw;
mod lerp;
mod paged_adamw;
mod sparsity_stats;
