//! gradus: kernels and a micro-runtime for reinforcement fine-tuning of quantised language models.

pub mod device;
pub mod dtype;
pub mod error;
pub mod ops;
pub mod quant;
pub mod rng;
pub mod view;

mod cpu;

#[cfg(feature = "train")]
pub mod io;
#[cfg(feature = "train")]
pub mod model;
pub mod objective;
#[cfg(feature = "train")]
pub mod train;

pub use device::Device;
pub use dtype::{DType, bf16, f16};
pub use error::{Error, Result};
pub use view::{View, ViewMut};
