//! What ops of several families share.

pub(crate) mod dispatch;
pub(crate) mod math;
pub(crate) mod prefetch;
