/* Ops on rows of logits over the vocabulary. Included by gradus.h. */
#ifndef GRADUS_VOCABULARY_H
#define GRADUS_VOCABULARY_H

/* A target or id that is ignored: every output of its row or entry is 0, and it has no gradient. */
#define GRADUS_IGNORE (-100)

/* The ops compute with z = softcap(scale x) / temperature, where x are the stored logits. */
typedef struct gradus_logit_transform {
  double temperature; /* > 0; default 1 */
  double scale;       /* finite, not 0; default 1 */
  double softcap;     /* cap > 0 of cap tanh(. / cap); default infinity: off */
} gradus_logit_transform;

/* logp[t] = z[t, target] - lse[t] with lse = log sum exp z. One pass over the logits. */
typedef struct gradus_logprob_args {
  size_t struct_size;
  gradus_tensor logits;  /* in F [T, V_alloc] */
  gradus_tensor targets; /* in i32 [T], 0..vocab or GRADUS_IGNORE */
  int64_t vocab;         /* V: columns in use; padding columns from V on are never read */
  gradus_logit_transform transform;
  gradus_tensor logp;       /* out f32 [T] */
  gradus_tensor lse;        /* out f32 [T], optional */
  gradus_tensor entropy;    /* out f32 [T], optional: in nats */
  gradus_tensor log_sum_sq; /* out f32 [T], optional: log sum p^2 */
  gradus_tensor top1;       /* out u8 [T], optional: 1 where the target is the first maximum of its row */
} gradus_logprob_args;
GRADUS_API gradus_status gradus_logprob(gradus_context ctx, void *stream, const gradus_logprob_args *args);

/* dlogits = d(sum dlogp logp + dentropy entropy + dlse lse) / dlogits. */
typedef struct gradus_logprob_bwd_args {
  size_t struct_size;
  gradus_tensor logits;  /* in F [T, V_alloc] */
  gradus_tensor targets; /* in i32 [T] */
  int64_t vocab;
  gradus_logit_transform transform;
  gradus_tensor dlogp;    /* in f32 [T] */
  gradus_tensor dentropy; /* in f32 [T], optional */
  gradus_tensor dlse;     /* in f32 [T], optional */
  gradus_tensor dlogits;  /* out F [T, V_alloc]; 0 from column V on */
} gradus_logprob_bwd_args;
GRADUS_API gradus_status gradus_logprob_bwd(gradus_context ctx, void *stream, const gradus_logprob_bwd_args *args);

/* logprob and logprob_bwd in one call and in place, for a dlogp that is known before. */
typedef struct gradus_logprob_fused_args {
  size_t struct_size;
  gradus_tensor logits;  /* inout F [T, V_alloc]: logits, then their gradient */
  gradus_tensor targets; /* in i32 [T] */
  int64_t vocab;
  gradus_logit_transform transform;
  gradus_tensor dlogp;   /* in f32 [T] */
  gradus_tensor logp;    /* out f32 [T] */
  gradus_tensor entropy; /* out f32 [T], optional */
} gradus_logprob_fused_args;
GRADUS_API gradus_status gradus_logprob_fused(gradus_context ctx, void *stream, const gradus_logprob_fused_args *args);

/* logprob of the logits hidden head^T, which are never stored. Give exactly one of head and head_nf4. */
typedef struct gradus_linear_logprob_args {
  size_t struct_size;
  gradus_tensor hidden;       /* in F [T, H] */
  gradus_tensor head;         /* in F [V_alloc, H] */
  const gradus_nf4 *head_nf4; /* or in [V_alloc, H] */
  const gradus_lora *lora;    /* lora_count adapters of the head; may be NULL */
  int64_t lora_count;
  gradus_tensor targets; /* in i32 [T] */
  int64_t vocab;
  gradus_logit_transform transform;
  gradus_tensor logp;    /* out f32 [T] */
  gradus_tensor lse;     /* out f32 [T], optional */
  gradus_tensor entropy; /* out f32 [T], optional */
  gradus_tensor score;   /* out F [T, H], optional: dlogp/dhidden, for the backward pass of a frozen head */
} gradus_linear_logprob_args;
GRADUS_API gradus_status gradus_linear_logprob(gradus_context ctx, void *stream, const gradus_linear_logprob_args *args);

/* Gradients of sum dlogp logp + dentropy entropy by hidden and the head. Computes the logits again. */
typedef struct gradus_linear_logprob_bwd_args {
  size_t struct_size;
  gradus_tensor hidden;       /* in F [T, H] */
  gradus_tensor head;         /* in F [V_alloc, H] */
  const gradus_nf4 *head_nf4; /* or in [V_alloc, H] */
  const gradus_lora *lora;    /* lora_count adapters; may be NULL */
  int64_t lora_count;
  gradus_tensor targets; /* in i32 [T] */
  int64_t vocab;
  gradus_logit_transform transform;
  gradus_tensor dlogp;    /* in f32 [T] */
  gradus_tensor dentropy; /* in f32 [T], optional */
  gradus_tensor dhidden;  /* out F [T, H] */
  gradus_tensor dweight;  /* inout f32 [V_alloc, H], optional, dense heads: added to */
} gradus_linear_logprob_bwd_args;
GRADUS_API gradus_status gradus_linear_logprob_bwd(gradus_context ctx, void *stream, const gradus_linear_logprob_bwd_args *args);

/* dhidden = dlogp score: the backward pass of a frozen head. */
typedef struct gradus_score_scale_args {
  size_t struct_size;
  gradus_tensor score;   /* in F [T, H] */
  gradus_tensor dlogp;   /* in f32 [T] */
  gradus_tensor dhidden; /* out F [T, H] */
} gradus_score_scale_args;
GRADUS_API gradus_status gradus_score_scale(gradus_context ctx, void *stream, const gradus_score_scale_args *args);

