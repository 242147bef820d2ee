// Generated from ffi/include/gradus.h by `cargo run -p gradus-bindings`.
//! What the header declares, as lists. See `ffi/bindings`.

use crate::sys::*;

/// Every op: its name, its export and its argument struct.
#[doc(hidden)]
#[macro_export]
macro_rules! each_op {
    ($then:ident) => {
        $then! {
            logprob gradus_logprob gradus_logprob_args;
            logprob_bwd gradus_logprob_bwd gradus_logprob_bwd_args;
            logprob_fused gradus_logprob_fused gradus_logprob_fused_args;
            linear_logprob gradus_linear_logprob gradus_linear_logprob_args;
            linear_logprob_bwd gradus_linear_logprob_bwd gradus_linear_logprob_bwd_args;
            score_scale gradus_score_scale gradus_score_scale_args;
            gather_k gradus_gather_k gradus_gather_k_args;
            gather_k_bwd gradus_gather_k_bwd gradus_gather_k_bwd_args;
            top_k gradus_top_k gradus_top_k_args;
            vocab_kl gradus_vocab_kl gradus_vocab_kl_args;
            vocab_kl_bwd gradus_vocab_kl_bwd gradus_vocab_kl_bwd_args;
            sample gradus_sample gradus_sample_args;
            policy_loss gradus_policy_loss gradus_policy_loss_args;
            group_advantage gradus_group_advantage gradus_group_advantage_args;
            gae gradus_gae gradus_gae_args;
            discounted_return gradus_discounted_return gradus_discounted_return_args;
            whiten gradus_whiten gradus_whiten_args;
            kl_reward gradus_kl_reward gradus_kl_reward_args;
            offpolicy_weight gradus_offpolicy_weight gradus_offpolicy_weight_args;
            value_loss gradus_value_loss gradus_value_loss_args;
            preference_loss gradus_preference_loss gradus_preference_loss_args;
            kto_loss gradus_kto_loss gradus_kto_loss_args;
            copg_loss gradus_copg_loss gradus_copg_loss_args;
            beta_mml_loss gradus_beta_mml_loss gradus_beta_mml_loss_args;
            info_nce_loss gradus_info_nce_loss gradus_info_nce_loss_args;
            prdp_loss gradus_prdp_loss gradus_prdp_loss_args;
            seq_reduce gradus_seq_reduce gradus_seq_reduce_args;
            seq_broadcast gradus_seq_broadcast gradus_seq_broadcast_args;
            quantile gradus_quantile gradus_quantile_args;
            top_fraction gradus_top_fraction gradus_top_fraction_args;
            matmul gradus_matmul gradus_matmul_args;
            matmul_dx gradus_matmul_dx gradus_matmul_dx_args;
            matmul_dw gradus_matmul_dw gradus_matmul_dw_args;
            nf4_matmul gradus_nf4_matmul gradus_nf4_matmul_args;
            nf4_matmul_dx gradus_nf4_matmul_dx gradus_nf4_matmul_dx_args;
            nf4_matmul_grouped gradus_nf4_matmul_grouped gradus_nf4_matmul_grouped_args;
            nf4_matmul_grouped_dx gradus_nf4_matmul_grouped_dx gradus_nf4_matmul_grouped_dx_args;
            lora_grad gradus_lora_grad gradus_lora_grad_args;
            nf4_quantize gradus_nf4_quantize gradus_nf4_quantize_args;
            nf4_quantize_absmax gradus_nf4_quantize_absmax gradus_nf4_quantize_absmax_args;
            nf4_dequantize gradus_nf4_dequantize gradus_nf4_dequantize_args;
            rmsnorm gradus_rmsnorm gradus_rmsnorm_args;
            rmsnorm_bwd gradus_rmsnorm_bwd gradus_rmsnorm_bwd_args;
            rope gradus_rope gradus_rope_args;
            dropout gradus_dropout gradus_dropout_args;
            attention gradus_attention gradus_attention_args;
            attention_bwd gradus_attention_bwd gradus_attention_bwd_args;
            swiglu gradus_swiglu gradus_swiglu_args;
            swiglu_bwd gradus_swiglu_bwd gradus_swiglu_bwd_args;
            embedding gradus_embedding gradus_embedding_args;
            embedding_bwd gradus_embedding_bwd gradus_embedding_bwd_args;
            copy_rows gradus_copy_rows gradus_copy_rows_args;
            convert gradus_convert gradus_convert_args;
            adamw gradus_adamw gradus_adamw_args;
            adamw_8bit gradus_adamw_8bit gradus_adamw_8bit_args;
            grad_norm gradus_grad_norm gradus_grad_norm_args;
            lerp gradus_lerp gradus_lerp_args;
            sparsity_stats gradus_sparsity_stats gradus_sparsity_stats_args;
            delta_encode gradus_delta_encode gradus_delta_encode_args;
            delta_apply gradus_delta_apply gradus_delta_apply_args;
        }
    };
}

