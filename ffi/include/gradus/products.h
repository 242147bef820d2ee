/* Matrix products with dense and 4-bit weights, and adapters. Included by gradus.h. */
#ifndef GRADUS_PRODUCTS_H
#define GRADUS_PRODUCTS_H

/* ---- dense weights -------------------------------------------------------------------------- */

/* Y = X W^T + bias + scale (X A^T) B^T + residual. */
typedef struct gradus_matmul_args {
  size_t struct_size;
  gradus_tensor x;         /* in F [M, K] */
  gradus_tensor w;         /* in F [N, K] */
  gradus_tensor bias;      /* in F [N], optional */
  const gradus_lora *lora; /* lora_count adapters; may be NULL */
  int64_t lora_count;
  gradus_tensor adapter;  /* in i32 [M], optional */
  gradus_tensor s;        /* out f32 [M, r], optional */
  gradus_tensor residual; /* in F [M, N], optional */
  gradus_tensor y;        /* out F [M, N] */
} gradus_matmul_args;
GRADUS_API gradus_status gradus_matmul(gradus_context ctx, void *stream, const gradus_matmul_args *args);

/* dX = dY W + scale (dY B) A: the gradient of matmul by x. */
typedef struct gradus_matmul_dx_args {
  size_t struct_size;
  gradus_tensor dy;        /* in F [M, N] */
  gradus_tensor w;         /* in F [N, K] */
  const gradus_lora *lora; /* lora_count adapters; may be NULL */
  int64_t lora_count;
  gradus_tensor adapter; /* in i32 [M], optional */
  int32_t accumulate;    /* 1: add to dx */
  int32_t reserved;
  gradus_tensor dx; /* out F [M, K] */
} gradus_matmul_dx_args;
GRADUS_API gradus_status gradus_matmul_dx(gradus_context ctx, void *stream, const gradus_matmul_dx_args *args);

/* dW += dY^T X and dbias += the sum over the rows of dY: the gradient of matmul by weight and bias. */
typedef struct gradus_matmul_dw_args {
  size_t struct_size;
  gradus_tensor dy;    /* in F [M, N] */
  gradus_tensor x;     /* in F [M, K] */
  gradus_tensor dw;    /* inout f32 [N, K]: added to */
  gradus_tensor dbias; /* inout f32 [N], optional: added to */
} gradus_matmul_dw_args;
GRADUS_API gradus_status gradus_matmul_dw(gradus_context ctx, void *stream, const gradus_matmul_dw_args *args);

/* ---- 4-bit weights -------------------------------------------------------------------------- */

/* Y = X W^T + bias + scale (X A^T) B^T + residual, with the bits of dequantizing W and calling matmul. */
typedef struct gradus_nf4_matmul_args {
  size_t struct_size;
  gradus_tensor x;         /* in F [M, K] */
  const gradus_nf4 *w;     /* in [N, K] */
  gradus_tensor bias;      /* in F [N], optional */
  const gradus_lora *lora; /* lora_count adapters of one rank; may be NULL */
  int64_t lora_count;
  gradus_tensor adapter;  /* in i32 [M], optional: the adapter of each row, -1 for none; if absent, adapter 0 */
  gradus_tensor s;        /* out f32 [M, r], optional: scale X A^T, for lora_grad */
  gradus_tensor residual; /* in F [M, N], optional */
  gradus_tensor y;        /* out F [M, N] */
} gradus_nf4_matmul_args;
GRADUS_API gradus_status gradus_nf4_matmul(gradus_context ctx, void *stream, const gradus_nf4_matmul_args *args);

/* dX = dY W + scale (dY B) A: the gradient of nf4_matmul by x. */
typedef struct gradus_nf4_matmul_dx_args {
  size_t struct_size;
  gradus_tensor dy;        /* in F [M, N] */
  const gradus_nf4 *w;     /* in [N, K] */
  const gradus_lora *lora; /* lora_count adapters; may be NULL */
  int64_t lora_count;
  gradus_tensor adapter; /* in i32 [M], optional */
  int32_t accumulate;    /* 1: add to dx */
  int32_t reserved;
  gradus_tensor dx; /* out F [M, K] */
} gradus_nf4_matmul_dx_args;
GRADUS_API gradus_status gradus_nf4_matmul_dx(gradus_context ctx, void *stream, const gradus_nf4_matmul_dx_args *args);

/* Y = X W^T, where each row has the weight of its expert. Rows are sorted by expert; one launch does all. */
typedef struct gradus_nf4_matmul_grouped_args {
  size_t struct_size;
  gradus_tensor x;       /* in F [M, K] */
  gradus_tensor offsets; /* in i64 [E + 1] */
  const gradus_nf4 *w;   /* in [E]: weights of one shape [N, K] */
  int64_t w_count;       /* E */
  gradus_tensor y;       /* out F [M, N] */
} gradus_nf4_matmul_grouped_args;
GRADUS_API gradus_status gradus_nf4_matmul_grouped(gradus_context ctx, void *stream, const gradus_nf4_matmul_grouped_args *args);

/* dX = dY W with the weight of the expert of each row: the gradient of nf4_matmul_grouped by x. */
typedef struct gradus_nf4_matmul_grouped_dx_args {
  size_t struct_size;
  gradus_tensor dy;      /* in F [M, N] */
  gradus_tensor offsets; /* in i64 [E + 1] */
  const gradus_nf4 *w;
  int64_t w_count;
  int32_t accumulate; /* 1: add to dx */
  int32_t reserved;
  gradus_tensor dx; /* out F [M, K] */
} gradus_nf4_matmul_grouped_dx_args;
GRADUS_API gradus_status gradus_nf4_matmul_grouped_dx(gradus_context ctx, void *stream, const gradus_nf4_matmul_grouped_dx_args *args);

/* ---- adapters ------------------------------------------------------------------------------- */

/* The gradient of an adapter: da += scale (dY B)^T X, db += dY^T s, where s is an output of the product. */
typedef struct gradus_lora_grad_args {
  size_t struct_size;
  gradus_tensor x;         /* in F [M, K] */
  gradus_tensor dy;        /* in F [M, N] */
  gradus_tensor s;         /* in f32 [M, r]: as the forward pass wrote it */
  const gradus_lora *lora; /* the adapter */
  gradus_tensor adapter;   /* in i32 [M], optional */
  int32_t index;           /* only rows whose adapter is this one count; default 0 */
  int32_t reserved;
  gradus_tensor da; /* inout f32 [r, K]: added to */
  gradus_tensor db; /* inout f32 [N, r]: added to */
} gradus_lora_grad_args;
GRADUS_API gradus_status gradus_lora_grad(gradus_context ctx, void *stream, const gradus_lora_grad_args *args);

#endif
