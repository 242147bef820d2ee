//! `cargo bench`: one criterion group per op, with bytes and flops as throughput.

use criterion::{criterion_group, criterion_main};

mod attention;
mod embedding;
mod rmsnorm;
mod rope;
mod swiglu;

criterion_group!(
    benches,
    attention::bench,
    embedding::bench,
    rmsnorm::bench,
    rope::bench,
    swiglu::bench,
);
criterion_main!(benches);
