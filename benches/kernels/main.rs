//! `cargo bench`: one criterion group per op, with bytes and flops as throughput.

use criterion::{criterion_group, criterion_main};

/// One module with a `bench` function per op.
macro_rules! ops {
    ($($op:ident,)*) => {
        $(mod $op;)*
        criterion_group!(benches, $($op::bench),*);
    };
}

ops! {
    adamw,
    attention,
    embedding,
    grad_norm,
    lora_grad,
    matmul,
    nf4_quantize,
    rmsnorm,
    rope,
    sparsity_stats,
    swiglu,
}
criterion_main!(benches);
