//! Sparsity of updates, deltas.

mod executors;
mod oracle;
