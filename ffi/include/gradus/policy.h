/* Losses, advantages, importance weights and reductions over tokens, sequences and groups. Included by gradus.h. */
#ifndef GRADUS_POLICY_H
#define GRADUS_POLICY_H

/* ---- policy_loss ---------------------------------------------------------------------------- */

/* Policy loss of a token. r is the ratio, d the log-ratio, A the advantage, l the log-prob, sg stops the
 * gradient; lo, hi, ... are fields of gradus_policy_settings. */
enum gradus_loss {
  GRADUS_CROSS_ENTROPY = 0, /* -l; advantages are not read */
  GRADUS_REINFORCE = 1,     /* -A l */
  GRADUS_PPO_CLIP = 2,      /* -min(min(r, dual) A, clip(r, lo, hi) A); dual for A < 0 only */
  GRADUS_CISPO = 3,         /* -sg[clip(r, lo, hi)] A l */
  GRADUS_SAPO = 4,          /* -A 4/tau sigmoid(tau (r - 1)), tau by the sign of A */
  GRADUS_VESPO = 5,         /* -sg[phi] A l, log phi = lambda + kappa log w - lambda w */
  GRADUS_GMPO = 6,          /* geometric mean of clipped ratios; lo and hi bound the log-ratio to [-lo, hi] */
  GRADUS_DRO = 7,           /* -(A l - beta/2 d^2) */
  GRADUS_DPPO_TV = 8,       /* -A sg[min(r, cap)] l where p fell by at most lo (A <= 0) or rose by at most hi (A > 0) */
  GRADUS_DPPO_KL = 9,       /* like DPPO_TV, with the binary KL of p_old and p as the size of the fall or rise */
  GRADUS_PRIME = 10,        /* -keep A r + kappa d^2; keep is 1 where DPPO_TV has a loss, else 0 */
  GRADUS_KL_COV = 11        /* -r A + kappa |d| on the tokens of `selected` */
};

/* Over what a ratio is formed. */
enum gradus_ratio {
  GRADUS_RATIO_TOKEN = 0,
  GRADUS_RATIO_SEQUENCE_MEAN = 1,       /* GSPO: gradient through all tokens */
  GRADUS_RATIO_SEQUENCE_MEAN_TOKEN = 2, /* GSPO-token */
  GRADUS_RATIO_SEQUENCE_SUM = 3         /* RLOO */
};
/* Log-probs that a ratio divides by. */
enum gradus_denominator { GRADUS_DENOMINATOR_OLD = 0, GRADUS_DENOMINATOR_SAMPLER = 1 };
/* Center of the clip interval. */
enum gradus_center { GRADUS_CENTER_ONE = 0, GRADUS_CENTER_OLD_OVER_SAMPLER = 1 };
/* Estimator of a KL from one token, with k = l_ref - l. */
enum gradus_kl_estimator {
  GRADUS_K1 = 0,    /* -k */
  GRADUS_K2 = 1,    /* k^2 / 2 */
  GRADUS_K3 = 2,    /* exp(k) - k - 1 */
  GRADUS_KL_ABS = 3 /* |k| */
};
/* Gradient of the KL penalty: that of its estimator, that of GRADUS_K2, or none (the KL is only measured). */
enum gradus_kl_gradient { GRADUS_KL_GRADIENT_SAME = 0, GRADUS_KL_GRADIENT_K2 = 1, GRADUS_KL_GRADIENT_NONE = 2 };
/* What the KL of a token is multiplied by. */
enum gradus_kl_weight { GRADUS_KL_WEIGHT_ONE = 0, GRADUS_KL_WEIGHT_RATIO = 1, GRADUS_KL_WEIGHT_RATIO_DETACHED = 2 };
/* Whether there is one advantage per sequence or per token. */
enum gradus_advantage_level { GRADUS_PER_SEQUENCE = 0, GRADUS_PER_TOKEN = 1 };

