// What `grad_norm.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int LANES = 16;
static constexpr int CHUNK = 4096;

// Of a block, in shared memory: whole chunks.
static constexpr int STAGE_BYTES = 32768;

struct GradTensor {
    const void* g;
    i64 length, first_chunk;
};

struct GradNormParams {
    const GradTensor* tensors;  // none empty, first_chunk ascending from 0
    double* partial;            // [blocks]
    double* norm;
    u32* ticket;  // 0 before and after
    i64 count, chunks;
};
