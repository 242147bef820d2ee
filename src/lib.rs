//! gradus: kernels for reinforcement fine-tuning of quantized language models.
//!
//! | module | what is in it |
//! |---|---|
//! | [`view`], [`dtype`], [`device`], [`error`] | borrowed strided views, element types, where ops run (CPU, CUDA, emulator), the one error type |
//! | [`ops`] | the ops: argument struct in, `Result` out, everything validated first |
//! | [`quant`] | 4-bit matrices in the bitsandbytes layout |
//! | [`rng`] | counter-based random numbers |
//! | [`escape`] | foreign text, safe to show on a terminal |
//!
//! Three promises hold everywhere (`docs/NUMERICS.md` names the test behind each): results are the
//! same bits run to run and for any number of threads; a row's result does not depend on the batch
//! it is in; a call says which argument was wrong. A refused call has written nothing. A call that fails later
//! leaves its outputs unspecified, and everything else as it was.

#[doc(hidden)]
pub use alloc::{asking, is_asking};

pub mod check;
pub mod device;
pub mod dtype;
pub mod error;
pub mod escape;
pub mod ops;
pub mod quant;
pub mod rng;
pub mod view;

mod alloc;

pub use device::Device;
pub use dtype::{DType, bf16, f16};
pub use error::{Error, Result};
pub use view::{View, ViewMut};