/* The loss of a token; see gradus_policy_preset for those of published methods. */
typedef struct gradus_policy_settings {
  int32_t loss;                                        /* gradus_loss, default GRADUS_PPO_CLIP */
  int32_t ratio;                                       /* gradus_ratio, default GRADUS_RATIO_TOKEN */
  int32_t denominator;                                 /* gradus_denominator, default GRADUS_DENOMINATOR_OLD */
  int32_t center;                                      /* gradus_center, default GRADUS_CENTER_ONE */
  double lo, hi;                                       /* bounds of r, default 0.8 and 1.2; GMPO, DPPO, PRIME: see gradus_loss */
  double dual;                                         /* PPO_CLIP; default infinity: off */
  double cap;                                          /* DPPO_TV, DPPO_KL; default infinity */
  double kappa;                                        /* PRIME, KL_COV */
  double dro_beta;                                     /* DRO */
  double tau_pos, tau_neg;                             /* SAPO */
  double kappa_pos, lambda_pos, kappa_neg, lambda_neg; /* VESPO */
  double log_ratio_clamp;                              /* of a token, before exp; default infinity */
  double seq_log_ratio_max;                            /* of a sequence; default infinity */
  int32_t use_kl;                                      /* 1: add the KL penalty that the fields kl_* describe */
  int32_t kl_estimator;                                /* gradus_kl_estimator, default GRADUS_K3 */
  int32_t kl_gradient;                                 /* gradus_kl_gradient, default GRADUS_KL_GRADIENT_SAME */
  int32_t kl_weight;                                   /* gradus_kl_weight, default GRADUS_KL_WEIGHT_ONE */
  double kl_coef;                                      /* beta >= 0 */
  double kl_clamp_in;                                  /* of k before exp; default infinity */
  double kl_clamp_out;                                 /* of the value; default infinity */
  double kl_mix;                                       /* weight of ref_logp; ref2_logp has 1 - kl_mix; default 1 */
  double entropy_coef;                                 /* bonus; >= 0 */
  double opsm;                                         /* off-policy sequence masking; default infinity: off */
  double class_weight[8];                              /* of each token class; default 1 */
  int32_t class_self_ratio[8];                         /* 1: the ratio of this class is 1, with its gradient */
} gradus_policy_settings;

/* How seq_weight is computed from the lengths N_i of B sequences. */
enum gradus_aggregation {
  GRADUS_TOKEN_MEAN = 0,               /* 1 / sum N */
  GRADUS_TOKEN_MEAN_OF = 1,            /* 1 / value */
  GRADUS_SEQUENCE_MEAN_TOKEN_MEAN = 2, /* 1 / (B N_i) */
  GRADUS_SEQUENCE_MEAN_TOKEN_SUM = 3,  /* 1 / B */
  GRADUS_CONSTANT = 4,                 /* 1 / (B value) */
  GRADUS_TOKEN_SUM = 5                 /* 1 */
};

/* Settings and aggregation of a published method: "grpo", "deepseekmath_grpo", "dr_grpo", "dapo", "gspo", "cispo",
 * "reft", "relift", "remix", "prefix_rft", "ce", "trl/LOSS_TYPE", "verl/LOSS". Some divide by `length`, the length of
 * the longest completion, which must be > 0 for them; the others ignore it. */
GRADUS_API gradus_status gradus_policy_preset(const char *name, double length, gradus_policy_settings *settings,
                                              int32_t *aggregation, int32_t *count_empty, double *value);
/* Weights of `count` sequences, of which sequence i has lengths[i] scored tokens. `value` is the number of tokens
 * for GRADUS_TOKEN_MEAN_OF, and the length for GRADUS_CONSTANT. count_empty: 1 if sequences without a scored
 * token count in B, as in TRL; 0 if not, as in verl. */
GRADUS_API gradus_status gradus_seq_weights(int32_t aggregation, int32_t count_empty, double value,
                                            const int64_t *lengths, int64_t count, double *weights);

/* What policy_loss counted and summed over the tokens of the mask. */
typedef struct gradus_policy_stats {
  int64_t n_tokens, n_sequences, n_empty, n_clip_lo, n_clip_hi, n_dual, n_opsm, n_nonfinite;
  double sum_ratio, sum_ratio2, min_ratio, max_ratio, max_abs_log_ratio;
  double sum_kl[3]; /* k1, k2, k3 against the reference */
  double sum_entropy;
  double grad2_by_class[8]; /* sum (dloss/dl)^2 */
} gradus_policy_stats;

