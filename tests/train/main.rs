//! Models, objectives, steps and checkpoints.

#[path = "../common/mod.rs"]
mod common;

mod begun;
mod book;
mod changed;
mod checkpoint;
mod completions;
mod distill;
mod dropout;
#[cfg(feature = "hf")]
mod env;
#[cfg(feature = "hf")]
mod env_check;
#[cfg(feature = "hf")]
mod episodes;
mod golden;
mod kept;
mod learning;
mod memory;
mod model;
mod objective;
mod plan;
mod recipes;
mod resumed;
#[cfg(feature = "hf")]
mod rounds;
mod shared;
#[cfg(feature = "hf")]
mod strict;
#[cfg(feature = "hf")]
mod suites;
mod tiny;
mod written;
