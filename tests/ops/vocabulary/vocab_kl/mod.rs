//! Divergences over the whole vocabulary.

mod executors;
mod oracle;