/* loss = sum_i seq_weight_i sum_t L_t over packed sequences, its gradient and statistics, in one pass. */
typedef struct gradus_policy_loss_args {
  size_t struct_size;
  gradus_tensor logp;         /* in R [T] */
  gradus_tensor old_logp;     /* in R [T], optional: without it every ratio is 1, with its gradient */
  gradus_tensor sampler_logp; /* in R [T], optional */
  gradus_tensor ref_logp;     /* in R [T], optional: needed for the KL penalty */
  gradus_tensor ref2_logp;    /* in R [T], optional: needed for kl_mix < 1 */
  gradus_tensor advantage;    /* in R [B] or [T], by advantage_level */
  int32_t advantage_level;    /* gradus_advantage_level, default GRADUS_PER_SEQUENCE */
  int32_t reserved;
  gradus_tensor mask;         /* in u8 [T], optional: a token with 0 does not exist for the op */
  gradus_tensor class_ids;    /* in u8 [T], optional: 0 to 7 */
  gradus_tensor token_weight; /* in R [T], optional: factor of the loss, detached */
  gradus_tensor selected;     /* in u8 [T], optional: needed for GRADUS_KL_COV */
  gradus_tensor is_weight;    /* in R [T], optional: importance weights, detached */
  gradus_tensor entropy;      /* in R [T], optional */
  gradus_tensor cu_seqlens;   /* in i64 [B + 1] */
  gradus_tensor seq_weight;   /* in R [B]: see gradus_seq_weights */
  gradus_policy_settings settings;
  double *loss;               /* out */
  gradus_tensor dlogp;        /* out R [T]; 0 where masked */
  gradus_tensor dentropy;     /* out R [T], optional */
  gradus_tensor token_loss;   /* out R [T], optional: not multiplied by the weight of its sequence */
  gradus_policy_stats *stats; /* out, may be NULL */
} gradus_policy_loss_args;
GRADUS_API gradus_status gradus_policy_loss(gradus_context ctx, void *stream, const gradus_policy_loss_args *args);

/* ---- advantages ----------------------------------------------------------------------------- */

/* What is subtracted from a reward. */
enum gradus_baseline {
  GRADUS_BASELINE_NONE = 0,
  GRADUS_BASELINE_MEAN = 1,
  GRADUS_BASELINE_LEAVE_ONE_OUT = 2,
  GRADUS_BASELINE_LENGTH_WEIGHTED = 3, /* OPO; needs length */
  GRADUS_BASELINE_MAX2 = 4             /* pass@k: the best gets best - second best */
};
/* What a reward minus its baseline is divided by. */
enum gradus_scale {
  GRADUS_SCALE_NONE = 0,
  GRADUS_SCALE_GROUP_STD = 1,
  GRADUS_SCALE_BATCH_STD = 2,
  GRADUS_SCALE_LOO_STD = 3,
  GRADUS_SCALE_NONZERO_SHARE = 4 /* GPG */
};
/* Where eps enters a standard deviation: std + eps, sqrt(var + eps), sqrt(max(var, eps)). */
enum gradus_eps_form { GRADUS_ADD_TO_STD = 0, GRADUS_ADD_TO_VARIANCE = 1, GRADUS_FLOOR_VARIANCE = 2 };
/* Advantage in a group with a single reward: 0, or the reward itself. */
enum gradus_on_single { GRADUS_SINGLE_ZERO = 0, GRADUS_SINGLE_RAW = 1 };

/* What group_advantage found in a group. */
typedef struct gradus_group_stats {
  int64_t size, scorable;
  double mean, std;
  int32_t degenerate; /* 1: fewer than two rewards, or all are equal */
  int32_t reserved;
} gradus_group_stats;

