//! RMSNorm and its gradient.

mod oracle;
mod residual;
