//! Models, objectives, steps and checkpoints.

#[path = "../common/mod.rs"]
mod common;

mod book;
mod checkpoint;
mod completions;
mod distill;
mod dropout;
#[cfg(feature = "hf")]
mod env;
mod golden;
mod kept;
mod learning;
mod longest;
mod memory;
mod model;
mod objective;
mod plan;
mod recipes;
mod resumed;
mod shared;
#[cfg(feature = "hf")]
mod strict;
mod tiny;
mod written;
