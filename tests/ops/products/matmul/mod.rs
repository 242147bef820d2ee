//! Dense products and their gradients.

mod oracle;
mod refusals;
