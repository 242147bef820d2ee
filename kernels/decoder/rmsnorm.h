// What `rmsnorm.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int CHAINS = 16;  // of a sum over a row: column j belongs to chain j mod 16

// Bytes of one operand's columns that a block holds at a time, by all its rows.
static constexpr int STAGE_BYTES = 12288;

template <class T> struct RmsNormParams {
    const T *x, *dy, *residual;
    T* out;  // y, or dx
    Column<const T> weight;
    Column<float> rstd;
    double* scale;  // [T], s for dweight; null if it is not wanted
    i64 rows, columns, x_stride, dy_stride, residual_stride, out_stride;
    double eps;
    i64 lanes;  // threads a row: a power of two from 16 to THREADS
};

template <class T> struct DweightParams {
    const T *x, *dy;
    const double* scale;
    Column<float> dweight;
    i64 rows, columns, x_stride, dy_stride;
};
