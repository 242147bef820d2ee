/* Losses, advantages and statistics on tokens, sequences and groups. Included by gradus.h. */
#ifndef GRADUS_POLICY_H
#define GRADUS_POLICY_H

/* ---- policy_loss ---------------------------------------------------------------------------- */

enum { /* loss; r is the ratio, d the log-ratio, A the advantage, l the log-prob, lo hi cap below */
  GRADUS_CROSS_ENTROPY = 0, /* -l; advantages are not read */
  GRADUS_REINFORCE = 1,     /* -A l */
  GRADUS_PPO_CLIP = 2,      /* -min(min(r, dual) A, clip(r, lo, hi) A); dual for A < 0 only */
  GRADUS_CISPO = 3,         /* -sg[clip(r, lo, hi)] A l */
  GRADUS_SAPO = 4,          /* -A 4/tau sigmoid(tau (r - 1)), tau by the sign of A */
  GRADUS_VESPO = 5,         /* -sg[phi] A l, log phi = lambda + kappa log w - lambda w */
  GRADUS_GMPO = 6,          /* geometric mean of clipped ratios; lo and hi bound the log-ratio to [-lo, hi] */
  GRADUS_DRO = 7,           /* -(A l - beta/2 d^2) */
  GRADUS_DPPO_TV = 8,       /* -A sg[min(r, cap)] l where |p - p_old| stays within lo, hi */
  GRADUS_DPPO_KL = 9,       /* the same with the binary KL */
  GRADUS_PRIME = 10,        /* -keep A r + kappa d^2 */
  GRADUS_KL_COV = 11        /* -r A + kappa |d| on the tokens of `selected` */
};
enum { /* ratio */
  GRADUS_RATIO_TOKEN = 0,
  GRADUS_RATIO_SEQUENCE_MEAN = 1,       /* GSPO: gradient through all tokens */
  GRADUS_RATIO_SEQUENCE_MEAN_TOKEN = 2, /* GSPO-token */
  GRADUS_RATIO_SEQUENCE_SUM = 3         /* RLOO */
};
enum { GRADUS_DENOMINATOR_OLD = 0, GRADUS_DENOMINATOR_SAMPLER = 1 }; /* denominator */
enum { GRADUS_CENTER_ONE = 0, GRADUS_CENTER_OLD_OVER_SAMPLER = 1 };  /* center */
enum { /* kl_estimator, estimator, by; k = l_ref - l */
  GRADUS_K1 = 0,
  GRADUS_K2 = 1,
  GRADUS_K3 = 2,
  GRADUS_KL_ABS = 3
};
enum { GRADUS_KL_GRADIENT_SAME = 0, GRADUS_KL_GRADIENT_K2 = 1, GRADUS_KL_GRADIENT_NONE = 2 };
enum { GRADUS_KL_WEIGHT_ONE = 0, GRADUS_KL_WEIGHT_RATIO = 1, GRADUS_KL_WEIGHT_RATIO_DETACHED = 2 };
enum { GRADUS_PER_SEQUENCE = 0, GRADUS_PER_TOKEN = 1 }; /* advantage_level */

typedef struct gradus_policy_settings {
  int32_t loss;        /* default GRADUS_PPO_CLIP */
  int32_t ratio;       /* default GRADUS_RATIO_TOKEN */
  int32_t denominator; /* default GRADUS_DENOMINATOR_OLD */
  int32_t center;      /* of the clip interval; default GRADUS_CENTER_ONE */
  double lo, hi;       /* PPO_CLIP, CISPO: absolute bounds, default 0.8 and 1.2; others as above */
  double dual;         /* PPO_CLIP; default infinity: off */
  double cap;          /* DPPO_TV, DPPO_KL; default infinity */
  double kappa;        /* PRIME, KL_COV */
  double dro_beta;     /* DRO */
  double tau_pos, tau_neg;                              /* SAPO */
  double kappa_pos, lambda_pos, kappa_neg, lambda_neg;  /* VESPO */
  double log_ratio_clamp;   /* of a token, before exp; default infinity */
  double seq_log_ratio_max; /* of a sequence; default infinity */
  int32_t use_kl;           /* 1: with the KL penalty that the fields kl_* describe */
  int32_t kl_estimator;     /* default GRADUS_K3 */
  int32_t kl_gradient;      /* default GRADUS_KL_GRADIENT_SAME */
  int32_t kl_weight;        /* default GRADUS_KL_WEIGHT_ONE */
  double kl_coef;           /* beta >= 0 */
  double kl_clamp_in;       /* of k before exp; default infinity */
  double kl_clamp_out;      /* of the value; default infinity */
  double kl_mix;            /* share of ref_logp, the rest is ref2_logp's; default 1 */
  double entropy_coef;      /* bonus; >= 0 */
  double opsm;              /* off-policy sequence masking; default infinity: off */
  double class_weight[8];   /* of each token class; default 1 */
  int32_t class_self_ratio[8]; /* 1: the class's ratio is 1, with its gradient */
} gradus_policy_settings;

