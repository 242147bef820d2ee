/* Products, 4-bit weights, adapters, what a decoder needs, optimisers. Included by gradus.h. */
#ifndef GRADUS_MATRIX_H
#define GRADUS_MATRIX_H

/* ---- 4-bit weights -------------------------------------------------------------------------- */

/* Codes and maxima with the bits of bitsandbytes. */
typedef struct gradus_nf4_quantize_args {
  size_t struct_size;
  gradus_tensor x;      /* in f32, bf16 or f16 [N, K] */
  int32_t quant_type;   /* default GRADUS_NF4 */
  int32_t reserved;
  int64_t blocksize;    /* default 64 */
  gradus_tensor packed; /* out u8 [ceil(N K / 2)] */
  gradus_tensor absmax; /* out f32 [ceil(N K / blocksize)] */
} gradus_nf4_quantize_args;
GRADUS_API gradus_status gradus_nf4_quantize(gradus_context ctx, void *stream, const gradus_nf4_quantize_args *args);

/* Double quantisation of maxima, 256 at a time. */
typedef struct gradus_nf4_quantize_absmax_args {
  size_t struct_size;
  gradus_tensor absmax;           /* in f32 [blocks] */
  gradus_tensor nested_quant_map; /* in f32 [256]: gradus_dynamic_map(1, ...) */
  gradus_tensor codes;            /* out u8 [blocks] */
  gradus_tensor nested_absmax;    /* out f32 [ceil(blocks / 256)] */
  double *offset;                 /* out */
} gradus_nf4_quantize_absmax_args;
GRADUS_API gradus_status gradus_nf4_quantize_absmax(gradus_context ctx, void *stream, const gradus_nf4_quantize_absmax_args *args);

/* The values that 4-bit codes stand for. */
typedef struct gradus_nf4_dequantize_args {
  size_t struct_size;
  const gradus_nf4 *w; /* in [N, K] */
  gradus_tensor y;     /* out F [N, K] */
} gradus_nf4_dequantize_args;
GRADUS_API gradus_status gradus_nf4_dequantize(gradus_context ctx, void *stream, const gradus_nf4_dequantize_args *args);

/* Y = X W^T + bias + scale (X A^T) B^T + residual; the bits of dequantising W and calling matmul. */
typedef struct gradus_nf4_matmul_args {
  size_t struct_size;
  gradus_tensor x;         /* in F [M, K] */
  const gradus_nf4 *w;     /* in [N, K] */
  gradus_tensor bias;      /* in F [N], optional */
  const gradus_lora *lora; /* lora_count adapters of one rank; may be NULL */
  int64_t lora_count;
  gradus_tensor adapter;  /* in i32 [M], optional: each row's adapter, -1 for none; without, 0 */
  gradus_tensor s;        /* out f32 [M, r], optional: scale X A^T, for lora_grad */
  gradus_tensor residual; /* in F [M, N], optional */
  gradus_tensor y;        /* out F [M, N] */
} gradus_nf4_matmul_args;
GRADUS_API gradus_status gradus_nf4_matmul(gradus_context ctx, void *stream, const gradus_nf4_matmul_args *args);

/* dX = dY W + scale (dY B) A: nf4_matmul's gradient by x. */
typedef struct gradus_nf4_matmul_dx_args {
  size_t struct_size;
  gradus_tensor dy;    /* in F [M, N] */
  const gradus_nf4 *w; /* in [N, K] */
  const gradus_lora *lora;
  int64_t lora_count;
  gradus_tensor adapter; /* in i32 [M], optional */
  int32_t accumulate;    /* 1: added to dx */
  int32_t reserved;
  gradus_tensor dx; /* out F [M, K] */
} gradus_nf4_matmul_dx_args;
GRADUS_API gradus_status gradus_nf4_matmul_dx(gradus_context ctx, void *stream, const gradus_nf4_matmul_dx_args *args);

