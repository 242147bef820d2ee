// What `matmul.cu` and its launch share.
#pragma once

#include "product.h"

template <class T, class A> struct LowParams {
    Strided<T> left;
    Adapters lora;
    i64 rows, depth;
    A* low;  // [rows, rank]
    i64 low_stride;
    float* s;  // f64 only: low in f32, if wanted; for the other dtypes low is S itself
    i64 s_stride;
};

template <class T> struct DwParams {
    Strided<T> left, right;
    i64 rows, columns, depth;
    float* dw;
    i64 row_stride;
};

template <class T> struct DbiasParams {
    const T* dy;
    i64 rows, columns, row_stride;
    Column<float> dbias;
};