/* Log-probs of K ids per row. */
typedef struct gradus_gather_k_args {
  size_t struct_size;
  gradus_tensor logits; /* in F [T, V_alloc] */
  gradus_tensor ids;    /* in i32 [T, K], different within a row, or GRADUS_IGNORE */
  int64_t vocab;
  gradus_logit_transform transform;
  int32_t renormalize; /* 1: normalize over the ids of the row only */
  int32_t reserved;
  gradus_tensor logp; /* out f32 [T, K] */
  gradus_tensor mass; /* out f32 [T], optional: probability of all ids of the row together */
} gradus_gather_k_args;
GRADUS_API gradus_status gradus_gather_k(gradus_context ctx, void *stream, const gradus_gather_k_args *args);

/* dlogits = d(sum dlogp logp) / dlogits. */
typedef struct gradus_gather_k_bwd_args {
  size_t struct_size;
  gradus_tensor logits; /* in F [T, V_alloc] */
  gradus_tensor ids;    /* in i32 [T, K] */
  int64_t vocab;
  gradus_logit_transform transform;
  int32_t renormalize;
  int32_t reserved;
  gradus_tensor dlogp;   /* in f32 [T, K] */
  gradus_tensor dlogits; /* out F [T, V_alloc] */
} gradus_gather_k_bwd_args;
GRADUS_API gradus_status gradus_gather_k_bwd(gradus_context ctx, void *stream, const gradus_gather_k_bwd_args *args);

/* The columns of the K largest logits of each row, rising; of equal ones the lower. */
typedef struct gradus_top_k_args {
  size_t struct_size;
  gradus_tensor logits; /* in F [T, V_alloc] */
  int64_t vocab;
  gradus_tensor ids; /* out i32 [T, K], 1 <= K <= vocab */
} gradus_top_k_args;
GRADUS_API gradus_status gradus_top_k(gradus_context ctx, void *stream, const gradus_top_k_args *args);

/* Divergence of policy q and reference p. */
enum gradus_divergence {
  GRADUS_FORWARD_KL = 0,     /* KL(p|q) */
  GRADUS_REVERSE_KL = 1,     /* KL(q|p) */
  GRADUS_JSD = 2,            /* beta KL(p|m) + (1 - beta) KL(q|m), m = beta p + (1 - beta) q */
  GRADUS_TOTAL_VARIATION = 3 /* 1/2 sum |p - q| */
};

/* Divergence of two distributions over the whole vocabulary: one value per row. */
typedef struct gradus_vocab_kl_args {
  size_t struct_size;
  gradus_tensor policy;    /* in F [T, V_alloc] logits */
  gradus_tensor reference; /* in F [T, V_alloc] logits */
  gradus_tensor guidance;  /* in F [T, V_alloc], optional: logits u; the reference is u + gamma (reference - u) */
  double gamma;            /* default 1 */
  int64_t vocab;
  gradus_logit_transform transform; /* applies to all three */
  int32_t divergence;               /* gradus_divergence, default GRADUS_FORWARD_KL */
  int32_t reserved;
  double beta;         /* for GRADUS_JSD, in (0, 1); default 0.5 */
  gradus_tensor value; /* out f32 [T] */
} gradus_vocab_kl_args;
GRADUS_API gradus_status gradus_vocab_kl(gradus_context ctx, void *stream, const gradus_vocab_kl_args *args);

/* dpolicy = d(sum dvalue value) / dpolicy. */
typedef struct gradus_vocab_kl_bwd_args {
  size_t struct_size;
  gradus_tensor policy;    /* in F [T, V_alloc] */
  gradus_tensor reference; /* in F [T, V_alloc] */
  gradus_tensor guidance;  /* in F [T, V_alloc], optional */
  double gamma;            /* default 1 */
  int64_t vocab;
  gradus_logit_transform transform;
  int32_t divergence; /* gradus_divergence, default GRADUS_FORWARD_KL */
  int32_t reserved;
  double beta;           /* for GRADUS_JSD, in (0, 1); default 0.5 */
  gradus_tensor dvalue;  /* in f32 [T] */
  gradus_tensor dpolicy; /* out F [T, V_alloc]; 0 from column V on */
} gradus_vocab_kl_bwd_args;
GRADUS_API gradus_status gradus_vocab_kl_bwd(gradus_context ctx, void *stream, const gradus_vocab_kl_bwd_args *args);

/* Draws one token per row from one uniform number: top-k, then top-p, then min-p. logp has the bits of logprob. */
typedef struct gradus_sample_args {
  size_t struct_size;
  gradus_tensor logits; /* in F [T, V_alloc] */
  int64_t vocab;
  gradus_logit_transform transform; /* its temperature is the sampling temperature */
  int64_t top_k;                    /* default 0: all tokens */
  double top_p;                     /* in (0, 1]; default 1 */
  double min_p;                     /* in [0, 1]; default 0 */
  int32_t greedy;                   /* 1: take the most likely token */
  int32_t reserved;
  gradus_tensor uniform;   /* in f64 [T], in [0, 1) */
  gradus_tensor token;     /* out i32 [T] */
  gradus_tensor logp;      /* out f32 [T], over the full vocabulary */
  gradus_tensor logp_kept; /* out f32 [T], optional: over the kept tokens */
  gradus_tensor kept_mass; /* out f32 [T], optional */
} gradus_sample_args;
GRADUS_API gradus_status gradus_sample(gradus_context ctx, void *stream, const gradus_sample_args *args);

#endif
