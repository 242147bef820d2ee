// What `swiglu.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int PER_THREAD = 4;

// Columns of a block.
static constexpr int COLUMNS = THREADS * PER_THREAD;

template <class T> struct SwigluParams {
    const T *gate, *up, *dy;
    T *y, *dgate, *dup;
    i64 columns, gate_stride, up_stride, dy_stride, y_stride, dgate_stride, dup_stride;
};
