//! A decoder-only transformer of the Llama / Qwen2 / Qwen3 shape with forward and backward written
//! out by hand over [`gradus::ops`].
//!
//! Data flows one way: [`Decoder::forward`] runs packed tokens through the layers (recording a
//! [`Tape`] if gradients are wanted, reading and writing a [`KvCache`] if it decodes) and returns
//! the final hidden states; [`Decoder::score`] scores them; [`Decoder::backward`] walks the tape
//! in reverse and adds to [`Gradients`]. Sampler and trainer call the same ops, whose rows do not
//! depend on the batch, so a token has the same log-prob in both, bit for bit.

mod batch;
mod build;
mod config;
mod decoder;
mod dropout;
#[cfg(feature = "serve")]
mod exchange;
mod init;
mod kv_cache;
mod layer;
mod linear;
mod params;
mod rope_table;
mod score;
mod value_head;

pub(crate) use batch::Keys;
pub use batch::{Batch, Packed};
pub(crate) use build::{Start, WeightSource};
pub use config::ModelConfig;
pub use decoder::{Decoder, LoraOptions, WeightBytes};
pub(crate) use decoder::{HEAD, NewLora};
pub use dropout::AdapterDropout;
#[cfg(feature = "serve")]
pub(crate) use exchange::LoraSet;
pub use kv_cache::{KvCache, PAGE};
pub(crate) use layer::LINEAR_NAMES;
pub use layer::{LayerTape, Tape};
pub use linear::{Linear, LoraAdapter, Weight};
pub(crate) use params::ORIGINAL;
pub use params::{Gradients, ParamId, Parameter, Parameters, Snapshot};
pub use rope_table::{RopeScaling, RopeTable};
pub use score::{ScoreGradients, ScoreUse, Scores};
pub use value_head::ValueHead;