/* advantage = (reward - baseline) / scale, over groups of any size. A NaN reward is left out: its advantage is 0. */
typedef struct gradus_group_advantage_args {
  size_t struct_size;
  gradus_tensor reward;  /* in R [B]: the groups one after another */
  gradus_tensor offsets; /* in i64 [G + 1] */
  gradus_tensor length;  /* in i64 [B], optional */
  int32_t baseline;      /* gradus_baseline, default GRADUS_BASELINE_MEAN */
  int32_t scale;         /* gradus_scale, default GRADUS_SCALE_GROUP_STD */
  int32_t ddof;          /* 0 or 1; default 1 */
  int32_t eps_form;      /* gradus_eps_form, default GRADUS_ADD_TO_STD */
  double eps;            /* default 1e-4 */
  int32_t on_single;     /* gradus_on_single, default GRADUS_SINGLE_ZERO */
  int32_t reserved;
  gradus_tensor advantage;    /* out R [B] */
  gradus_group_stats *groups; /* out [G], may be NULL */
} gradus_group_advantage_args;
GRADUS_API gradus_status gradus_group_advantage(gradus_context ctx, void *stream, const gradus_group_advantage_args *args);

/* Generalized advantage estimation from token rewards and values; returns = advantage + value. */
typedef struct gradus_gae_args {
  size_t struct_size;
  gradus_tensor reward;     /* in R [T] */
  gradus_tensor value;      /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional: tokens with 0 are skipped and get 0 */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  gradus_tensor bootstrap;  /* in R [B], optional: value after a truncated end */
  double gamma, gae_lambda; /* in [0, 1]; default 1, 0.95 */
  gradus_tensor advantage;  /* out R [T] */
  gradus_tensor returns;    /* out R [T], optional */
} gradus_gae_args;
GRADUS_API gradus_status gradus_gae(gradus_context ctx, void *stream, const gradus_gae_args *args);

/* For each token the sum of the rewards from it to the end of its sequence, discounted by gamma. */
typedef struct gradus_discounted_return_args {
  size_t struct_size;
  gradus_tensor reward;     /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  double gamma;             /* in [0, 1]; default 1 */
  int32_t reset;            /* at a token outside the mask: 0 skips it, 1 starts the sum again, as verl does */
  int32_t reserved;
  gradus_tensor baseline; /* in R [B], optional: subtracted (ReMax) */
  gradus_tensor returns;  /* out R [T] */
} gradus_discounted_return_args;
GRADUS_API gradus_status gradus_discounted_return(gradus_context ctx, void *stream, const gradus_discounted_return_args *args);

/* Number, mean and standard deviation of the tokens that whiten read. */
typedef struct gradus_whiten_stats {
  int64_t count;
  double mean, std;
} gradus_whiten_stats;
/* y = (x - mean) / std over the tokens of the mask. */
typedef struct gradus_whiten_args {
  size_t struct_size;
  gradus_tensor x;    /* in R [T] */
  gradus_tensor mask; /* in u8 [T], optional */
  double eps;         /* default 1e-8 */
  double count_eps;   /* added to the count; default 0, in verl 1e-8 */
  int32_t ddof;       /* default 1 */
  int32_t eps_form;   /* gradus_eps_form, default GRADUS_ADD_TO_VARIANCE */
  int32_t shift_mean; /* default 1; 0 adds the mean back at the end */
  int32_t reserved;
  gradus_tensor y;            /* out R [T] */
  gradus_whiten_stats *stats; /* out, may be NULL */
} gradus_whiten_args;
GRADUS_API gradus_status gradus_whiten(gradus_context ctx, void *stream, const gradus_whiten_args *args);

/* Token rewards: -beta KL for every token, plus the score of the sequence at its last token of the mask. */
typedef struct gradus_kl_reward_args {
  size_t struct_size;
  gradus_tensor score;      /* in R [B] */
  gradus_tensor logp;       /* in R [T] */
  gradus_tensor reference;  /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  double beta;
  double clamp;      /* of |logp - reference|; default infinity */
  int32_t estimator; /* gradus_kl_estimator, default GRADUS_K1 */
  int32_t reserved;
  gradus_tensor reward; /* out R [T] */
} gradus_kl_reward_args;
GRADUS_API gradus_status gradus_kl_reward(gradus_context ctx, void *stream, const gradus_kl_reward_args *args);

/* ---- importance weights and other losses ---------------------------------------------------- */