/* Y = X W^T with each row's expert: rows sorted by expert, a weight each, in one launch. */
typedef struct gradus_nf4_matmul_grouped_args {
  size_t struct_size;
  gradus_tensor x;       /* in F [M, K] */
  gradus_tensor offsets; /* in i64 [E + 1] */
  const gradus_nf4 *w;   /* in [E] weights of one shape [N, K] */
  int64_t w_count;       /* E */
  gradus_tensor y;       /* out F [M, N] */
} gradus_nf4_matmul_grouped_args;
GRADUS_API gradus_status gradus_nf4_matmul_grouped(gradus_context ctx, void *stream, const gradus_nf4_matmul_grouped_args *args);

/* dX = dY W of each row's expert: nf4_matmul_grouped's gradient by x. */
typedef struct gradus_nf4_matmul_grouped_dx_args {
  size_t struct_size;
  gradus_tensor dy;      /* in F [M, N] */
  gradus_tensor offsets; /* in i64 [E + 1] */
  const gradus_nf4 *w;
  int64_t w_count;
  int32_t accumulate;
  int32_t reserved;
  gradus_tensor dx; /* out F [M, K] */
} gradus_nf4_matmul_grouped_dx_args;
GRADUS_API gradus_status gradus_nf4_matmul_grouped_dx(gradus_context ctx, void *stream, const gradus_nf4_matmul_grouped_dx_args *args);

/* ---- dense products and adapters ------------------------------------------------------------ */

/* Y = X W^T + bias + scale (X A^T) B^T + residual. */
typedef struct gradus_matmul_args {
  size_t struct_size;
  gradus_tensor x;    /* in F [M, K] */
  gradus_tensor w;    /* in F [N, K] */
  gradus_tensor bias; /* in F [N], optional */
  const gradus_lora *lora;
  int64_t lora_count;
  gradus_tensor adapter;  /* in i32 [M], optional */
  gradus_tensor s;        /* out f32 [M, r], optional */
  gradus_tensor residual; /* in F [M, N], optional */
  gradus_tensor y;        /* out F [M, N] */
} gradus_matmul_args;
GRADUS_API gradus_status gradus_matmul(gradus_context ctx, void *stream, const gradus_matmul_args *args);

/* dX = dY W + scale (dY B) A: matmul's gradient by x. */
typedef struct gradus_matmul_dx_args {
  size_t struct_size;
  gradus_tensor dy; /* in F [M, N] */
  gradus_tensor w;  /* in F [N, K] */
  const gradus_lora *lora;
  int64_t lora_count;
  gradus_tensor adapter; /* in i32 [M], optional */
  int32_t accumulate;
  int32_t reserved;
  gradus_tensor dx; /* out F [M, K] */
} gradus_matmul_dx_args;
GRADUS_API gradus_status gradus_matmul_dx(gradus_context ctx, void *stream, const gradus_matmul_dx_args *args);

/* dW += dY^T X and dbias += the sum of dY's rows: matmul's gradient by weight and bias. */
typedef struct gradus_matmul_dw_args {
  size_t struct_size;
  gradus_tensor dy;    /* in F [M, N] */
  gradus_tensor x;     /* in F [M, K] */
  gradus_tensor dw;    /* inout f32 [N, K]: added to */
  gradus_tensor dbias; /* inout f32 [N], optional: added to */
} gradus_matmul_dw_args;
GRADUS_API gradus_status gradus_matmul_dw(gradus_context ctx, void *stream, const gradus_matmul_dw_args *args);

/* dA and dB of an adapter, of a product with s kept: da += scale (dY B)^T X, db += dY^T s. */
typedef struct gradus_lora_grad_args {
  size_t struct_size;
  gradus_tensor x;         /* in F [M, K] */
  gradus_tensor dy;        /* in F [M, N] */
  gradus_tensor s;         /* in f32 [M, r] as the forward pass kept it */
  const gradus_lora *lora; /* the adapter */
  gradus_tensor adapter;   /* in i32 [M], optional */
  int32_t index;           /* only rows that took this adapter count; default 0 */
  int32_t reserved;
  gradus_tensor da; /* inout f32 [r, K]: added to */
  gradus_tensor db; /* inout f32 [N, r]: added to */
} gradus_lora_grad_args;
GRADUS_API gradus_status gradus_lora_grad(gradus_context ctx, void *stream, const gradus_lora_grad_args *args);

