//! Dense products.

mod oracle;
mod refusals;
mod residual;
