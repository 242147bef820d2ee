//! Values of 4-bit weights.

mod bitsandbytes;
mod executors;
