//! Ops by family and name, each on every executor: the CPU, the emulator with both kernel sets, and CUDA where
//! there is a device. `cargo test --test ops logprob` runs everything about logprob.

#[path = "../common/mod.rs"]
mod common;

mod decoder;
mod optim;
mod policy;
mod products;
mod quantize;
mod vocabulary;
