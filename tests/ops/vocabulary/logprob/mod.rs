//! Log-probs, entropies and their gradients.

mod executors;
pub mod oracle;
