//! `cargo bench`: one criterion group per op, with bytes and flops as throughput.

use criterion::{criterion_group, criterion_main};

mod advantage;
mod rmsnorm;

criterion_group!(benches, advantage::bench, rmsnorm::bench);
criterion_main!(benches);
