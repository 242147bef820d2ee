/* Optimizers, and statistics of weights and gradients. Included by gradus.h. */
#ifndef GRADUS_OPTIM_H
#define GRADUS_OPTIM_H

/* When the weight is decayed: before the update, as torch does, or after it, as bitsandbytes does on CUDA. */
enum gradus_decay { GRADUS_DECAY_BEFORE = 0, GRADUS_DECAY_AFTER = 1 };

/* Settings of a step of AdamW. */
typedef struct gradus_adamw_settings {
  double lr;           /* default 1e-3 */
  double beta1, beta2; /* default 0.9, 0.999 */
  double eps;          /* default 1e-8 */
  double weight_decay; /* default 0 */
  double grad_scale;   /* factor of every gradient; default 1 */
  int64_t step;        /* counts from 1; default 1 */
  int32_t decay;       /* gradus_decay, default GRADUS_DECAY_BEFORE */
  int32_t reserved;
} gradus_adamw_settings;
/* What a step did. If a gradient is not finite, nothing is written and the call fails with GRADUS_NON_FINITE. */
typedef struct gradus_adamw_outcome {
  int64_t non_finite_tensor;  /* tensor of the first gradient that is not finite, -1 for none */
  int64_t non_finite_element; /* its element, -1 for none */
  int64_t updated, unchanged; /* elements that the mask lets through; those of them whose f32 value stayed */
  int64_t absorbed_bf16;      /* elements whose f32 value changed while their bf16 rounding stayed */
} gradus_adamw_outcome;

/* A tensor of adamw with its moments. */
typedef struct gradus_adamw_tensor {
  gradus_tensor param; /* inout f32 */
  gradus_tensor grad;  /* in f32 */
  gradus_tensor m, v;  /* inout f32 */
  gradus_tensor mask;  /* in u8, optional: an element with 0 stays */
} gradus_adamw_tensor;
/* One step of AdamW over all tensors; no tensor changes if a gradient is not finite. */
typedef struct gradus_adamw_args {
  size_t struct_size;
  const gradus_adamw_tensor *tensors;
  int64_t tensors_count;
  gradus_adamw_settings settings;
  gradus_adamw_outcome *outcome; /* out, may be NULL */
} gradus_adamw_args;
GRADUS_API gradus_status gradus_adamw(gradus_context ctx, void *stream, const gradus_adamw_args *args);

/* A tensor of adamw_8bit with its moments. */
typedef struct gradus_adamw_8bit_tensor {
  gradus_tensor param;              /* inout f32 */
  gradus_tensor grad;               /* in f32 */
  gradus_tensor m, v;               /* inout u8: codes of the dynamic maps, signed for m and unsigned for v */
  gradus_tensor m_absmax, v_absmax; /* inout f32 [ceil(n / 256)] */
  gradus_tensor mask;               /* in u8, optional */
} gradus_adamw_8bit_tensor;
/* One step of AdamW with both moments in 8 bits, in blocks of 256. */
typedef struct gradus_adamw_8bit_args {
  size_t struct_size;
  const gradus_adamw_8bit_tensor *tensors;
  int64_t tensors_count;
  gradus_adamw_settings settings;
  gradus_adamw_outcome *outcome; /* out, may be NULL */
} gradus_adamw_8bit_args;
GRADUS_API gradus_status gradus_adamw_8bit(gradus_context ctx, void *stream, const gradus_adamw_8bit_args *args);

/* L2 norm over all gradients together; not finite if an element is not finite. */
typedef struct gradus_grad_norm_args {
  size_t struct_size;
  const gradus_tensor *grads; /* in F, contiguous, any shape */
  int64_t grads_count;
  double *norm; /* out */
} gradus_grad_norm_args;
GRADUS_API gradus_status gradus_grad_norm(gradus_context ctx, void *stream, const gradus_grad_norm_args *args);

/* y = a + weight (b - a). */
typedef struct gradus_lerp_args {
  size_t struct_size;
  gradus_tensor a, b; /* in F, any shape */
  double weight;      /* finite; default 0.5 */
  gradus_tensor y;    /* out F */
} gradus_lerp_args;
GRADUS_API gradus_status gradus_lerp(gradus_context ctx, void *stream, const gradus_lerp_args *args);

/* What sparsity_stats counted. absorbed_bf16: elements that differ in F and round to one bf16. */
typedef struct gradus_update_sparsity {
  int64_t n, equal_exact, within_tol, absorbed_bf16;
  double max_delta; /* largest change */
} gradus_update_sparsity;
/* How much an update changed a weight: counts elements that are equal, that differ by at most tol, and whose
 * difference bf16 absorbs. */
typedef struct gradus_sparsity_stats_args {
  size_t struct_size;
  gradus_tensor w0, w1;          /* in F [N, K]: before, after */
  double tol;                    /* default 1e-5 */
  gradus_tensor row_nnz;         /* out i64 [N], optional */
  gradus_update_sparsity *stats; /* out */
} gradus_sparsity_stats_args;
GRADUS_API gradus_status gradus_sparsity_stats(gradus_context ctx, void *stream, const gradus_sparsity_stats_args *args);

/* Finds the elements whose bits differ. With index and value absent it only counts them. */
typedef struct gradus_delta_encode_args {
  size_t struct_size;
  gradus_tensor old_value, new_value; /* in F, contiguous, any shape */
  gradus_tensor index;                /* out i64 [capacity], optional: ascending flat indices; capacity >= count */
  gradus_tensor value;                /* out F [capacity], optional */
  int64_t *count;                     /* out */
} gradus_delta_encode_args;
GRADUS_API gradus_status gradus_delta_encode(gradus_context ctx, void *stream, const gradus_delta_encode_args *args);

/* target[index[i]] = value[i]: applies what delta_encode found. */
typedef struct gradus_delta_apply_args {
  size_t struct_size;
  gradus_tensor index;  /* in i64 [count], strictly ascending */
  gradus_tensor value;  /* in F [count] */
  gradus_tensor target; /* inout F, contiguous, any shape */
} gradus_delta_apply_args;
GRADUS_API gradus_status gradus_delta_apply(gradus_context ctx, void *stream, const gradus_delta_apply_args *args);

#endif
