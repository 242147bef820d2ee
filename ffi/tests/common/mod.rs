//! Shared by the tests of the C ABI and by the fuzz targets.
#![allow(dead_code)]

pub mod calls;
#[path = "header.rs"]
pub mod parsed;
pub mod settings;

use std::ffi::c_void;

use gradus_c::sys;

macro_rules! by_name {
    ($($op:ident $export:ident,)*) => {
        /// The export of an op.
        ///
        /// # Safety
        /// As the header asks.
        pub unsafe fn dispatch(op: &str, ctx: u64, stream: *mut c_void, args: *mut c_void) -> i32 {
            match op {
                // SAFETY: the caller's promise.
                $(stringify!($op) => unsafe { sys::$export(ctx, stream, args.cast()) },)*
                other => panic!("the list of exports lacks {other}"),
            }
        }
    };
}

by_name! {
    logprob gradus_logprob,
    logprob_bwd gradus_logprob_bwd,
    logprob_fused gradus_logprob_fused,
    linear_logprob gradus_linear_logprob,
    linear_logprob_bwd gradus_linear_logprob_bwd,
    score_scale gradus_score_scale,
    gather_k gradus_gather_k,
    gather_k_bwd gradus_gather_k_bwd,
    vocab_kl gradus_vocab_kl,
    vocab_kl_bwd gradus_vocab_kl_bwd,
    sample gradus_sample,
    policy_loss gradus_policy_loss,
    group_advantage gradus_group_advantage,
    gae gradus_gae,
    discounted_return gradus_discounted_return,
    whiten gradus_whiten,
    kl_reward gradus_kl_reward,
    offpolicy_weight gradus_offpolicy_weight,
    value_loss gradus_value_loss,
    preference_loss gradus_preference_loss,
    kto_loss gradus_kto_loss,
    copg_loss gradus_copg_loss,
    beta_mml_loss gradus_beta_mml_loss,
    info_nce_loss gradus_info_nce_loss,
    prdp_loss gradus_prdp_loss,
    seq_reduce gradus_seq_reduce,
    seq_broadcast gradus_seq_broadcast,
    quantile gradus_quantile,
    top_fraction gradus_top_fraction,
    nf4_quantize gradus_nf4_quantize,
    nf4_quantize_absmax gradus_nf4_quantize_absmax,
    nf4_dequantize gradus_nf4_dequantize,
    nf4_matmul gradus_nf4_matmul,
    nf4_matmul_dx gradus_nf4_matmul_dx,
    nf4_matmul_grouped gradus_nf4_matmul_grouped,
    nf4_matmul_grouped_dx gradus_nf4_matmul_grouped_dx,
    matmul gradus_matmul,
    matmul_dx gradus_matmul_dx,
    matmul_dw gradus_matmul_dw,
    lora_grad gradus_lora_grad,
    rmsnorm gradus_rmsnorm,
    rmsnorm_bwd gradus_rmsnorm_bwd,
    rope gradus_rope,
    attention gradus_attention,
    attention_bwd gradus_attention_bwd,
    swiglu gradus_swiglu,
    swiglu_bwd gradus_swiglu_bwd,
    embedding gradus_embedding,
    embedding_bwd gradus_embedding_bwd,
    copy_rows gradus_copy_rows,
    convert gradus_convert,
    adamw gradus_adamw,
    adamw_8bit gradus_adamw_8bit,
    grad_norm gradus_grad_norm,
    lerp gradus_lerp,
    sparsity_stats gradus_sparsity_stats,
    delta_encode gradus_delta_encode,
    delta_apply gradus_delta_apply,
}
