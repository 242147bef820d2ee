//! Gradient norms, sparsity of updates, deltas.

mod executors;
mod oracle;
