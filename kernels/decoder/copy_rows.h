// What `copy_rows.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;

template <class T> struct CopyRowsParams {
    const T* x;
    T* y;
    Column<const i32> from, to;
    i64 rows, x_rows, y_rows, columns, x_stride, y_stride;
    i64 shift;  // 2^shift lanes a row, up to THREADS
};