/// Every function that is no op, with one `_` per argument.
#[doc(hidden)]
#[macro_export]
macro_rules! each_function {
    ($then:ident) => {
        $then! {
            gradus_version();
            gradus_build_info();
            gradus_sizeof(_);
            gradus_status_string(_);
            gradus_last_error();
            gradus_create(_, _);
            gradus_destroy(_);
            gradus_device_name(_, _, _);
            gradus_alloc(_, _, _);
            gradus_free(_, _);
            gradus_upload(_, _, _, _, _);
            gradus_download(_, _, _, _, _);
            gradus_synchronize(_, _);
            gradus_workspace_size(_, _, _, _);
            gradus_reserve(_, _, _);
            gradus_set_team(_);
            gradus_init(_, _, _);
            gradus_nf4_parse(_, _, _);
            gradus_nf4_code(_, _);
            gradus_dynamic_map(_, _);
            gradus_policy_preset(_, _, _, _, _, _);
            gradus_seq_weights(_, _, _, _, _, _);
        }
    };
}

/// Every struct that is not the arguments of an op: its name and its type.
#[doc(hidden)]
#[macro_export]
macro_rules! each_struct {
    ($then:ident) => {
        $then! {
            tensor gradus_tensor;
            nf4 gradus_nf4;
            lora gradus_lora;
            logit_transform gradus_logit_transform;
            policy_settings gradus_policy_settings;
            policy_stats gradus_policy_stats;
            group_stats gradus_group_stats;
            whiten_stats gradus_whiten_stats;
            offpolicy_stats gradus_offpolicy_stats;
            adamw_settings gradus_adamw_settings;
            adamw_outcome gradus_adamw_outcome;
            adamw_tensor gradus_adamw_tensor;
            adamw_8bit_tensor gradus_adamw_8bit_tensor;
            update_sparsity gradus_update_sparsity;
        }
    };
}

/// Enumerators in the order of their numbers, which begin at 0.
pub trait Enumeration: Copy + 'static {
    /// All of them.
    const ALL: &'static [Self];
}

impl Enumeration for gradus_dtype {
    const ALL: &'static [Self] = &[
        gradus_dtype::GRADUS_U8,
        gradus_dtype::GRADUS_I32,
        gradus_dtype::GRADUS_I64,
        gradus_dtype::GRADUS_F16,
        gradus_dtype::GRADUS_BF16,
        gradus_dtype::GRADUS_F32,
        gradus_dtype::GRADUS_F64,
    ];
}

impl Enumeration for gradus_memory {
    const ALL: &'static [Self] = &[
        gradus_memory::GRADUS_HOST,
        gradus_memory::GRADUS_DEVICE,
    ];
}

impl Enumeration for gradus_quant_type {
    const ALL: &'static [Self] = &[
        gradus_quant_type::GRADUS_NF4,
        gradus_quant_type::GRADUS_FP4,
    ];
}

impl Enumeration for gradus_divergence {
    const ALL: &'static [Self] = &[
        gradus_divergence::GRADUS_FORWARD_KL,
        gradus_divergence::GRADUS_REVERSE_KL,
        gradus_divergence::GRADUS_JSD,
        gradus_divergence::GRADUS_TOTAL_VARIATION,
    ];
}

impl Enumeration for gradus_loss {
    const ALL: &'static [Self] = &[
        gradus_loss::GRADUS_CROSS_ENTROPY,
        gradus_loss::GRADUS_REINFORCE,
        gradus_loss::GRADUS_PPO_CLIP,
        gradus_loss::GRADUS_CISPO,
        gradus_loss::GRADUS_SAPO,
        gradus_loss::GRADUS_VESPO,
        gradus_loss::GRADUS_GMPO,
        gradus_loss::GRADUS_DRO,
        gradus_loss::GRADUS_DPPO_TV,
        gradus_loss::GRADUS_DPPO_KL,
        gradus_loss::GRADUS_PRIME,
        gradus_loss::GRADUS_KL_COV,
    ];
}

