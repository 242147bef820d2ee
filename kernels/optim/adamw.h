// What `adamw.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int CHUNK = 4096;

enum Outcome : i32 { OUTCOME_BAD, OUTCOME_UPDATED, OUTCOME_UNCHANGED, OUTCOME_ABSORBED };

struct AdamWTensor {
    float* param;
    const float* grad;
    void *m, *v;
    float *m_absmax, *v_absmax;
    const u8* mask;
    i64 count;
    i64 first_block;
};

struct AdamWParams {
    const AdamWTensor* tensors;
    const float* maps;  // signed, then unsigned dynamic map, 256 values each
    u64* outcome;
    i64 tensor_count;
    float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, grad_scale, inverse_root, step,
        decay;
    i32 decay_after;
};