/* Over what an importance weight is formed. */
enum gradus_level {
  GRADUS_LEVEL_TOKEN = 0,
  GRADUS_LEVEL_SEQUENCE_SUM = 1,
  GRADUS_LEVEL_SEQUENCE_MEAN = 2,
  GRADUS_LEVEL_SEQUENCE_MAX = 3
};
/* What becomes of a weight outside [min, max]: the nearer bound; 0; or every weight of a sequence is 0 where the
 * geometric mean of its weights is outside. */
enum gradus_bound { GRADUS_TRUNCATE = 0, GRADUS_MASK = 1, GRADUS_SEQUENCE_MASK = 2 };

/* Counts and moments of the weights, before they are truncated. */
typedef struct gradus_offpolicy_stats {
  int64_t tokens, dropped, nan_sampler;
  double min, max, mean, ess, chi2;
} gradus_offpolicy_stats;

/* Importance weights exp(old_logp - sampler_logp), truncated, masked or rejected. */
typedef struct gradus_offpolicy_weight_args {
  size_t struct_size;
  gradus_tensor old_logp;        /* in R [T] */
  gradus_tensor sampler_logp;    /* in R [T] */
  gradus_tensor mask;            /* in u8 [T], optional */
  gradus_tensor cu_seqlens;      /* in i64 [B + 1] */
  int32_t level;                 /* gradus_level, default GRADUS_LEVEL_SEQUENCE_SUM; not SEQUENCE_MAX */
  int32_t bound;                 /* gradus_bound, default GRADUS_MASK */
  double min, max;               /* default 0, 3 */
  double clamp;                  /* of a token's difference; default infinity */
  int32_t normalize;             /* 1: divide by the mean over kept tokens */
  int32_t use_reject;            /* 1: reject tokens or sequences by the fields reject_* */
  int32_t reject_by;             /* gradus_kl_estimator, default GRADUS_K1; not KL_ABS */
  int32_t reject_level;          /* gradus_level, default GRADUS_LEVEL_TOKEN */
  double reject_lo, reject_hi;   /* default -infinity, infinity */
  gradus_tensor weight;          /* out R [T] */
  gradus_offpolicy_stats *stats; /* out, may be NULL */
} gradus_offpolicy_weight_args;
GRADUS_API gradus_status gradus_offpolicy_weight(gradus_context ctx, void *stream, const gradus_offpolicy_weight_args *args);

/* loss = weight sum 1/2 max((v - R)^2, (clip(v, old +- clip) - R)^2), with v the value and R the return. */
typedef struct gradus_value_loss_args {
  size_t struct_size;
  gradus_tensor value;     /* in R [T] */
  gradus_tensor returns;   /* in R [T] */
  gradus_tensor old_value; /* in R [T], optional */
  gradus_tensor mask;      /* in u8 [T], optional */
  double clip;             /* default infinity: off */
  double weight;           /* default 1 */
  double *loss;            /* out */
  gradus_tensor dvalue;    /* out R [T] */
} gradus_value_loss_args;
GRADUS_API gradus_status gradus_value_loss(gradus_context ctx, void *stream, const gradus_value_loss_args *args);

/* Losses of preferred and rejected sequences, with the settings that they read. */
enum gradus_preference_kind {
  GRADUS_DPO = 0, /* label_smoothing: cDPO; margin: SimPO */
  GRADUS_HINGE = 1,
  GRADUS_IPO = 2,
  GRADUS_ROBUST = 3,
  GRADUS_EXO = 4,
  GRADUS_NCA = 5,
  GRADUS_BCO = 6, /* reference_point */
  GRADUS_SPPO_HARD = 7,
  GRADUS_APO_ZERO = 8,
  GRADUS_APO_DOWN = 9,
  GRADUS_DISCOPOP = 10, /* temperature */
  GRADUS_ORPO = 11
};
/* Which f-divergence turns a log-ratio into a score. */
enum gradus_preference_score {
  GRADUS_SCORE_REVERSE_KL = 0,
  GRADUS_SCORE_FORWARD_KL = 1,
  GRADUS_SCORE_JENSEN_SHANNON = 2,
  GRADUS_SCORE_ALPHA = 3
};

