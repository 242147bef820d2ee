// What `nf4_quantize.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 512;
static constexpr int VECTOR = 8;
static constexpr int GROUP = THREADS * VECTOR;
static constexpr int NESTED = 256;

// The mean of the maxima: threads, and runs that a warp sums at a time.
static constexpr int MEAN_THREADS = 1024;
static constexpr int MEAN_RUNS = 4;

template <class T> struct Nf4QuantizeParams {
    const T* x;
    i64 rows, columns, row_stride;
    u8* packed;
    Column<float> absmax;
    u64* bad;
    i64 blocksize;
    float bounds[15];
    u8 order[16];
    u8 unused[4];
};

struct Nf4AbsmaxParams {
    Column<const float> absmax, table;
    Column<u8> codes;
    Column<float> nested;
    float* offset;
    i64 blocks;
};
