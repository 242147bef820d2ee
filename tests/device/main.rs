//! What ops share on a device: faults, graphs, memory, the shipped kernels, the emulator beside hardware; and
//! what the repository says about itself.

#[path = "../common/mod.rs"]
mod common;

mod conformance;
mod decode;
mod door;
mod faults;
mod gates;
mod graph;
mod kernels;
mod layers;
mod memory;
mod prose;
mod sizes;
mod steady;
mod tree;
mod world;
