//! One update of the policy: records in, loss and gradients, AdamW.

pub(crate) mod changed;
pub(crate) mod distill;
pub(crate) mod dropout;
pub mod layers;
pub(crate) mod likeliest;
pub mod optimizer;
pub(crate) mod ordered;
pub mod recipe;
pub mod record;
pub mod reference;
pub mod sequence;
pub mod step;
pub mod trunk;
