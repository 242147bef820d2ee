//! The binary `gradus`: what runs write, print and leave, and what stops them.

#[path = "../common/mod.rs"]
mod common;
mod runs;

mod between;
mod buffers;
mod bundle;
mod bytes;
mod env;
mod folder;
mod kill;
mod memory;
mod model;
mod processes;
mod recipes;
mod report;
mod run;
mod serve;
mod sft;
mod strict;
mod words;
