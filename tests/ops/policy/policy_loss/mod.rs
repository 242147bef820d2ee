//! Policy losses.

mod executors;
mod nan;
mod oracle;
mod peers;
