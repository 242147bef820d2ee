/* Rows of logits. Included by gradus.h. */
#ifndef GRADUS_VOCABULARY_H
#define GRADUS_VOCABULARY_H

/* Targets and ids that are left out: 0 in every output of their row or entry, no gradient. */
#define GRADUS_IGNORE (-100)

/* From stored logits x to z = softcap(scale x) / temperature. */
typedef struct gradus_logit_transform {
  double temperature; /* > 0; default 1 */
  double scale;       /* finite, not 0; default 1 */
  double softcap;     /* cap tanh(. / cap), > 0; default infinity: off */
} gradus_logit_transform;

/* logp[t] = z[t, target] - lse[t] with lse = log sum exp z. One pass over the logits. */
typedef struct gradus_logprob_args {
  size_t struct_size;
  gradus_tensor logits;  /* in F [T, V_alloc] */
  gradus_tensor targets; /* in i32 [T], 0..vocab or GRADUS_IGNORE */
  int64_t vocab;         /* V: columns that exist; those behind are never read */
  gradus_logit_transform transform;
  gradus_tensor logp;       /* out f32 [T] */
  gradus_tensor lse;        /* out f32 [T], optional */
  gradus_tensor entropy;    /* out f32 [T], optional: in nats */
  gradus_tensor log_sum_sq; /* out f32 [T], optional: log sum p^2 */
  gradus_tensor top1;       /* out u8 [T], optional: 1 where the target is the row's first maximum */
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

/* logprob and logprob_bwd in place, where dlogp is known beforehand. */
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

/* logprob of hidden head^T without storing the logits. Exactly one of head and head_nf4 is given. */
typedef struct gradus_linear_logprob_args {
  size_t struct_size;
  gradus_tensor hidden;       /* in F [T, H] */
  gradus_tensor head;         /* in F [V_alloc, H] */
  const gradus_nf4 *head_nf4; /* or in [V_alloc, H] */
  const gradus_lora *lora;    /* adapters on the head, lora_count of them; may be NULL */
  int64_t lora_count;
  gradus_tensor targets; /* in i32 [T] */
  int64_t vocab;
  gradus_logit_transform transform;
  gradus_tensor logp;    /* out f32 [T] */
  gradus_tensor lse;     /* out f32 [T], optional */
  gradus_tensor entropy; /* out f32 [T], optional */
  gradus_tensor score;   /* out F [T, H], optional: dlogp/dhidden, all that a frozen head's backward needs */
} gradus_linear_logprob_args;
GRADUS_API gradus_status gradus_linear_logprob(gradus_context ctx, void *stream, const gradus_linear_logprob_args *args);

/* dhidden and dweight, the head's, of sum dlogp logp + dentropy entropy; the logits are formed again. */
typedef struct gradus_linear_logprob_bwd_args {
  size_t struct_size;
  gradus_tensor hidden;       /* in F [T, H] */
  gradus_tensor head;         /* in F [V_alloc, H] */
  const gradus_nf4 *head_nf4; /* or in [V_alloc, H] */
  const gradus_lora *lora;
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

/* Log-probs of K ids a row. */
typedef struct gradus_gather_k_args {
  size_t struct_size;
  gradus_tensor logits; /* in F [T, V_alloc] */
  gradus_tensor ids;    /* in i32 [T, K], different within a row, or GRADUS_IGNORE */
  int64_t vocab;
  gradus_logit_transform transform;
  int32_t renormalize; /* 1: over the row's ids alone */
  int32_t reserved;
  gradus_tensor logp; /* out f32 [T, K] */
  gradus_tensor mass; /* out f32 [T], optional: share of the full vocabulary's mass that the ids hold */
} gradus_gather_k_args;
GRADUS_API gradus_status gradus_gather_k(gradus_context ctx, void *stream, const gradus_gather_k_args *args);

/* dlogits of sum dlogp logp. */
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

enum { /* divergence of policy q and reference p */
  GRADUS_FORWARD_KL = 0,     /* KL(p|q) */
  GRADUS_REVERSE_KL = 1,     /* KL(q|p) */
  GRADUS_JSD = 2,            /* beta KL(p|m) + (1 - beta) KL(q|m), m = beta p + (1 - beta) q */
  GRADUS_TOTAL_VARIATION = 3 /* 1/2 sum |p - q| */
};

/* A divergence over the whole vocabulary, a value a row. */
typedef struct gradus_vocab_kl_args {
  size_t struct_size;
  gradus_tensor policy;    /* in F [T, V_alloc] logits */
  gradus_tensor reference; /* in F [T, V_alloc] logits */
  gradus_tensor guidance;  /* in F [T, V_alloc], optional: logits u; the reference is u + gamma (reference - u) */
  double gamma;            /* default 1 */
  int64_t vocab;
  gradus_logit_transform transform; /* of all three */
  int32_t divergence;
  int32_t reserved;
  double beta;         /* of GRADUS_JSD, in (0, 1); default 0.5 */
  gradus_tensor value; /* out f32 [T] */
} gradus_vocab_kl_args;
GRADUS_API gradus_status gradus_vocab_kl(gradus_context ctx, void *stream, const gradus_vocab_kl_args *args);

/* dpolicy of sum dvalue value. */
typedef struct gradus_vocab_kl_bwd_args {
  size_t struct_size;
  gradus_tensor policy;    /* in F [T, V_alloc] */
  gradus_tensor reference; /* in F [T, V_alloc] */
  gradus_tensor guidance;  /* in F [T, V_alloc], optional */
  double gamma;
  int64_t vocab;
  gradus_logit_transform transform;
  int32_t divergence;
  int32_t reserved;
  double beta;
  gradus_tensor dvalue;  /* in f32 [T] */
  gradus_tensor dpolicy; /* out F [T, V_alloc]; 0 from column V on */
} gradus_vocab_kl_bwd_args;
GRADUS_API gradus_status gradus_vocab_kl_bwd(gradus_context ctx, void *stream, const gradus_vocab_kl_bwd_args *args);

/* Draws a token a row by one uniform number: top-k, then top-p, then min-p. logp has the bits of logprob. */
typedef struct gradus_sample_args {
  size_t struct_size;
  gradus_tensor logits; /* in F [T, V_alloc] */
  int64_t vocab;
  gradus_logit_transform transform; /* its temperature is the sampling temperature */
  int64_t top_k;                    /* 0: all */
  double top_p;                     /* in (0, 1]; default 1 */
  double min_p;                     /* in [0, 1]; default 0 */
  int32_t greedy;                   /* 1: the likeliest token */
  int32_t reserved;
  gradus_tensor uniform;   /* in f64 [T], in [0, 1) */
  gradus_tensor token;     /* out i32 [T] */
  gradus_tensor logp;      /* out f32 [T], over the full vocabulary */
  gradus_tensor logp_kept; /* out f32 [T], optional: over the kept tokens */
  gradus_tensor kept_mass; /* out f32 [T], optional */
} gradus_sample_args;
GRADUS_API gradus_status gradus_sample(gradus_context ctx, void *stream, const gradus_sample_args *args);

#endif
