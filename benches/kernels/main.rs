//! `cargo bench`: one criterion group per op, with bytes and flops as throughput.

use criterion::{criterion_group, criterion_main};

mod adamw;
mod grad_norm;
mod nf4_quantize;
mod rmsnorm;
mod sparsity_stats;

criterion_group!(
    benches,
    adamw::bench,
    grad_norm::bench,
    nf4_quantize::bench,
    rmsnorm::bench,
    sparsity_stats::bench
);
criterion_main!(benches);