/* Losses over pairs of a chosen and a rejected sequence: DPO and its family. */
typedef struct gradus_preference_loss_args {
  size_t struct_size;
  gradus_tensor logp_chosen, logp_rejected;           /* in R [P]: sums of token log-probs */
  gradus_tensor reference_chosen, reference_rejected; /* in R [P], optional: both or neither */
  gradus_tensor length_chosen, length_rejected;       /* in i64 [P], optional: divide the sums */
  int32_t kind;                                       /* gradus_preference_kind, default GRADUS_DPO */
  int32_t score;                                      /* gradus_preference_score, default GRADUS_SCORE_REVERSE_KL */
  double beta;                                        /* default 0.1 */
  double label_smoothing, margin, reference_point;
  double temperature;                           /* default 0.05 */
  double alpha;                                 /* for GRADUS_SCORE_ALPHA; default 1 */
  double likelihood;                            /* weight of -logp_chosen */
  gradus_tensor weight;                         /* in R [P], optional: 1/P if absent */
  gradus_tensor loss;                           /* out R [P] */
  gradus_tensor dlogp_chosen, dlogp_rejected;   /* out R [P] */
  gradus_tensor reward_chosen, reward_rejected; /* out R [P], optional: both or neither */
  gradus_tensor total;                          /* out f64 [1], optional */
} gradus_preference_loss_args;
GRADUS_API gradus_status gradus_preference_loss(gradus_context ctx, void *stream, const gradus_preference_loss_args *args);

/* KTO: a loss over single sequences, each of which is desirable or undesirable. */
typedef struct gradus_kto_loss_args {
  size_t struct_size;
  gradus_tensor logp, reference;               /* in R [B] */
  gradus_tensor desirable;                     /* in u8 [B] */
  double beta;                                 /* default 0.1 */
  double kl;                                   /* the reference point z0 >= 0 */
  double desirable_weight, undesirable_weight; /* default 1 */
  gradus_tensor weight;                        /* in R [B], optional: 1/B if absent */
  gradus_tensor loss, dlogp;                   /* out R [B] */
  gradus_tensor total;                         /* out f64 [1], optional */
} gradus_kto_loss_args;
GRADUS_API gradus_status gradus_kto_loss(gradus_context ctx, void *stream, const gradus_kto_loss_args *args);

/* CoPG: squared differences of regularized rewards, over all pairs within a group. */
typedef struct gradus_copg_loss_args {
  size_t struct_size;
  gradus_tensor logp;      /* in R [B] */
  gradus_tensor reference; /* in R [B], optional */
  gradus_tensor reward;    /* in R [B] */
  gradus_tensor offsets;   /* in i64 [G + 1] */
  double beta;             /* default 0.1 */
  gradus_tensor weight;    /* in R [G], optional: 1/G if absent */
  gradus_tensor loss;      /* out R [G] */
  gradus_tensor dlogp;     /* out R [B] */
  gradus_tensor total;     /* out f64 [1], optional */
} gradus_copg_loss_args;
GRADUS_API gradus_status gradus_copg_loss(gradus_context ctx, void *stream, const gradus_copg_loss_args *args);

/* Marginal likelihood of the correct solutions of a group. */
typedef struct gradus_beta_mml_loss_args {
  size_t struct_size;
  gradus_tensor logp;    /* in R [B] */
  gradus_tensor offsets; /* in i64 [G + 1] */
  double beta;           /* default 1 */
  gradus_tensor weight;  /* in R [G], optional */
  gradus_tensor loss;    /* out R [G] */
  gradus_tensor dlogp;   /* out R [B] */
  gradus_tensor total;   /* out f64 [1], optional */
} gradus_beta_mml_loss_args;
GRADUS_API gradus_status gradus_beta_mml_loss(gradus_context ctx, void *stream, const gradus_beta_mml_loss_args *args);

/* InfoNCE in both directions: logp[i, j] of completion j under context i, pairs on the diagonal (SAMI). */
typedef struct gradus_info_nce_loss_args {
  size_t struct_size;
  gradus_tensor logp;   /* in R [n, n] */
  gradus_tensor length; /* in i64 [n], optional */
  gradus_tensor loss;   /* out R [1] */
  gradus_tensor dlogp;  /* out R [n, n] */
} gradus_info_nce_loss_args;
GRADUS_API gradus_status gradus_info_nce_loss(gradus_context ctx, void *stream, const gradus_info_nce_loss_args *args);

