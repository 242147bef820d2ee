// What `rope.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;

// Where the tables stand and who reads which row of them.
struct RopeTables {
    Column<const i32> position;
    const float *cos, *sin;
    i64 cos_stride, sin_stride, positions, half;
    double sign;
};

template <class T> struct RopeParams {
    T* x;
    i64 token_stride, head_stride, heads;
    RopeTables tables;
};

// Queries and keys of a token, and where in a cache its key and value go.
template <class T> struct RopeStoreParams {
    T *q, *k;
    i64 q_token, q_head, q_heads, k_token, k_head, k_heads;
    RopeTables tables;
    const T* v;  // null without a cache
    T *keys, *values;
    Column<const i32> row;
    i64 v_stride, keys_stride, values_stride, rows;
};
