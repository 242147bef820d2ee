//! One export an op, all alike: see [`Op`](crate::args::Op).

mod decoder;
mod optim;
mod pairs;
mod policy;
mod products;
mod settings;
mod vocabulary;

pub use settings::{gradus_policy_preset, gradus_seq_weights};

use std::ffi::c_void;

use crate::args::{Args, Entry, call};
use crate::sys;

macro_rules! exports {
    ($($export:ident($args:ident);)*) => {
        $(
            // SAFETY: bindgen made the struct repr(C) of numbers and pointers, and the header
            // begins it with struct_size: `tests/header.rs` looks.
            unsafe impl Args for sys::$args {
                const NAME: &'static str = stringify!($export).split_at("gradus_".len()).1;
            }

            /// # Safety
            /// See the header.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $export(
                ctx: sys::gradus_context,
                stream: *mut c_void,
                args: *const sys::$args,
            ) -> sys::gradus_status {
                call(ctx, stream, args)
            }
        )*

        /// Every op by its name.
        pub(crate) static TABLE: &[Entry] = &[$(Entry::of::<sys::$args>()),*];

        // An export whose type is not the header's does not compile.
        const _: () = {
            $(
                #[allow(unused_assignments)]
                let mut export: unsafe extern "C" fn(_, _, _) -> _ = $export;
                export = sys::$export;
                let _ = export;
            )*
        };
    };
}

exports! {
    gradus_logprob(gradus_logprob_args);
    gradus_logprob_bwd(gradus_logprob_bwd_args);
    gradus_logprob_fused(gradus_logprob_fused_args);
    gradus_linear_logprob(gradus_linear_logprob_args);
    gradus_linear_logprob_bwd(gradus_linear_logprob_bwd_args);
    gradus_score_scale(gradus_score_scale_args);
    gradus_gather_k(gradus_gather_k_args);
    gradus_gather_k_bwd(gradus_gather_k_bwd_args);
    gradus_vocab_kl(gradus_vocab_kl_args);
    gradus_vocab_kl_bwd(gradus_vocab_kl_bwd_args);
    gradus_sample(gradus_sample_args);
    gradus_policy_loss(gradus_policy_loss_args);
    gradus_group_advantage(gradus_group_advantage_args);
    gradus_gae(gradus_gae_args);
    gradus_discounted_return(gradus_discounted_return_args);
    gradus_whiten(gradus_whiten_args);
    gradus_kl_reward(gradus_kl_reward_args);
    gradus_offpolicy_weight(gradus_offpolicy_weight_args);
    gradus_value_loss(gradus_value_loss_args);
    gradus_preference_loss(gradus_preference_loss_args);
    gradus_kto_loss(gradus_kto_loss_args);
    gradus_copg_loss(gradus_copg_loss_args);
    gradus_beta_mml_loss(gradus_beta_mml_loss_args);
    gradus_info_nce_loss(gradus_info_nce_loss_args);
    gradus_prdp_loss(gradus_prdp_loss_args);
    gradus_seq_reduce(gradus_seq_reduce_args);
    gradus_seq_broadcast(gradus_seq_broadcast_args);
    gradus_quantile(gradus_quantile_args);
    gradus_top_fraction(gradus_top_fraction_args);
    gradus_nf4_quantize(gradus_nf4_quantize_args);
    gradus_nf4_quantize_absmax(gradus_nf4_quantize_absmax_args);
    gradus_nf4_dequantize(gradus_nf4_dequantize_args);
    gradus_nf4_matmul(gradus_nf4_matmul_args);
    gradus_nf4_matmul_dx(gradus_nf4_matmul_dx_args);
    gradus_nf4_matmul_grouped(gradus_nf4_matmul_grouped_args);
    gradus_nf4_matmul_grouped_dx(gradus_nf4_matmul_grouped_dx_args);
    gradus_matmul(gradus_matmul_args);
    gradus_matmul_dx(gradus_matmul_dx_args);
    gradus_matmul_dw(gradus_matmul_dw_args);
    gradus_lora_grad(gradus_lora_grad_args);
    gradus_rmsnorm(gradus_rmsnorm_args);
    gradus_rmsnorm_bwd(gradus_rmsnorm_bwd_args);
    gradus_rope(gradus_rope_args);
    gradus_attention(gradus_attention_args);
    gradus_attention_bwd(gradus_attention_bwd_args);
    gradus_swiglu(gradus_swiglu_args);
    gradus_swiglu_bwd(gradus_swiglu_bwd_args);
    gradus_embedding(gradus_embedding_args);
    gradus_embedding_bwd(gradus_embedding_bwd_args);
    gradus_copy_rows(gradus_copy_rows_args);
    gradus_convert(gradus_convert_args);
    gradus_adamw(gradus_adamw_args);
    gradus_adamw_8bit(gradus_adamw_8bit_args);
    gradus_grad_norm(gradus_grad_norm_args);
    gradus_lerp(gradus_lerp_args);
    gradus_sparsity_stats(gradus_sparsity_stats_args);
    gradus_delta_encode(gradus_delta_encode_args);
    gradus_delta_apply(gradus_delta_apply_args);
}

/// Sizes of the header's other structs, by name.
pub(crate) static STRUCTS: &[(&str, usize)] = &{
    let parts: [&[(&str, usize)]; 4] =
        [&products::STRUCTS, &vocabulary::STRUCTS, &policy::STRUCTS, &optim::STRUCTS];
    let mut all = [("", 0); 14];
    let (mut part, mut count) = (0, 0);
    while part < parts.len() {
        let mut i = 0;
        while i < parts[part].len() {
            all[count] = parts[part][i];
            (i, count) = (i + 1, count + 1);
        }
        part += 1;
    }
    assert!(count == all.len());
    all
};
