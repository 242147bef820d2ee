// What several products of one X in one launch take.
#pragma once

#include "mma_gemm.h"

// Most products of a launch: q, k and v.
static constexpr int FAN = 3;

// Shared memory that a block needs besides: its copy of the parameters precedes the block's own
// memory, which begins at a multiple of this.
static constexpr int FAN_SHARED = 1024;

template <class T, class W> struct FanParams {
    GemmParams<T, W> map[FAN];
    // The first tile of columns of each product; beyond the grid for those that are not there.
    i64 first[FAN];
    // [M, N], if the first two products are the two halves of SwiGLU: silu(y[0]) ⊙ y[1].
    T* gated;
    i64 gated_stride;
    u32* tickets;  // one for every piece that a block finishes of both
};