enum { /* aggregation: how seq_weight is formed from lengths N_i of B sequences */
  GRADUS_TOKEN_MEAN = 0,               /* 1 / sum N */
  GRADUS_TOKEN_MEAN_OF = 1,            /* 1 / value */
  GRADUS_SEQUENCE_MEAN_TOKEN_MEAN = 2, /* 1 / (B N_i) */
  GRADUS_SEQUENCE_MEAN_TOKEN_SUM = 3,  /* 1 / B */
  GRADUS_CONSTANT = 4,                 /* 1 / (B value) */
  GRADUS_TOKEN_SUM = 5                 /* 1 */
};

/* Settings and aggregation by name: "grpo", "deepseekmath_grpo", "dr_grpo", "dapo", "gspo", "cispo", "reft", "relift",
 * "trl/LOSS_TYPE", "verl/LOSS". `length` is the longest completion, which some divide by: > 0 for those, and
 * not looked at for the others. */
GRADUS_API gradus_status gradus_policy_preset(const char *name, double length, gradus_policy_settings *settings,
                                              int32_t *aggregation, int32_t *count_empty, double *value);
/* Weights of `count` sequences with `lengths` scored tokens. `value`: tokens of TOKEN_MEAN_OF, length of
 * CONSTANT. count_empty: whether sequences without a scored token count in B (TRL 1, verl 0). */
GRADUS_API gradus_status gradus_seq_weights(int32_t aggregation, int32_t count_empty, double value,
                                            const int64_t *lengths, int64_t count, double *weights);

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
  gradus_tensor old_logp;     /* in R [T], optional: without, every ratio is 1, with its gradient */
  gradus_tensor sampler_logp; /* in R [T], optional */
  gradus_tensor ref_logp;     /* in R [T], optional: for the KL */
  gradus_tensor ref2_logp;    /* in R [T], optional: for kl_mix < 1 */
  gradus_tensor advantage;    /* in R [B] or [T], by advantage_level */
  int32_t advantage_level;    /* default GRADUS_PER_SEQUENCE */
  int32_t reserved;
  gradus_tensor mask;         /* in u8 [T], optional: 0 is not there, never read */
  gradus_tensor class_ids;    /* in u8 [T], optional: below 8 */
  gradus_tensor token_weight; /* in R [T], optional: detached */
  gradus_tensor selected;     /* in u8 [T], optional: for KL_COV */
  gradus_tensor is_weight;    /* in R [T], optional: importance weights, detached */
  gradus_tensor entropy;      /* in R [T], optional */
  gradus_tensor cu_seqlens;   /* in i64 [B + 1] */
  gradus_tensor seq_weight;   /* in R [B], see gradus_seq_weights */
  gradus_policy_settings settings;
  double *loss;               /* out */
  gradus_tensor dlogp;        /* out R [T]; 0 where masked */
  gradus_tensor dentropy;     /* out R [T], optional */
  gradus_tensor token_loss;   /* out R [T], optional: without the sequence's weight */
  gradus_policy_stats *stats; /* out, may be NULL */
} gradus_policy_loss_args;
GRADUS_API gradus_status gradus_policy_loss(gradus_context ctx, void *stream, const gradus_policy_loss_args *args);

/* ---- advantages ----------------------------------------------------------------------------- */

