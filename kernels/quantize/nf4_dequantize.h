// What `nf4_dequantize.cu` and its launch share.
#pragma once

#include "nf4.h"

static constexpr int THREADS = 256;
static constexpr int RUN = 1024;  // values of a warp at a time

// Values that the warps of a block take at a time.
static constexpr int TILE = THREADS / WARP * RUN;

template <class T> struct Nf4DequantizeParams {
    const u8* packed;
    Column<const float> code;
    BlockMax max;
    T* y;
    i64 rows, columns, row_stride;
    i32 dtype;   // that was quantized: 0 f32, 1 bf16, 2 f16
    i32 linear;  // y has no gaps, and both are aligned
    i64 runs;    // of a warp, one after another
};
