// What `dropout.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;

template <class T> struct DropoutParams {
    const T* x;
    T* y;
    i64 x_stride, y_stride, columns;
    Column<const i32> stream, position;
    double factor;
    u64 key;
    u32 threshold, accumulate;
};