enum { /* baseline */
  GRADUS_BASELINE_NONE = 0,
  GRADUS_BASELINE_MEAN = 1,
  GRADUS_BASELINE_LEAVE_ONE_OUT = 2,
  GRADUS_BASELINE_LENGTH_WEIGHTED = 3, /* OPO; needs length */
  GRADUS_BASELINE_MAX2 = 4             /* pass@k: the best gets best - second best */
};
enum { /* scale */
  GRADUS_SCALE_NONE = 0,
  GRADUS_SCALE_GROUP_STD = 1,
  GRADUS_SCALE_BATCH_STD = 2,
  GRADUS_SCALE_LOO_STD = 3,
  GRADUS_SCALE_NONZERO_SHARE = 4 /* GPG */
};
enum { GRADUS_ADD_TO_STD = 0, GRADUS_ADD_TO_VARIANCE = 1, GRADUS_FLOOR_VARIANCE = 2 }; /* eps_form */
enum { GRADUS_SINGLE_ZERO = 0, GRADUS_SINGLE_RAW = 1 };                                 /* on_single */

typedef struct gradus_group_stats {
  int64_t size, scorable;
  double mean, std;
  int32_t degenerate; /* 1: compares nothing */
  int32_t reserved;
} gradus_group_stats;

/* (R - baseline) / scale over ragged groups. NaN rewards abstain: advantage 0. */
typedef struct gradus_group_advantage_args {
  size_t struct_size;
  gradus_tensor reward;  /* in R [B], groups one after another */
  gradus_tensor offsets; /* in i64 [G + 1] */
  gradus_tensor length;  /* in i64 [B], optional */
  int32_t baseline;      /* default MEAN */
  int32_t scale;         /* default GROUP_STD */
  int32_t ddof;          /* 0 or 1; default 1 */
  int32_t eps_form;      /* default ADD_TO_STD */
  double eps;            /* default 1e-4 */
  int32_t on_single;     /* default ZERO */
  int32_t reserved;
  gradus_tensor advantage;    /* out R [B] */
  gradus_group_stats *groups; /* out [G], may be NULL */
} gradus_group_advantage_args;
GRADUS_API gradus_status gradus_group_advantage(gradus_context ctx, void *stream, const gradus_group_advantage_args *args);

/* Generalized advantage estimates of token rewards and values, and returns advantage + value. */
typedef struct gradus_gae_args {
  size_t struct_size;
  gradus_tensor reward;     /* in R [T] */
  gradus_tensor value;      /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional: other tokens are skipped and get 0 */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  gradus_tensor bootstrap;  /* in R [B], optional: value after a truncated end */
  double gamma, gae_lambda; /* in [0, 1]; default 1, 0.95 */
  gradus_tensor advantage;  /* out R [T] */
  gradus_tensor returns;    /* out R [T], optional */
} gradus_gae_args;
GRADUS_API gradus_status gradus_gae(gradus_context ctx, void *stream, const gradus_gae_args *args);

/* Sums of a sequence's rewards from each token on, discounted by gamma. */
typedef struct gradus_discounted_return_args {
  size_t struct_size;
  gradus_tensor reward;     /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  double gamma;             /* in [0, 1]; default 1 */
  int32_t reset;            /* a token outside the mask: 0 is passed over, 1 starts anew (verl) */
  int32_t reserved;
  gradus_tensor baseline; /* in R [B], optional: subtracted (ReMax) */
  gradus_tensor returns;  /* out R [T] */
} gradus_discounted_return_args;
GRADUS_API gradus_status gradus_discounted_return(gradus_context ctx, void *stream, const gradus_discounted_return_args *args);

typedef struct gradus_whiten_stats {
  int64_t count;
  double mean, std;
} gradus_whiten_stats;
/* y = (x - mean) / std over the tokens of the mask. */
typedef struct gradus_whiten_args {
  size_t struct_size;
  gradus_tensor x;     /* in R [T] */
  gradus_tensor mask;  /* in u8 [T], optional */
  double eps;          /* default 1e-8 */
  double count_eps;    /* added to counts; default 0, verl 1e-8 */
  int32_t ddof;        /* default 1 */
  int32_t eps_form;    /* default ADD_TO_VARIANCE */
  int32_t shift_mean;  /* default 1; 0 adds the mean back */
  int32_t reserved;
  gradus_tensor y;            /* out R [T] */
  gradus_whiten_stats *stats; /* out, may be NULL */
} gradus_whiten_args;
GRADUS_API gradus_status gradus_whiten(gradus_context ctx, void *stream, const gradus_whiten_args *args);

