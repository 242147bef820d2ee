//! Kernels and a small runtime for reinforcement fine-tuning of quantized language models: 4-bit
//! products with LoRA, log-probs, policy losses, advantages, sampling, and the rest of a training
//! step. Each op runs on the CPU, on CUDA, and on an emulated GPU.
//!
//! An op takes a [`Device`] and a struct of borrowed views, and returns a [`Result`]. It validates
//! everything before it computes anything. The model, the trainer and the command line are another
//! crate, `gradus-rft`, which uses this one as you would.
//!
//! # Example: log-probs of tokens
//!
//! Four rows of logits over a vocabulary of 32,000, and the log-prob of one token in each.
//!
//! ```
//! use gradus::ops::{LogProb, logprob};
//! use gradus::{Device, View};
//!
//! let (logits, targets) = (vec![0.5f32; 4 * 32_000], vec![7i32; 4]);
//! let mut logp = vec![0f32; 4];
//! let rows = View::rows_of(&logits, 32_000)?;
//! logprob(&Device::Cpu, LogProb::new(rows, (&targets).into(), (&mut logp).into()))?;
//! assert!((logp[0] + (32_000f32).ln()).abs() < 1e-5);
//!
//! // A mistake is an error that names the argument.
//! let error = logprob(&Device::Cpu, LogProb::new(rows, (&vec![40_000; 4]).into(), (&mut logp).into()));
//! let text = error.unwrap_err().to_string();
//! assert!(text.contains("argument `targets`: got 40000 at index 0"), "{text}");
//! # Ok::<(), gradus::Error>(())
//! ```
//!
//! # Example: from rewards to the gradient of the logits
//!
//! Four calls: log-probs, advantages of a group, the loss with its gradient, and the gradient of
//! the logits. The settings are those of DAPO.
//!
//! ```
//! use gradus::ops::{
//!     Advantage, GroupAdvantage, GroupSettings, LogProb, LogProbBwd, PolicyLoss, group_advantage,
//!     logprob, logprob_bwd, policy_loss, presets, seq_weights,
//! };
//! use gradus::{Device, View, ViewMut};
//!
//! // Two prompts, two samples each, three tokens per sample, a vocabulary of 100.
//! let (samples, length, vocab) = (4, 3, 100);
//! let logits = vec![0f32; samples * length * vocab];
//! let targets: Vec<i32> = (0..12).collect();
//! let reward = vec![1f32, 0.0, 0.0, 1.0];
//! let (groups, sequences) = (vec![0i64, 2, 4], vec![0i64, 3, 6, 9, 12]);
//!
//! let mut logp = vec![0f32; samples * length];
//! let rows = View::rows_of(&logits, vocab)?;
//! logprob(&Device::Cpu, LogProb::new(rows, (&targets).into(), (&mut logp).into()))?;
//!
//! let mut advantage = vec![0f32; samples];
//! group_advantage(&Device::Cpu, GroupAdvantage {
//!     reward: (&reward).into(),
//!     offsets: (&groups).into(),
//!     length: None,
//!     settings: GroupSettings::default(),
//!     advantage: (&mut advantage).into(),
//!     groups: None,
//! })?;
//!
//! let preset = presets::dapo();
//! let weight = seq_weights(preset.aggregation, &[length as i64; 4])?;
//! let weight: Vec<f32> = weight.into_iter().map(|w| w as f32).collect();
//! let (mut loss, mut dlogp) = (0.0, vec![0f32; samples * length]);
//! policy_loss(&Device::Cpu, PolicyLoss::new(
//!     (&logp).into(),
//!     Advantage::PerSequence((&advantage).into()),
//!     (&sequences).into(),
//!     (&weight).into(),
//!     &preset.settings,
//!     &mut loss,
//!     (&mut dlogp).into(),
//! ))?;
//!
//! let mut dlogits = vec![0f32; logits.len()];
//! let drows = ViewMut::rows_of(&mut dlogits, vocab)?;
//! logprob_bwd(&Device::Cpu, LogProbBwd::new(rows, (&targets).into(), (&dlogp).into(), drows))?;
//! assert!(dlogits[0] < 0.0, "a right answer's token becomes more likely");
//! # Ok::<(), gradus::Error>(())
//! ```
//!
//! # Example: a 4-bit layer with an adapter
//!
//! The weight is quantized to NF4, whose bytes are the only copy. The adapter is added in the same
//! accumulator.
//!
//! ```
//! use gradus::ops::{Lora, Nf4Matmul, nf4_matmul};
//! use gradus::quant::{Nf4Options, Nf4Tensor};
//! use gradus::{Device, View, ViewMut};
//!
//! let (n, k, rank) = (8, 64, 4);
//! let dense: Vec<f32> = (0..n * k).map(|i| (i % 13) as f32 / 13.0 - 0.5).collect();
//! let weight = Nf4Tensor::quantize(&Device::Cpu, View::rows_of(&dense, k)?, &Nf4Options::default())?;
//!
//! let (a, b) = (vec![0.1f32; rank * k], vec![0.2f32; n * rank]);
//! let lora = [Lora { a: View::rows_of(&a, k)?, b: View::rows_of(&b, rank)?, scale: 2.0 }];
//! let (x, mut y) = (vec![1f32; 2 * k], vec![0f32; 2 * n]);
//! nf4_matmul(&Device::Cpu, Nf4Matmul {
//!     x: View::rows_of(&x, k)?,
//!     w: weight.view(),
//!     bias: None,
//!     lora: &lora,
//!     adapter: None,
//!     s: None,
//!     residual: None,
//!     y: ViewMut::rows_of(&mut y, n)?,
//! })?;
//! assert_eq!(y[..n], y[n..], "a row's result does not depend on its place in the batch");
//! # Ok::<(), gradus::Error>(())
//! ```
//!
//! # Example: a GPU
//!
//! A GPU runs the same ops on host memory (copied over and back) or on its own.
//!
//! ```no_run
//! use gradus::device::DeviceBuffer;
//! use gradus::ops::{LogProb, logprob};
//! use gradus::{Device, Result};
//!
//! fn main() -> Result<()> {
//!     let device = Device::cuda(0)?; // NoDriver says what is missing
//!     let Device::Gpu(gpu) = &device else { unreachable!() };
//!     let logits = DeviceBuffer::from_host(gpu, &vec![0.5f32; 4 * 32_000])?;
//!     let targets = DeviceBuffer::from_host(gpu, &[7i32; 4])?;
//!     let mut logp = DeviceBuffer::<f32>::new(gpu, 4)?;
//!     let args = LogProb::new(logits.view(&[4, 32_000])?, targets.view(&[4])?, logp.view_mut(&[4])?);
//!     logprob(&device, args)?; // one launch: no allocation, no wait
//!     println!("{:?}", logp.to_host()?);
//!     Ok(())
//! }
//! ```
//!
//! # Modules
//!
//! | module | what is in it |
//! |---|---|
//! | [`ops`] | the ops, in six families: vocabulary, policy, products, quantize, decoder, optim |
//! | [`device`] | where ops run (CPU, CUDA, emulator), device memory, streams, graphs |
//! | [`view`], [`dtype`], [`error`] | borrowed strided views, element types, the one error type |
//! | [`check`] | argument checks, for your own ops too |
//! | [`quant`] | 4-bit matrices in the bitsandbytes layout |
//! | [`rng`] | counter-based random numbers |
//! | [`escape`] | foreign text, safe to show on a terminal |
//!
//! # Promises
//!
//! Three promises hold everywhere; `docs/NUMERICS.md` names the test behind each. Results have the
//! same bits from run to run and for any number of threads. A row's result does not depend on the
//! batch that it is in. A call says which argument was wrong. A refused call has written nothing. A
//! call that fails later leaves its outputs unspecified, and everything else as it was.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `cuda` (on by default) | the CUDA driver as a device; nothing is linked, and a machine without a driver is told so |
//! | `emu` | the emulated GPU as a device, for tests |
//! | `cust` | buffers and streams of the crate cust, borrowed |
#![cfg_attr(docsrs, feature(doc_cfg))]

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
