//! The sampler.

mod dtypes;
mod oracle;