/* Token rewards: -beta KL a token, the sequence's score on its last action. */
typedef struct gradus_kl_reward_args {
  size_t struct_size;
  gradus_tensor score;      /* in R [B] */
  gradus_tensor logp;       /* in R [T] */
  gradus_tensor reference;  /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  double beta;
  double clamp;      /* of |logp - reference|; default infinity */
  int32_t estimator; /* default GRADUS_K1 */
  int32_t reserved;
  gradus_tensor reward; /* out R [T] */
} gradus_kl_reward_args;
GRADUS_API gradus_status gradus_kl_reward(gradus_context ctx, void *stream, const gradus_kl_reward_args *args);

/* ---- weights and other losses --------------------------------------------------------------- */

enum { GRADUS_LEVEL_TOKEN = 0, GRADUS_LEVEL_SEQUENCE_SUM = 1, GRADUS_LEVEL_SEQUENCE_MEAN = 2, GRADUS_LEVEL_SEQUENCE_MAX = 3 };
enum { GRADUS_TRUNCATE = 0, GRADUS_MASK = 1, GRADUS_SEQUENCE_MASK = 2 }; /* bound */

typedef struct gradus_offpolicy_stats {
  int64_t tokens, dropped, nan_sampler;
  double min, max, mean, ess, chi2;
} gradus_offpolicy_stats;

/* Importance weights exp(old - sampler), truncated, masked or rejected. */
typedef struct gradus_offpolicy_weight_args {
  size_t struct_size;
  gradus_tensor old_logp;     /* in R [T] */
  gradus_tensor sampler_logp; /* in R [T] */
  gradus_tensor mask;         /* in u8 [T], optional */
  gradus_tensor cu_seqlens;   /* in i64 [B + 1] */
  int32_t level;              /* default SEQUENCE_SUM; not SEQUENCE_MAX */
  int32_t bound;              /* default MASK */
  double min, max;            /* default 0, 3 */
  double clamp;               /* of a token's difference; default infinity */
  int32_t normalize;          /* 1: divide by the mean over kept tokens */
  int32_t use_reject;         /* 1: with the fields reject_* */
  int32_t reject_by;          /* GRADUS_K1, K2, K3 */
  int32_t reject_level;       /* a token or its sequence */
  double reject_lo, reject_hi;
  gradus_tensor weight;          /* out R [T] */
  gradus_offpolicy_stats *stats; /* out, may be NULL */
} gradus_offpolicy_weight_args;
GRADUS_API gradus_status gradus_offpolicy_weight(gradus_context ctx, void *stream, const gradus_offpolicy_weight_args *args);

/* weight sum 1/2 max((v - R)^2, (clip(v, old +- clip) - R)^2). */
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

