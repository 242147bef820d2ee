// What `rope.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;

template <class T> struct RopeParams {
    T* x;
    i64 token_stride, head_stride, heads, half, positions;
    Column<const i32> position;
    const float *cos, *sin;
    i64 cos_stride, sin_stride;
    double sign;
};
