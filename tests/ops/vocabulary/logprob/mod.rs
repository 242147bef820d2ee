//! Log-probs, entropies and their gradients.

mod executors;
mod oracle;