/* ---- a decoder's other ops ------------------------------------------------------------------ */

/* y = weight x / sqrt(mean x^2 + eps), row by row. */
typedef struct gradus_rmsnorm_args {
  size_t struct_size;
  gradus_tensor x;      /* in F [T, D] */
  gradus_tensor weight; /* in F [D] */
  double eps;           /* default 1e-6 */
  gradus_tensor y;      /* out F [T, D] */
  gradus_tensor rstd;   /* out f32 [T], optional */
} gradus_rmsnorm_args;
GRADUS_API gradus_status gradus_rmsnorm(gradus_context ctx, void *stream, const gradus_rmsnorm_args *args);

/* rmsnorm's gradient by x and weight. */
typedef struct gradus_rmsnorm_bwd_args {
  size_t struct_size;
  gradus_tensor x;        /* in F [T, D] */
  gradus_tensor weight;   /* in F [D] */
  double eps;             /* default 1e-6 */
  gradus_tensor dy;       /* in F [T, D] */
  gradus_tensor residual; /* in F [T, D], optional: gradient past the norm, added */
  gradus_tensor dx;       /* out F [T, D] */
  gradus_tensor dweight;  /* inout f32 [D], optional: added to */
} gradus_rmsnorm_bwd_args;
GRADUS_API gradus_status gradus_rmsnorm_bwd(gradus_context ctx, void *stream, const gradus_rmsnorm_bwd_args *args);

/* Rotates halves: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin). */
typedef struct gradus_rope_args {
  size_t struct_size;
  gradus_tensor x;         /* inout F [T, H, D] */
  gradus_tensor positions; /* in i32 [T], 0..P */
  gradus_tensor cos, sin;  /* in f32 [P, D / 2] */
  int32_t inverse;         /* 1: by the negative angle, the gradient */
  int32_t reserved;
} gradus_rope_args;
GRADUS_API gradus_status gradus_rope(gradus_context ctx, void *stream, const gradus_rope_args *args);

/* Causal attention over packed sequences; the keys of sequence b are kv_len[b] rows, the last of which
 * belong to its queries. They lie at kv_start[b] and on, or in pages; exactly one of both is given. */
typedef struct gradus_attention_args {
  size_t struct_size;
  gradus_tensor q;          /* in F [T, Hq, D] */
  gradus_tensor k, v;       /* in F [S, Hkv, D], Hq a multiple of Hkv */
  gradus_tensor cu_seqlens; /* in i64 [B + 1], of q */
  gradus_tensor kv_start;   /* in i64 [B] */
  gradus_tensor pages;      /* or in i32 [B, P]: key j lies in row pages[b, j / page_size] page_size + j % page_size */
  int64_t page_size;        /* a power of two */
  gradus_tensor kv_len;     /* in i64 [B] */
  double scale;             /* default 0: 1 / sqrt(D) */
  gradus_tensor o;          /* out F [T, Hq, D] */
  gradus_tensor lse;        /* out f32 [T, Hq], optional */
} gradus_attention_args;
GRADUS_API gradus_status gradus_attention(gradus_context ctx, void *stream, const gradus_attention_args *args);

/* attention's gradient by q, k and v, from ranges of keys. */
typedef struct gradus_attention_bwd_args {
  size_t struct_size;
  gradus_tensor q;          /* in F [T, Hq, D] */
  gradus_tensor k, v;       /* in F [S, Hkv, D] */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  gradus_tensor kv_start;   /* in i64 [B]; ranges of keys do not overlap */
  gradus_tensor kv_len;     /* in i64 [B] */
  double scale;             /* default 0: 1 / sqrt(D) */
  gradus_tensor dout;       /* in F [T, Hq, D] */
  gradus_tensor dq;         /* out F [T, Hq, D] */
  gradus_tensor dk, dv;     /* out F [S, Hkv, D]; 0 in rows of no sequence */
} gradus_attention_bwd_args;
GRADUS_API gradus_status gradus_attention_bwd(gradus_context ctx, void *stream, const gradus_attention_bwd_args *args);