impl Enumeration for gradus_ratio {
    const ALL: &'static [Self] = &[
        gradus_ratio::GRADUS_RATIO_TOKEN,
        gradus_ratio::GRADUS_RATIO_SEQUENCE_MEAN,
        gradus_ratio::GRADUS_RATIO_SEQUENCE_MEAN_TOKEN,
        gradus_ratio::GRADUS_RATIO_SEQUENCE_SUM,
    ];
}

impl Enumeration for gradus_denominator {
    const ALL: &'static [Self] = &[
        gradus_denominator::GRADUS_DENOMINATOR_OLD,
        gradus_denominator::GRADUS_DENOMINATOR_SAMPLER,
    ];
}

impl Enumeration for gradus_center {
    const ALL: &'static [Self] = &[
        gradus_center::GRADUS_CENTER_ONE,
        gradus_center::GRADUS_CENTER_OLD_OVER_SAMPLER,
    ];
}

impl Enumeration for gradus_kl_estimator {
    const ALL: &'static [Self] = &[
        gradus_kl_estimator::GRADUS_K1,
        gradus_kl_estimator::GRADUS_K2,
        gradus_kl_estimator::GRADUS_K3,
        gradus_kl_estimator::GRADUS_KL_ABS,
    ];
}

impl Enumeration for gradus_kl_gradient {
    const ALL: &'static [Self] = &[
        gradus_kl_gradient::GRADUS_KL_GRADIENT_SAME,
        gradus_kl_gradient::GRADUS_KL_GRADIENT_K2,
        gradus_kl_gradient::GRADUS_KL_GRADIENT_NONE,
    ];
}

impl Enumeration for gradus_kl_weight {
    const ALL: &'static [Self] = &[
        gradus_kl_weight::GRADUS_KL_WEIGHT_ONE,
        gradus_kl_weight::GRADUS_KL_WEIGHT_RATIO,
        gradus_kl_weight::GRADUS_KL_WEIGHT_RATIO_DETACHED,
    ];
}

impl Enumeration for gradus_advantage_level {
    const ALL: &'static [Self] = &[
        gradus_advantage_level::GRADUS_PER_SEQUENCE,
        gradus_advantage_level::GRADUS_PER_TOKEN,
    ];
}

impl Enumeration for gradus_aggregation {
    const ALL: &'static [Self] = &[
        gradus_aggregation::GRADUS_TOKEN_MEAN,
        gradus_aggregation::GRADUS_TOKEN_MEAN_OF,
        gradus_aggregation::GRADUS_SEQUENCE_MEAN_TOKEN_MEAN,
        gradus_aggregation::GRADUS_SEQUENCE_MEAN_TOKEN_SUM,
        gradus_aggregation::GRADUS_CONSTANT,
        gradus_aggregation::GRADUS_TOKEN_SUM,
    ];
}

impl Enumeration for gradus_baseline {
    const ALL: &'static [Self] = &[
        gradus_baseline::GRADUS_BASELINE_NONE,
        gradus_baseline::GRADUS_BASELINE_MEAN,
        gradus_baseline::GRADUS_BASELINE_LEAVE_ONE_OUT,
        gradus_baseline::GRADUS_BASELINE_LENGTH_WEIGHTED,
        gradus_baseline::GRADUS_BASELINE_MAX2,
    ];
}

impl Enumeration for gradus_scale {
    const ALL: &'static [Self] = &[
        gradus_scale::GRADUS_SCALE_NONE,
        gradus_scale::GRADUS_SCALE_GROUP_STD,
        gradus_scale::GRADUS_SCALE_BATCH_STD,
        gradus_scale::GRADUS_SCALE_LOO_STD,
        gradus_scale::GRADUS_SCALE_NONZERO_SHARE,
    ];
}

impl Enumeration for gradus_eps_form {
    const ALL: &'static [Self] = &[
        gradus_eps_form::GRADUS_ADD_TO_STD,
        gradus_eps_form::GRADUS_ADD_TO_VARIANCE,
        gradus_eps_form::GRADUS_FLOOR_VARIANCE,
    ];
}

impl Enumeration for gradus_on_single {
    const ALL: &'static [Self] = &[
        gradus_on_single::GRADUS_SINGLE_ZERO,
        gradus_on_single::GRADUS_SINGLE_RAW,
    ];
}

impl Enumeration for gradus_level {
    const ALL: &'static [Self] = &[
        gradus_level::GRADUS_LEVEL_TOKEN,
        gradus_level::GRADUS_LEVEL_SEQUENCE_SUM,
        gradus_level::GRADUS_LEVEL_SEQUENCE_MEAN,
        gradus_level::GRADUS_LEVEL_SEQUENCE_MAX,
    ];
}

