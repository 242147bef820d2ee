//! Tests of the C ABI, in one executable: `cargo test -p gradus-c scalars` runs those of a subject.

#[path = "../common/mod.rs"]
mod common;

mod header;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod memory;
mod readme;
mod refusals;
mod scalars;
mod sequences;