/* y = silu(gate) up */
typedef struct gradus_swiglu_args {
  size_t struct_size;
  gradus_tensor gate, up; /* in F [T, D] */
  gradus_tensor y;        /* out F [T, D] */
} gradus_swiglu_args;
GRADUS_API gradus_status gradus_swiglu(gradus_context ctx, void *stream, const gradus_swiglu_args *args);

/* swiglu's gradient by gate and up. */
typedef struct gradus_swiglu_bwd_args {
  size_t struct_size;
  gradus_tensor gate, up, dy; /* in F [T, D] */
  gradus_tensor dgate, dup;   /* out F [T, D] */
} gradus_swiglu_bwd_args;
GRADUS_API gradus_status gradus_swiglu_bwd(gradus_context ctx, void *stream, const gradus_swiglu_bwd_args *args);

/* y[t] = table[ids[t]]. */
typedef struct gradus_embedding_args {
  size_t struct_size;
  gradus_tensor ids;   /* in i32 [T], 0..V */
  gradus_tensor table; /* in F [V, D] */
  gradus_tensor y;     /* out F [T, D] */
} gradus_embedding_args;
GRADUS_API gradus_status gradus_embedding(gradus_context ctx, void *stream, const gradus_embedding_args *args);

/* dtable[ids[t]] += dy[t]. */
typedef struct gradus_embedding_bwd_args {
  size_t struct_size;
  gradus_tensor ids;    /* in i32 [T] */
  gradus_tensor dy;     /* in F [T, D] */
  gradus_tensor dtable; /* inout f32 [V, D]: added to */
} gradus_embedding_bwd_args;
GRADUS_API gradus_status gradus_embedding_bwd(gradus_context ctx, void *stream, const gradus_embedding_bwd_args *args);

/* y[to_rows[i]] = x[from_rows[i]] for R rows. */
typedef struct gradus_copy_rows_args {
  size_t struct_size;
  gradus_tensor x;    /* in F [S, D] */
  gradus_tensor from_rows; /* in i32 [R], optional: row i; -1 gives zeros */
  gradus_tensor to_rows;   /* in i32 [R], optional: row i; -1 copies nothing */
  gradus_tensor y;    /* out F [Q, D]; rows that are not named keep their values */
} gradus_copy_rows_args;
GRADUS_API gradus_status gradus_copy_rows(gradus_context ctx, void *stream, const gradus_copy_rows_args *args);

/* From one dtype to another, rounded once. */
typedef struct gradus_convert_args {
  size_t struct_size;
  gradus_tensor x; /* in F, any shape */
  gradus_tensor y; /* out, any of f32, bf16, f16, f64, the same shape */
} gradus_convert_args;
GRADUS_API gradus_status gradus_convert(gradus_context ctx, void *stream, const gradus_convert_args *args);

/* ---- optimisers ----------------------------------------------------------------------------- */

enum { GRADUS_DECAY_BEFORE = 0, GRADUS_DECAY_AFTER = 1 }; /* decay: torch, bitsandbytes on CUDA */

typedef struct gradus_adamw_settings {
  double lr;           /* default 1e-3 */
  double beta1, beta2; /* default 0.9, 0.999 */
  double eps;          /* default 1e-8 */
  double weight_decay; /* default 0 */
  double grad_scale;   /* every gradient is multiplied by it; default 1 */
  int64_t step;        /* the first is 1; default 1 */
  int32_t decay;       /* default GRADUS_DECAY_BEFORE */
  int32_t reserved;
} gradus_adamw_settings;
typedef struct gradus_adamw_outcome {
  int64_t non_finite_tensor;  /* first gradient that is not finite, -1 for none. If there is one, */
  int64_t non_finite_element; /* nothing was written and the call fails with GRADUS_NON_FINITE */
  int64_t updated, unchanged, absorbed_bf16;
} gradus_adamw_outcome;

