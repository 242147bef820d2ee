//! Models and adapters as Hugging Face's tools keep them: folders with `config.json`, safetensors
//! weights (plain or bitsandbytes 4-bit) and, beside them, PEFT adapters.
//!
//! ```no_run
//! use gradus::Device;
//! use gradus::quant::Nf4Options;
//! use gradus_rft::pretrained::{LoadOptions, Pretrained};
//! let mut folder = Pretrained::open("Qwen2.5-0.5B".as_ref())?;
//! let options = LoadOptions { quantize: Some(Nf4Options::default()), ..LoadOptions::default() };
//! let model = folder.load::<f32>(Device::Cpu, &options)?;
//! # Ok::<(), gradus::Error>(())
//! ```
//!
//! Nothing is guessed: a field, a key or a shape that does not fit is an error that names it, and
//! pickles are never read.

mod adapter;
mod adapter_config;
mod between;
mod config;
mod convert;
mod folder;
mod generation;
mod load;
mod pattern;
mod quantized;
mod weights;

pub use adapter::Adapter;
pub use adapter_config::AdapterConfig;
pub use between::Difference;
pub use config::HfConfig;
pub use convert::{Converted, OnTensor};
pub(crate) use folder::COMPANIONS;
pub use folder::FolderWriter;
pub use generation::Generation;
pub use load::{LoadOptions, Pretrained};
pub use weights::WeightFiles;
