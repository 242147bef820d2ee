//! Advantages of groups.

mod oracle;
mod peers;
mod refusals;
