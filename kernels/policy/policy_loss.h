// What `policy_loss.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;

enum Loss : i32 {
    LOSS_CROSS_ENTROPY,
    LOSS_REINFORCE,
    LOSS_PPO_CLIP,
    LOSS_CISPO,
    LOSS_SAPO,
    LOSS_VESPO,
    LOSS_GMPO,
    LOSS_DRO,
    LOSS_DPPO_TV,
    LOSS_DPPO_KL,
    LOSS_PRIME,
    LOSS_KL_COV
};

enum RatioLevel : i32 {
    RATIO_LEVEL_TOKEN,
    RATIO_LEVEL_SEQUENCE_MEAN,
    RATIO_LEVEL_SEQUENCE_MEAN_TOKEN,
    RATIO_LEVEL_SEQUENCE_SUM
};

enum KlEstimator : i32 { KL_ESTIMATOR_K1, KL_ESTIMATOR_K2, KL_ESTIMATOR_K3, KL_ESTIMATOR_ABS };

enum KlGradient : i32 { KL_GRADIENT_SAME, KL_GRADIENT_K2, KL_GRADIENT_NONE };

enum KlWeight : i32 { KL_WEIGHT_ONE, KL_WEIGHT_RATIO, KL_WEIGHT_RATIO_DETACHED };

// What is summed, in the order of `totals`.
enum Total : i32 {
    TOTAL_LOSS,
    TOTAL_TOKENS,
    TOTAL_SEQUENCES,
    TOTAL_EMPTY,
    TOTAL_CLIP_LO,
    TOTAL_CLIP_HI,
    TOTAL_DUAL,
    TOTAL_OPSM,
    TOTAL_NONFINITE,
    TOTAL_RATIO,
    TOTAL_RATIO2,
    TOTAL_ENTROPY,
    TOTAL_KL1,
    TOTAL_KL2,
    TOTAL_KL3,
    TOTAL_GRAD2,
    // Extremes behind the eight classes: smallest and largest ratio, largest |log-ratio|.
    TOTAL_MIN_RATIO = TOTAL_GRAD2 + 8,
    TOTAL_MAX_RATIO,
    TOTAL_MAX_LOG_RATIO
};
static constexpr int TOTALS = 26;

// `x[4]` of the loss: lo, hi, dual | lo, hi | tau_pos, tau_neg | kappa+, lambda+, kappa-, lambda- |
// lo, hi | beta | lo, hi, cap | lo, hi, kappa | kappa, in the order of the enum.
struct PolicySettings {
    double x[4];
    double log_ratio_clamp, seq_log_ratio_max, entropy_coef, opsm;
    double kl_coef, kl_clamp_in, kl_clamp_out, kl_mix;
    double class_weight[8];
    Loss loss;
    RatioLevel ratio;
    i32 sampler_denominator, stale_center, kl;
    KlEstimator kl_estimator;
    KlGradient kl_gradient;
    KlWeight kl_weight;
    u8 class_self_ratio[8];
};

template <class R> struct PolicyLossParams {
    Column<const R> logp, old_logp, sampler_logp, ref_logp, ref2_logp;
    Column<const R> token_weight, is_weight, entropy, advantage, seq_weight;
    Column<const u8> mask, klass, selected;
    Column<const i64> cu_seqlens;
    Column<R> dlogp, dentropy, token_loss;
    double* partial;  // [B][TOTALS]
    double* totals;   // [TOTALS]
    u32* ticket;      // 0 before and after
    i64 tokens, sequences;
    i64 advantage_per_token;
    PolicySettings s;
};
