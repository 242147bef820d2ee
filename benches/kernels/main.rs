//! `cargo bench`: one criterion group per op, with bytes and flops as throughput.

use criterion::{criterion_group, criterion_main};

/// One module with a `bench` function per op or family of ops.
macro_rules! ops {
    ($($op:ident,)*) => {
        $(mod $op;)*
        criterion_group!(benches, $($op::bench),*);
    };
}

ops! {
    adamw,
    advantage,
    attention,
    embedding,
    grad_norm,
    logprob,
    lora_grad,
    matmul,
    nf4_quantize,
    policy_loss,
    rmsnorm,
    rope,
    sample,
    sparsity_stats,
    swiglu,
    vocab_kl,
}
criterion_main!(benches);
