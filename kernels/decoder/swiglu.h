// What `swiglu.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;

// Bytes of a row that a block takes: 16 per thread.
static constexpr int BLOCK_BYTES = THREADS * 16;

template <class T> struct SwigluParams {
    const T *gate, *up, *dy;
    T *y, *dgate, *dup;
    i64 columns, gate_stride, up_stride, dy_stride, y_stride, dgate_stride, dup_stride;
};