impl Enumeration for gradus_bound {
    const ALL: &'static [Self] = &[
        gradus_bound::GRADUS_TRUNCATE,
        gradus_bound::GRADUS_MASK,
        gradus_bound::GRADUS_SEQUENCE_MASK,
    ];
}

impl Enumeration for gradus_preference_kind {
    const ALL: &'static [Self] = &[
        gradus_preference_kind::GRADUS_DPO,
        gradus_preference_kind::GRADUS_HINGE,
        gradus_preference_kind::GRADUS_IPO,
        gradus_preference_kind::GRADUS_ROBUST,
        gradus_preference_kind::GRADUS_EXO,
        gradus_preference_kind::GRADUS_NCA,
        gradus_preference_kind::GRADUS_BCO,
        gradus_preference_kind::GRADUS_SPPO_HARD,
        gradus_preference_kind::GRADUS_APO_ZERO,
        gradus_preference_kind::GRADUS_APO_DOWN,
        gradus_preference_kind::GRADUS_DISCOPOP,
        gradus_preference_kind::GRADUS_ORPO,
    ];
}

impl Enumeration for gradus_preference_score {
    const ALL: &'static [Self] = &[
        gradus_preference_score::GRADUS_SCORE_REVERSE_KL,
        gradus_preference_score::GRADUS_SCORE_FORWARD_KL,
        gradus_preference_score::GRADUS_SCORE_JENSEN_SHANNON,
        gradus_preference_score::GRADUS_SCORE_ALPHA,
    ];
}

impl Enumeration for gradus_reduction {
    const ALL: &'static [Self] = &[
        gradus_reduction::GRADUS_SUM,
        gradus_reduction::GRADUS_MEAN,
        gradus_reduction::GRADUS_MAX,
        gradus_reduction::GRADUS_MIN,
    ];
}

impl Enumeration for gradus_quantile_method {
    const ALL: &'static [Self] = &[
        gradus_quantile_method::GRADUS_LINEAR,
        gradus_quantile_method::GRADUS_LOWER,
        gradus_quantile_method::GRADUS_HIGHER,
    ];
}

impl Enumeration for gradus_decay {
    const ALL: &'static [Self] = &[
        gradus_decay::GRADUS_DECAY_BEFORE,
        gradus_decay::GRADUS_DECAY_AFTER,
    ];
}