/* PRDP: regression of reward differences on log-ratio differences, over pairs of sequences. */
typedef struct gradus_prdp_loss_args {
  size_t struct_size;
  gradus_tensor logp, old, reference; /* in R [T] */
  gradus_tensor mask;                 /* in u8 [T], optional */
  gradus_tensor cu_seqlens;           /* in i64 [B + 1] */
  gradus_tensor reward;               /* in R [B] */
  gradus_tensor pairs;                /* in i64 [P, 2] */
  double beta;                        /* default 0.1 */
  double clip;                        /* default infinity */
  gradus_tensor weight;               /* in R [P], optional */
  gradus_tensor loss;                 /* out R [P] */
  gradus_tensor dlogp;                /* out R [T] */
  gradus_tensor total;                /* out f64 [1], optional */
} gradus_prdp_loss_args;
GRADUS_API gradus_status gradus_prdp_loss(gradus_context ctx, void *stream, const gradus_prdp_loss_args *args);

/* ---- reductions ----------------------------------------------------------------------------- */

/* Reductions over the tokens of a sequence. */
enum gradus_reduction { GRADUS_SUM = 0, GRADUS_MEAN = 1, GRADUS_MAX = 2, GRADUS_MIN = 3 };

/* One number per sequence: the sum, mean, maximum or minimum over its tokens. */
typedef struct gradus_seq_reduce_args {
  size_t struct_size;
  gradus_tensor x;          /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  int32_t reduction;        /* gradus_reduction, default GRADUS_SUM */
  int32_t reserved;
  gradus_tensor y;     /* out R [B] */
  gradus_tensor count; /* out i64 [B], optional */
} gradus_seq_reduce_args;
GRADUS_API gradus_status gradus_seq_reduce(gradus_context ctx, void *stream, const gradus_seq_reduce_args *args);

/* Writes one number per sequence to each of its tokens. */
typedef struct gradus_seq_broadcast_args {
  size_t struct_size;
  gradus_tensor x;          /* in R [B] */
  gradus_tensor mask;       /* in u8 [T], optional: tokens with 0 get 0 */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  int32_t mean;             /* 1: divide by the number of tokens that count */
  int32_t reserved;
  gradus_tensor y; /* out R [T] */
} gradus_seq_broadcast_args;
GRADUS_API gradus_status gradus_seq_broadcast(gradus_context ctx, void *stream, const gradus_seq_broadcast_args *args);

/* How a quantile between two values is chosen. */
enum gradus_quantile_method { GRADUS_LINEAR = 0, GRADUS_LOWER = 1, GRADUS_HIGHER = 2 };

/* The q-quantile over the tokens of the mask: of all of them, or of each sequence. */
typedef struct gradus_quantile_args {
  size_t struct_size;
  gradus_tensor x;          /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional */
  gradus_tensor cu_seqlens; /* in i64 [B + 1], optional: one quantile per sequence */
  double q;                 /* in [0, 1]; default 0.5 */
  int32_t method;           /* gradus_quantile_method, default GRADUS_LINEAR */
  int32_t skip_nan;         /* 0: NaN is an error; 1: NaN is skipped */
  gradus_tensor y;          /* out R [1] or [B] */
} gradus_quantile_args;
GRADUS_API gradus_status gradus_quantile(gradus_context ctx, void *stream, const gradus_quantile_args *args);

/* Marks the given fraction of tokens, those with the largest x. */
typedef struct gradus_top_fraction_args {
  size_t struct_size;
  gradus_tensor x;         /* in R [T] */
  gradus_tensor class_ids; /* in u8 [T], optional: only tokens of class `ranked` are compared */
  int32_t ranked;
  int32_t others;           /* 0 or 1: what tokens of other classes get */
  gradus_tensor cu_seqlens; /* in i64 [B + 1], optional */
  double fraction;          /* in [0, 1]; default 1 */
  gradus_tensor keep;       /* out u8 [T] */
  gradus_tensor threshold;  /* out R [1] or [B], optional */
} gradus_top_fraction_args;
GRADUS_API gradus_status gradus_top_fraction(gradus_context ctx, void *stream, const gradus_top_fraction_args *args);

#endif