typedef struct gradus_adamw_tensor {
  gradus_tensor param; /* inout f32 */
  gradus_tensor grad;  /* in f32 */
  gradus_tensor m, v;  /* inout f32 */
  gradus_tensor mask;  /* in u8, optional: 0 keeps an element */
} gradus_adamw_tensor;
/* A step of AdamW over all tensors, or none where a gradient is not finite. */
typedef struct gradus_adamw_args {
  size_t struct_size;
  const gradus_adamw_tensor *tensors;
  int64_t tensors_count;
  gradus_adamw_settings settings;
  gradus_adamw_outcome *outcome; /* out, may be NULL */
} gradus_adamw_args;
GRADUS_API gradus_status gradus_adamw(gradus_context ctx, void *stream, const gradus_adamw_args *args);

typedef struct gradus_adamw_8bit_tensor {
  gradus_tensor param;              /* inout f32 */
  gradus_tensor grad;               /* in f32 */
  gradus_tensor m, v;               /* inout u8, dynamic maps, signed and unsigned */
  gradus_tensor m_absmax, v_absmax; /* inout f32 [ceil(n / 256)] */
  gradus_tensor mask;               /* in u8, optional */
} gradus_adamw_8bit_tensor;
/* A step of AdamW with both moments in 8 bits, in blocks of 256. */
typedef struct gradus_adamw_8bit_args {
  size_t struct_size;
  const gradus_adamw_8bit_tensor *tensors;
  int64_t tensors_count;
  gradus_adamw_settings settings;
  gradus_adamw_outcome *outcome; /* out, may be NULL */
} gradus_adamw_8bit_args;
GRADUS_API gradus_status gradus_adamw_8bit(gradus_context ctx, void *stream, const gradus_adamw_8bit_args *args);

/* L2 norm of all gradients together; not finite if an element is not. */
typedef struct gradus_grad_norm_args {
  size_t struct_size;
  const gradus_tensor *grads; /* in F, contiguous, any shape */
  int64_t grads_count;
  double *norm; /* out */
} gradus_grad_norm_args;
GRADUS_API gradus_status gradus_grad_norm(gradus_context ctx, void *stream, const gradus_grad_norm_args *args);

/* y = a + weight (b - a) */
typedef struct gradus_lerp_args {
  size_t struct_size;
  gradus_tensor a, b; /* in F, any shape */
  double weight;      /* finite; default 0.5 */
  gradus_tensor y;    /* out F */
} gradus_lerp_args;
GRADUS_API gradus_status gradus_lerp(gradus_context ctx, void *stream, const gradus_lerp_args *args);

typedef struct gradus_update_sparsity {
  int64_t n, equal_exact, within_tol, absorbed_bf16;
  double max_delta;
} gradus_update_sparsity;
/* How much an update changed a weight: elements that are equal, within tol, absorbed by bf16. */
typedef struct gradus_sparsity_stats_args {
  size_t struct_size;
  gradus_tensor w0, w1;          /* in F [N, K]: before, after */
  double tol;                    /* default 1e-5 */
  gradus_tensor row_nnz;         /* out i64 [N], optional */
  gradus_update_sparsity *stats; /* out */
} gradus_sparsity_stats_args;
GRADUS_API gradus_status gradus_sparsity_stats(gradus_context ctx, void *stream, const gradus_sparsity_stats_args *args);

/* Elements whose bits differ: with index and value absent only their count, else both hold at least so many. */
typedef struct gradus_delta_encode_args {
  size_t struct_size;
  gradus_tensor old_value, new_value; /* in F, contiguous, any shape */
  gradus_tensor index;                /* out i64 [capacity], optional: ascending flat indices */
  gradus_tensor value;                /* out F [capacity], optional */
  int64_t *count;                     /* out */
} gradus_delta_encode_args;
GRADUS_API gradus_status gradus_delta_encode(gradus_context ctx, void *stream, const gradus_delta_encode_args *args);

/* Writes back what delta_encode found. */
typedef struct gradus_delta_apply_args {
  size_t struct_size;
  gradus_tensor index;  /* in i64 [count], strictly ascending */
  gradus_tensor value;  /* in F [count] */
  gradus_tensor target; /* inout F, contiguous, any shape */
} gradus_delta_apply_args;
GRADUS_API gradus_status gradus_delta_apply(gradus_context ctx, void *stream, const gradus_delta_apply_args *args);

#endif