/// Fields of every struct: (struct, (field, struct that it is or points to, or "")).
pub(crate) static FIELDS: &[(&str, &[(&str, &str)])] = &[
    ("tensor", &[("data", ""), ("dtype", ""), ("memory", ""), ("rank", ""), ("reserved", ""), ("shape", ""), ("strides", "")]),
    ("nf4", &[("packed", "tensor"), ("absmax", "tensor"), ("quant_map", "tensor"), ("nested_absmax", "tensor"), ("nested_quant_map", "tensor"), ("n", ""), ("k", ""), ("blocksize", ""), ("nested_blocksize", ""), ("offset", ""), ("dtype", ""), ("reserved", "")]),
    ("lora", &[("a", "tensor"), ("b", "tensor"), ("scale", "")]),
    ("logit_transform", &[("temperature", ""), ("scale", ""), ("softcap", "")]),
    ("logprob_args", &[("struct_size", ""), ("logits", "tensor"), ("targets", "tensor"), ("vocab", ""), ("transform", "logit_transform"), ("logp", "tensor"), ("lse", "tensor"), ("entropy", "tensor"), ("log_sum_sq", "tensor"), ("top1", "tensor")]),
    ("logprob_bwd_args", &[("struct_size", ""), ("logits", "tensor"), ("targets", "tensor"), ("vocab", ""), ("transform", "logit_transform"), ("dlogp", "tensor"), ("dentropy", "tensor"), ("dlse", "tensor"), ("dlogits", "tensor")]),
    ("logprob_fused_args", &[("struct_size", ""), ("logits", "tensor"), ("targets", "tensor"), ("vocab", ""), ("transform", "logit_transform"), ("dlogp", "tensor"), ("logp", "tensor"), ("entropy", "tensor")]),
    ("linear_logprob_args", &[("struct_size", ""), ("hidden", "tensor"), ("head", "tensor"), ("head_nf4", "nf4"), ("lora", "lora"), ("lora_count", ""), ("targets", "tensor"), ("vocab", ""), ("transform", "logit_transform"), ("logp", "tensor"), ("lse", "tensor"), ("entropy", "tensor"), ("score", "tensor")]),
    ("linear_logprob_bwd_args", &[("struct_size", ""), ("hidden", "tensor"), ("head", "tensor"), ("head_nf4", "nf4"), ("lora", "lora"), ("lora_count", ""), ("targets", "tensor"), ("vocab", ""), ("transform", "logit_transform"), ("dlogp", "tensor"), ("dentropy", "tensor"), ("dhidden", "tensor"), ("dweight", "tensor")]),
    ("score_scale_args", &[("struct_size", ""), ("score", "tensor"), ("dlogp", "tensor"), ("dhidden", "tensor")]),
    ("gather_k_args", &[("struct_size", ""), ("logits", "tensor"), ("ids", "tensor"), ("vocab", ""), ("transform", "logit_transform"), ("renormalize", ""), ("reserved", ""), ("logp", "tensor"), ("mass", "tensor")]),
    ("gather_k_bwd_args", &[("struct_size", ""), ("logits", "tensor"), ("ids", "tensor"), ("vocab", ""), ("transform", "logit_transform"), ("renormalize", ""), ("reserved", ""), ("dlogp", "tensor"), ("dlogits", "tensor")]),
    ("top_k_args", &[("struct_size", ""), ("logits", "tensor"), ("vocab", ""), ("ids", "tensor")]),
    ("vocab_kl_args", &[("struct_size", ""), ("policy", "tensor"), ("reference", "tensor"), ("guidance", "tensor"), ("gamma", ""), ("vocab", ""), ("transform", "logit_transform"), ("divergence", ""), ("reserved", ""), ("beta", ""), ("value", "tensor")]),
    ("vocab_kl_bwd_args", &[("struct_size", ""), ("policy", "tensor"), ("reference", "tensor"), ("guidance", "tensor"), ("gamma", ""), ("vocab", ""), ("transform", "logit_transform"), ("divergence", ""), ("reserved", ""), ("beta", ""), ("dvalue", "tensor"), ("dpolicy", "tensor")]),
    ("sample_args", &[("struct_size", ""), ("logits", "tensor"), ("vocab", ""), ("transform", "logit_transform"), ("top_k", ""), ("top_p", ""), ("min_p", ""), ("greedy", ""), ("reserved", ""), ("uniform", "tensor"), ("token", "tensor"), ("logp", "tensor"), ("logp_kept", "tensor"), ("kept_mass", "tensor")]),
    ("policy_settings", &[("loss", ""), ("ratio", ""), ("denominator", ""), ("center", ""), ("lo", ""), ("hi", ""), ("dual", ""), ("cap", ""), ("kappa", ""), ("dro_beta", ""), ("tau_pos", ""), ("tau_neg", ""), ("kappa_pos", ""), ("lambda_pos", ""), ("kappa_neg", ""), ("lambda_neg", ""), ("log_ratio_clamp", ""), ("seq_log_ratio_max", ""), ("use_kl", ""), ("kl_estimator", ""), ("kl_gradient", ""), ("kl_weight", ""), ("kl_coef", ""), ("kl_clamp_in", ""), ("kl_clamp_out", ""), ("kl_mix", ""), ("entropy_coef", ""), ("opsm", ""), ("class_weight", ""), ("class_self_ratio", "")]),
    ("policy_stats", &[("n_tokens", ""), ("n_sequences", ""), ("n_empty", ""), ("n_clip_lo", ""), ("n_clip_hi", ""), ("n_dual", ""), ("n_opsm", ""), ("n_nonfinite", ""), ("sum_ratio", ""), ("sum_ratio2", ""), ("min_ratio", ""), ("max_ratio", ""), ("max_abs_log_ratio", ""), ("sum_kl", ""), ("sum_entropy", ""), ("grad2_by_class", "")]),
    ("policy_loss_args", &[("struct_size", ""), ("logp", "tensor"), ("old_logp", "tensor"), ("sampler_logp", "tensor"), ("ref_logp", "tensor"), ("ref2_logp", "tensor"), ("advantage", "tensor"), ("advantage_level", ""), ("reserved", ""), ("mask", "tensor"), ("class_ids", "tensor"), ("token_weight", "tensor"), ("selected", "tensor"), ("is_weight", "tensor"), ("entropy", "tensor"), ("cu_seqlens", "tensor"), ("seq_weight", "tensor"), ("settings", "policy_settings"), ("loss", ""), ("dlogp", "tensor"), ("dentropy", "tensor"), ("token_loss", "tensor"), ("stats", "policy_stats")]),
    ("group_stats", &[("size", ""), ("scorable", ""), ("mean", ""), ("std", ""), ("degenerate", ""), ("reserved", "")]),
    ("group_advantage_args", &[("struct_size", ""), ("reward", "tensor"), ("offsets", "tensor"), ("length", "tensor"), ("baseline", ""), ("scale", ""), ("ddof", ""), ("eps_form", ""), ("eps", ""), ("on_single", ""), ("reserved", ""), ("advantage", "tensor"), ("groups", "group_stats")]),
    ("gae_args", &[("struct_size", ""), ("reward", "tensor"), ("value", "tensor"), ("mask", "tensor"), ("cu_seqlens", "tensor"), ("bootstrap", "tensor"), ("gamma", ""), ("gae_lambda", ""), ("advantage", "tensor"), ("returns", "tensor")]),
    ("discounted_return_args", &[("struct_size", ""), ("reward", "tensor"), ("mask", "tensor"), ("cu_seqlens", "tensor"), ("gamma", ""), ("reset", ""), ("reserved", ""), ("baseline", "tensor"), ("returns", "tensor")]),
    ("whiten_stats", &[("count", ""), ("mean", ""), ("std", "")]),
    ("whiten_args", &[("struct_size", ""), ("x", "tensor"), ("mask", "tensor"), ("eps", ""), ("count_eps", ""), ("ddof", ""), ("eps_form", ""), ("shift_mean", ""), ("reserved", ""), ("y", "tensor"), ("stats", "whiten_stats")]),
    ("kl_reward_args", &[("struct_size", ""), ("score", "tensor"), ("logp", "tensor"), ("reference", "tensor"), ("mask", "tensor"), ("cu_seqlens", "tensor"), ("beta", ""), ("clamp", ""), ("estimator", ""), ("reserved", ""), ("reward", "tensor")]),
    ("offpolicy_stats", &[("tokens", ""), ("dropped", ""), ("nan_sampler", ""), ("min", ""), ("max", ""), ("mean", ""), ("ess", ""), ("chi2", "")]),
    ("offpolicy_weight_args", &[("struct_size", ""), ("old_logp", "tensor"), ("sampler_logp", "tensor"), ("mask", "tensor"), ("cu_seqlens", "tensor"), ("level", ""), ("bound", ""), ("min", ""), ("max", ""), ("clamp", ""), ("normalize", ""), ("use_reject", ""), ("reject_by", ""), ("reject_level", ""), ("reject_lo", ""), ("reject_hi", ""), ("weight", "tensor"), ("stats", "offpolicy_stats")]),
    ("value_loss_args", &[("struct_size", ""), ("value", "tensor"), ("returns", "tensor"), ("old_value", "tensor"), ("mask", "tensor"), ("clip", ""), ("weight", ""), ("loss", ""), ("dvalue", "tensor")]),
    ("preference_loss_args", &[("struct_size", ""), ("logp_chosen", "tensor"), ("logp_rejected", "tensor"), ("reference_chosen", "tensor"), ("reference_rejected", "tensor"), ("length_chosen", "tensor"), ("length_rejected", "tensor"), ("kind", ""), ("score", ""), ("beta", ""), ("label_smoothing", ""), ("margin", ""), ("reference_point", ""), ("temperature", ""), ("alpha", ""), ("likelihood", ""), ("weight", "tensor"), ("loss", "tensor"), ("dlogp_chosen", "tensor"), ("dlogp_rejected", "tensor"), ("reward_chosen", "tensor"), ("reward_rejected", "tensor"), ("total", "tensor")]),
    ("kto_loss_args", &[("struct_size", ""), ("logp", "tensor"), ("reference", "tensor"), ("desirable", "tensor"), ("beta", ""), ("kl", ""), ("desirable_weight", ""), ("undesirable_weight", ""), ("weight", "tensor"), ("loss", "tensor"), ("dlogp", "tensor"), ("total", "tensor")]),
    ("copg_loss_args", &[("struct_size", ""), ("logp", "tensor"), ("reference", "tensor"), ("reward", "tensor"), ("offsets", "tensor"), ("beta", ""), ("weight", "tensor"), ("loss", "tensor"), ("dlogp", "tensor"), ("total", "tensor")]),
    ("beta_mml_loss_args", &[("struct_size", ""), ("logp", "tensor"), ("offsets", "tensor"), ("beta", ""), ("weight", "tensor"), ("loss", "tensor"), ("dlogp", "tensor"), ("total", "tensor")]),
    ("info_nce_loss_args", &[("struct_size", ""), ("logp", "tensor"), ("length", "tensor"), ("loss", "tensor"), ("dlogp", "tensor")]),
    ("prdp_loss_args", &[("struct_size", ""), ("logp", "tensor"), ("old", "tensor"), ("reference", "tensor"), ("mask", "tensor"), ("cu_seqlens", "tensor"), ("reward", "tensor"), ("pairs", "tensor"), ("beta", ""), ("clip", ""), ("weight", "tensor"), ("loss", "tensor"), ("dlogp", "tensor"), ("total", "tensor")]),
    ("seq_reduce_args", &[("struct_size", ""), ("x", "tensor"), ("mask", "tensor"), ("cu_seqlens", "tensor"), ("reduction", ""), ("reserved", ""), ("y", "tensor"), ("count", "tensor")]),
    ("seq_broadcast_args", &[("struct_size", ""), ("x", "tensor"), ("mask", "tensor"), ("cu_seqlens", "tensor"), ("mean", ""), ("reserved", ""), ("y", "tensor")]),
    ("quantile_args", &[("struct_size", ""), ("x", "tensor"), ("mask", "tensor"), ("cu_seqlens", "tensor"), ("q", ""), ("method", ""), ("skip_nan", ""), ("y", "tensor")]),
    ("top_fraction_args", &[("struct_size", ""), ("x", "tensor"), ("class_ids", "tensor"), ("ranked", ""), ("others", ""), ("cu_seqlens", "tensor"), ("fraction", ""), ("keep", "tensor"), ("threshold", "tensor")]),
    ("matmul_args", &[("struct_size", ""), ("x", "tensor"), ("w", "tensor"), ("bias", "tensor"), ("lora", "lora"), ("lora_count", ""), ("adapter", "tensor"), ("s", "tensor"), ("residual", "tensor"), ("y", "tensor")]),
    ("matmul_dx_args", &[("struct_size", ""), ("dy", "tensor"), ("w", "tensor"), ("lora", "lora"), ("lora_count", ""), ("adapter", "tensor"), ("accumulate", ""), ("reserved", ""), ("dx", "tensor")]),
    ("matmul_dw_args", &[("struct_size", ""), ("dy", "tensor"), ("x", "tensor"), ("dw", "tensor"), ("dbias", "tensor")]),
    ("nf4_matmul_args", &[("struct_size", ""), ("x", "tensor"), ("w", "nf4"), ("bias", "tensor"), ("lora", "lora"), ("lora_count", ""), ("adapter", "tensor"), ("s", "tensor"), ("residual", "tensor"), ("y", "tensor")]),
    ("nf4_matmul_dx_args", &[("struct_size", ""), ("dy", "tensor"), ("w", "nf4"), ("lora", "lora"), ("lora_count", ""), ("adapter", "tensor"), ("accumulate", ""), ("reserved", ""), ("dx", "tensor")]),
    ("nf4_matmul_grouped_args", &[("struct_size", ""), ("x", "tensor"), ("offsets", "tensor"), ("w", "nf4"), ("w_count", ""), ("y", "tensor")]),
    ("nf4_matmul_grouped_dx_args", &[("struct_size", ""), ("dy", "tensor"), ("offsets", "tensor"), ("w", "nf4"), ("w_count", ""), ("accumulate", ""), ("reserved", ""), ("dx", "tensor")]),
    ("lora_grad_args", &[("struct_size", ""), ("x", "tensor"), ("dy", "tensor"), ("s", "tensor"), ("lora", "lora"), ("adapter", "tensor"), ("index", ""), ("reserved", ""), ("da", "tensor"), ("db", "tensor")]),
    ("nf4_quantize_args", &[("struct_size", ""), ("x", "tensor"), ("quant_type", ""), ("reserved", ""), ("blocksize", ""), ("packed", "tensor"), ("absmax", "tensor")]),
    ("nf4_quantize_absmax_args", &[("struct_size", ""), ("absmax", "tensor"), ("nested_quant_map", "tensor"), ("codes", "tensor"), ("nested_absmax", "tensor"), ("offset", "")]),
    ("nf4_dequantize_args", &[("struct_size", ""), ("w", "nf4"), ("y", "tensor")]),
    ("rmsnorm_args", &[("struct_size", ""), ("x", "tensor"), ("weight", "tensor"), ("eps", ""), ("y", "tensor"), ("rstd", "tensor")]),
    ("rmsnorm_bwd_args", &[("struct_size", ""), ("x", "tensor"), ("weight", "tensor"), ("eps", ""), ("dy", "tensor"), ("residual", "tensor"), ("dx", "tensor"), ("dweight", "tensor")]),
    ("rope_args", &[("struct_size", ""), ("x", "tensor"), ("positions", "tensor"), ("cos", "tensor"), ("sin", "tensor"), ("inverse", ""), ("reserved", "")]),
    ("dropout_args", &[("struct_size", ""), ("x", "tensor"), ("streams", "tensor"), ("positions", "tensor"), ("p", ""), ("scale", ""), ("key", ""), ("accumulate", ""), ("reserved", ""), ("y", "tensor")]),
    ("attention_args", &[("struct_size", ""), ("q", "tensor"), ("k", "tensor"), ("v", "tensor"), ("cu_seqlens", "tensor"), ("kv_start", "tensor"), ("pages", "tensor"), ("page_size", ""), ("kv_len", "tensor"), ("scale", ""), ("o", "tensor"), ("lse", "tensor"), ("prefix_start", "tensor"), ("prefix_len", "tensor")]),
    ("attention_bwd_args", &[("struct_size", ""), ("q", "tensor"), ("k", "tensor"), ("v", "tensor"), ("cu_seqlens", "tensor"), ("kv_start", "tensor"), ("kv_len", "tensor"), ("scale", ""), ("dout", "tensor"), ("dq", "tensor"), ("dk", "tensor"), ("dv", "tensor"), ("prefix_start", "tensor"), ("prefix_len", "tensor")]),
    ("swiglu_args", &[("struct_size", ""), ("gate", "tensor"), ("up", "tensor"), ("y", "tensor")]),
    ("swiglu_bwd_args", &[("struct_size", ""), ("gate", "tensor"), ("up", "tensor"), ("dy", "tensor"), ("dgate", "tensor"), ("dup", "tensor")]),
    ("embedding_args", &[("struct_size", ""), ("ids", "tensor"), ("table", "tensor"), ("y", "tensor")]),
    ("embedding_bwd_args", &[("struct_size", ""), ("ids", "tensor"), ("dy", "tensor"), ("dtable", "tensor")]),
    ("copy_rows_args", &[("struct_size", ""), ("x", "tensor"), ("from_rows", "tensor"), ("to_rows", "tensor"), ("y", "tensor")]),
    ("convert_args", &[("struct_size", ""), ("x", "tensor"), ("y", "tensor")]),
    ("adamw_settings", &[("lr", ""), ("beta1", ""), ("beta2", ""), ("eps", ""), ("weight_decay", ""), ("grad_scale", ""), ("step", ""), ("decay", ""), ("reserved", "")]),
    ("adamw_outcome", &[("non_finite_tensor", ""), ("non_finite_element", ""), ("updated", ""), ("unchanged", ""), ("absorbed_bf16", "")]),
    ("adamw_tensor", &[("param", "tensor"), ("grad", "tensor"), ("m", "tensor"), ("v", "tensor"), ("mask", "tensor")]),
    ("adamw_args", &[("struct_size", ""), ("tensors", "adamw_tensor"), ("tensors_count", ""), ("settings", "adamw_settings"), ("outcome", "adamw_outcome")]),
    ("adamw_8bit_tensor", &[("param", "tensor"), ("grad", "tensor"), ("m", "tensor"), ("v", "tensor"), ("m_absmax", "tensor"), ("v_absmax", "tensor"), ("mask", "tensor")]),
    ("adamw_8bit_args", &[("struct_size", ""), ("tensors", "adamw_8bit_tensor"), ("tensors_count", ""), ("settings", "adamw_settings"), ("outcome", "adamw_outcome")]),
    ("grad_norm_args", &[("struct_size", ""), ("grads", "tensor"), ("grads_count", ""), ("norm", "")]),
    ("lerp_args", &[("struct_size", ""), ("a", "tensor"), ("b", "tensor"), ("weight", ""), ("y", "tensor")]),
    ("update_sparsity", &[("n", ""), ("equal_exact", ""), ("within_tol", ""), ("absorbed_bf16", ""), ("max_delta", "")]),
    ("sparsity_stats_args", &[("struct_size", ""), ("w0", "tensor"), ("w1", "tensor"), ("tol", ""), ("row_nnz", "tensor"), ("stats", "update_sparsity")]),
    ("delta_encode_args", &[("struct_size", ""), ("old_value", "tensor"), ("new_value", "tensor"), ("index", "tensor"), ("value", "tensor"), ("count", "")]),
    ("delta_apply_args", &[("struct_size", ""), ("index", "tensor"), ("value", "tensor"), ("target", "tensor")]),
];
