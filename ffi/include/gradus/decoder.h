/* The other ops of a decoder: norms, rotary embedding, attention, activations, rows. Included by gradus.h. */
#ifndef GRADUS_DECODER_H
#define GRADUS_DECODER_H

/* y = weight x / sqrt(mean x^2 + eps) for each row. */
typedef struct gradus_rmsnorm_args {
  size_t struct_size;
  gradus_tensor x;      /* in F [T, D] */
  gradus_tensor weight; /* in F [D] */
  double eps;           /* default 1e-6 */
  gradus_tensor y;      /* out F [T, D] */
  gradus_tensor rstd;   /* out f32 [T], optional */
} gradus_rmsnorm_args;
GRADUS_API gradus_status gradus_rmsnorm(gradus_context ctx, void *stream, const gradus_rmsnorm_args *args);

/* The gradient of rmsnorm by x and weight. */
typedef struct gradus_rmsnorm_bwd_args {
  size_t struct_size;
  gradus_tensor x;        /* in F [T, D] */
  gradus_tensor weight;   /* in F [D] */
  double eps;             /* default 1e-6 */
  gradus_tensor dy;       /* in F [T, D] */
  gradus_tensor residual; /* in F [T, D], optional: added to dx; the gradient of a residual connection */
  gradus_tensor dx;       /* out F [T, D] */
  gradus_tensor dweight;  /* inout f32 [D], optional: added to */
} gradus_rmsnorm_bwd_args;
GRADUS_API gradus_status gradus_rmsnorm_bwd(gradus_context ctx, void *stream, const gradus_rmsnorm_bwd_args *args);

/* Rotary embedding in place. x1 and x2 are the halves of a head: (x1 cos - x2 sin, x2 cos + x1 sin). */
typedef struct gradus_rope_args {
  size_t struct_size;
  gradus_tensor x;         /* inout F [T, H, D] */
  gradus_tensor positions; /* in i32 [T], 0..P */
  gradus_tensor cos, sin;  /* in f32 [P, D / 2] */
  int32_t inverse;         /* 1: rotate by the negative angle, which gives the gradient */
  int32_t reserved;
} gradus_rope_args;
GRADUS_API gradus_status gradus_rope(gradus_context ctx, void *stream, const gradus_rope_args *args);

/* y = scale / (1 - p) x where the mask has a 1, else 0. The mask of a row is a function of key, stream, position and
 * column: 0 where word j % 4 of the Philox4x32-10 block of the counter (j / 4, position, stream, 0) is below 2^32 p.
 * The gradient is the same call on dy with the same key. */
typedef struct gradus_dropout_args {
  size_t struct_size;
  gradus_tensor x;         /* in F [R, K] */
  gradus_tensor streams;   /* in i32 [R]: the sequence of each row */
  gradus_tensor positions; /* in i32 [R]: its place there */
  double p;                /* 0 <= p < 1 */
  double scale;            /* default 1 */
  int64_t key;             /* its 64 bits */
  int32_t accumulate;      /* 1: add to y */
  int32_t reserved;
  gradus_tensor y; /* out F [R, K] */
} gradus_dropout_args;
GRADUS_API gradus_status gradus_dropout(gradus_context ctx, void *stream, const gradus_dropout_args *args);

/* Causal attention over packed sequences. Sequence b has kv_len[b] keys; the last of them belong to its queries.
 * The keys lie in rows kv_start[b], kv_start[b] + 1, ..., or in pages. Give exactly one of kv_start and pages.
 * With a prefix the first prefix_len[b] keys lie in rows prefix_start[b], prefix_start[b] + 1, ..., which sequences may
 * share, and kv_start[b] is the row of the next. */
