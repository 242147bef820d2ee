// What `rmsnorm.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int LANES = 16;
static constexpr int ROWS = THREADS / LANES;

template <class T> struct RmsNormParams {
    const T *x, *dy, *residual;
    T* out;  // y, or dx
    Column<const T> weight;
    Column<float> rstd;
    double* scale;  // [T], s for dweight; null if it is not wanted
    i64 rows, columns, x_stride, dy_stride, residual_stride, out_stride;
    double eps;
};

template <class T> struct DweightParams {
    const T *x, *dy;
    const double* scale;
    Column<float> dweight;
    i64 rows, columns, x_stride, dy_stride;
};
