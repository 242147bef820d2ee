//! Advantages of groups.

mod executors;
mod oracle;
mod peers;
mod refusals;