typedef struct gradus_attention_args {
  size_t struct_size;
  gradus_tensor q;          /* in F [T, Hq, D] */
  gradus_tensor k, v;       /* in F [S, Hkv, D]; Hq is a multiple of Hkv */
  gradus_tensor cu_seqlens; /* in i64 [B + 1], of q */
  gradus_tensor kv_start;   /* in i64 [B] */
  gradus_tensor pages;      /* or in i32 [B, P]: key j is row pages[b, j / page_size] page_size + j % page_size */
  int64_t page_size;        /* a power of two */
  gradus_tensor kv_len;     /* in i64 [B] */
  double scale;             /* default 0: 1 / sqrt(D) */
  gradus_tensor o;          /* out F [T, Hq, D] */
  gradus_tensor lse;        /* out f32 [T, Hq], optional */
  gradus_tensor prefix_start, prefix_len; /* in i64 [B], optional: both or neither, not with pages */
} gradus_attention_args;
GRADUS_API gradus_status gradus_attention(gradus_context ctx, void *stream, const gradus_attention_args *args);

/* The gradient of attention by q, k and v, for keys given by kv_start. That of a key which sequences share is the sum of
 * theirs, in order. */
typedef struct gradus_attention_bwd_args {
  size_t struct_size;
  gradus_tensor q;          /* in F [T, Hq, D] */
  gradus_tensor k, v;       /* in F [S, Hkv, D] */
  gradus_tensor cu_seqlens; /* in i64 [B + 1] */
  gradus_tensor kv_start;   /* in i64 [B]; the keys of two sequences do not overlap but for prefixes */
  gradus_tensor kv_len;     /* in i64 [B] */
  double scale;             /* default 0: 1 / sqrt(D) */
  gradus_tensor dout;       /* in F [T, Hq, D] */
  gradus_tensor dq;         /* out F [T, Hq, D] */
  gradus_tensor dk, dv;     /* out F [S, Hkv, D]; 0 in rows that belong to no sequence */
  gradus_tensor prefix_start, prefix_len; /* in i64 [B], optional: both or neither */
} gradus_attention_bwd_args;
GRADUS_API gradus_status gradus_attention_bwd(gradus_context ctx, void *stream, const gradus_attention_bwd_args *args);

/* y = silu(gate) up. */
typedef struct gradus_swiglu_args {
  size_t struct_size;
  gradus_tensor gate, up; /* in F [T, D] */
  gradus_tensor y;        /* out F [T, D] */
} gradus_swiglu_args;
GRADUS_API gradus_status gradus_swiglu(gradus_context ctx, void *stream, const gradus_swiglu_args *args);

/* The gradient of swiglu by gate and up. */
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

/* dtable[ids[t]] += dy[t]: the gradient of embedding by table. */
typedef struct gradus_embedding_bwd_args {
  size_t struct_size;
  gradus_tensor ids;    /* in i32 [T] */
  gradus_tensor dy;     /* in F [T, D] */
  gradus_tensor dtable; /* inout f32 [V, D]: added to */
} gradus_embedding_bwd_args;
GRADUS_API gradus_status gradus_embedding_bwd(gradus_context ctx, void *stream, const gradus_embedding_bwd_args *args);

/* y[to_rows[i]] = x[from_rows[i]] for R pairs of rows. */
typedef struct gradus_copy_rows_args {
  size_t struct_size;
  gradus_tensor x;         /* in F [S, D] */
  gradus_tensor from_rows; /* in i32 [R], optional: if absent, row i; -1 reads zeros */
  gradus_tensor to_rows;   /* in i32 [R], optional: if absent, row i; -1 writes nothing */
  gradus_tensor y;         /* out F [Q, D]; rows not in to_rows keep their values */
} gradus_copy_rows_args;
GRADUS_API gradus_status gradus_copy_rows(gradus_context ctx, void *stream, const gradus_copy_rows_args *args);

/* Converts from one dtype to another, rounding once. */
typedef struct gradus_convert_args {
  size_t struct_size;
  gradus_tensor x; /* in F, any shape */
  gradus_tensor y; /* out, any of f32, bf16, f16, f64, the same shape */
} gradus_convert_args;
GRADUS_API gradus_status gradus_convert(gradus_context ctx, void *stream, const gradus_convert_args *args);

#endif
