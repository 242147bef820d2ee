//! Reinforcement fine-tuning of quantized language models, on the kernels of [`gradus`].
//!
//! | module | what is in it |
//! |---|---|
//! | [`pretrained`], [`model`] | folders of Hugging Face and PEFT, the decoder |
//! | [`train`], [`reward`] | the trainer, scores of completions |
//! | [`report`] | a page about a run, runs side by side |
//! | [`text`] | what a vocabulary is; with the feature `hf` tokenizers and chat templates |
//! | `data` (feature `hf`, on by default) | data sets as they come from a hub |
//! | `serve` (feature `serve`, on by default) | `gradus serve`: a model over HTTP, as OpenAI's clients ask |
//! | [`toy`] | toy tasks as data sets |
//! | [`io`], [`mod@bench`] | files, `gradus bench` |
//!
//! It sees only the public API of `gradus`.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bench;
#[cfg(feature = "hf")]
pub mod data;
pub mod io;
pub mod model;
mod near;
pub mod pretrained;
pub mod recipes;
pub mod report;
pub mod reward;
#[cfg(feature = "serve")]
pub mod serve;
pub mod text;
pub mod toy;
pub mod train;

/// The README's examples run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
