//! Advantages of tokens.

mod executors;
mod oracle;