enum { /* kind of preference loss */
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
enum { GRADUS_SCORE_REVERSE_KL = 0, GRADUS_SCORE_FORWARD_KL = 1, GRADUS_SCORE_JENSEN_SHANNON = 2, GRADUS_SCORE_ALPHA = 3 };

/* Losses of pairs of sequences: DPO and its family. */
typedef struct gradus_preference_loss_args {
  size_t struct_size;
  gradus_tensor logp_chosen, logp_rejected;           /* in R [P]: sums of token log-probs */
  gradus_tensor reference_chosen, reference_rejected; /* in R [P], optional: both or none */
  gradus_tensor length_chosen, length_rejected;       /* in i64 [P], optional: divide the sums */
  int32_t kind;          /* default GRADUS_DPO */
  int32_t score;         /* default SCORE_REVERSE_KL */
  double beta;           /* default 0.1 */
  double label_smoothing, margin, reference_point;
  double temperature;    /* default 0.05 */
  double alpha;          /* of SCORE_ALPHA; default 1 */
  double likelihood;     /* weight of -logp_chosen */
  gradus_tensor weight;  /* in R [P], optional: 1/P without */
  gradus_tensor loss;    /* out R [P] */
  gradus_tensor dlogp_chosen, dlogp_rejected;   /* out R [P] */
  gradus_tensor reward_chosen, reward_rejected; /* out R [P], optional: both or none */
  gradus_tensor total;   /* out f64 [1], optional */
} gradus_preference_loss_args;
GRADUS_API gradus_status gradus_preference_loss(gradus_context ctx, void *stream, const gradus_preference_loss_args *args);

/* KTO: sequences that are desirable or not, without pairs. */
typedef struct gradus_kto_loss_args {
  size_t struct_size;
  gradus_tensor logp, reference; /* in R [B] */
  gradus_tensor desirable;       /* in u8 [B] */
  double beta;                   /* default 0.1 */
  double kl;                     /* z0 >= 0 */
  double desirable_weight, undesirable_weight; /* default 1 */
  gradus_tensor weight;          /* in R [B], optional: 1/B without */
  gradus_tensor loss, dlogp;     /* out R [B] */
  gradus_tensor total;           /* out f64 [1], optional */
} gradus_kto_loss_args;
GRADUS_API gradus_status gradus_kto_loss(gradus_context ctx, void *stream, const gradus_kto_loss_args *args);

/* CoPG: squared differences of regularized rewards over the pairs within a group. */
typedef struct gradus_copg_loss_args {
  size_t struct_size;
  gradus_tensor logp;      /* in R [B] */
  gradus_tensor reference; /* in R [B], optional */
  gradus_tensor reward;    /* in R [B] */
  gradus_tensor offsets;   /* in i64 [G + 1] */
  double beta;             /* default 0.1 */
  gradus_tensor weight;    /* in R [G], optional: 1/G without */
  gradus_tensor loss;      /* out R [G] */
  gradus_tensor dlogp;     /* out R [B] */
  gradus_tensor total;     /* out f64 [1], optional */
} gradus_copg_loss_args;
GRADUS_API gradus_status gradus_copg_loss(gradus_context ctx, void *stream, const gradus_copg_loss_args *args);

/* Marginal likelihood of correct solutions. */
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

/* PRDP: differences of rewards regressed on differences of log-ratios, over pairs of sequences. */
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

enum { GRADUS_SUM = 0, GRADUS_MEAN = 1, GRADUS_MAX = 2, GRADUS_MIN = 3 };

/* One number a sequence: the sum, mean, maximum or minimum over its tokens. */
typedef struct gradus_seq_reduce_args {
  size_t struct_size;
  gradus_tensor x;          /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  int32_t reduction;        /* default GRADUS_SUM */
  int32_t reserved;
  gradus_tensor y;     /* out R [B] */
  gradus_tensor count; /* out i64 [B], optional */
} gradus_seq_reduce_args;
GRADUS_API gradus_status gradus_seq_reduce(gradus_context ctx, void *stream, const gradus_seq_reduce_args *args);

/* One number a sequence, to each of its tokens. */
typedef struct gradus_seq_broadcast_args {
  size_t struct_size;
  gradus_tensor x;          /* in R [B] */
  gradus_tensor mask;       /* in u8 [T], optional: others get 0 */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  int32_t mean;             /* 1: divided by the tokens that count */
  int32_t reserved;
  gradus_tensor y; /* out R [T] */
} gradus_seq_broadcast_args;
GRADUS_API gradus_status gradus_seq_broadcast(gradus_context ctx, void *stream, const gradus_seq_broadcast_args *args);

enum { GRADUS_LINEAR = 0, GRADUS_LOWER = 1, GRADUS_HIGHER = 2 }; /* method */

/* The q-quantile of the tokens of the mask, over all or of each sequence. */
typedef struct gradus_quantile_args {
  size_t struct_size;
  gradus_tensor x;          /* in R [T] */
  gradus_tensor mask;       /* in u8 [T], optional */
  gradus_tensor cu_seqlens; /* in i64 [B + 1], optional: each sequence by itself */
  double q;                 /* in [0, 1]; default 0.5 */
  int32_t method;           /* default GRADUS_LINEAR */
  int32_t skip_nan;         /* 0: refuse NaN */
  gradus_tensor y;          /* out R [1] or [B] */
} gradus_quantile_args;
GRADUS_API gradus_status gradus_quantile(gradus_context ctx, void *stream, const gradus_quantile_args *args);

/* Marks the share of tokens with the largest x. */
typedef struct gradus_top_fraction_args {
  size_t struct_size;
  gradus_tensor x;         /* in R [T] */
  gradus_tensor class_ids; /* in u8 [T], optional: only tokens of class `ranked` are ranked */
  int32_t ranked;
  int32_t others;           /* what tokens of other classes get */
  gradus_tensor cu_seqlens; /* in i64 [B + 1], optional */
  double fraction;          /* in [0, 1]; default 1 */
  gradus_tensor keep;       /* out u8 [T] */
  gradus_tensor threshold;  /* out R [1] or [B], optional */
} gradus_top_fraction_args;
GRADUS_API gradus_status gradus_top_fraction(gradus_context ctx, void *stream, const gradus_top_fraction_args *args);

#endif
