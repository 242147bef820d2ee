// Operands of products, and what kernels of one chain per output take.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;

// Outputs of a block.
static constexpr int ROWS = 32, COLUMNS = 64;

// A strided matrix, and a walk through it in equal strides.
template <class T> struct Strided {
    const T* at;
    i64 lane_stride, step_stride;
    __device__ __forceinline__ bool along_steps() const { return step_stride == 1; }
    __device__ __forceinline__ i64 place(i64 l, i64 s) const {
        return l * lane_stride + s * step_stride;
    }
    template <class V> __device__ __forceinline__ V get(i64 place) const {
        return As<V, T>::of(at[place]);
    }
};

// One factor of an adapter as the right side of a product.
struct Factor {
    const void* at;
    i64 lane_stride, step_stride;
    double scale;
};

struct Adapters {
    const Factor* list;
    i64 count, rank;
    Column<const i32> index;  // not given: every row takes adapter 0

    __device__ __forceinline__ i64 of(i64 row) const { return index.at ? index.get(row) : 0; }
    template <class T> __device__ __forceinline__ Strided<T> operand(i64 g) const {
        return {(const T*)list[g].at, list[g].lane_stride, list[g].step_stride};
    }
    // True if a row of row0.. takes adapter g. Called by all threads.
    __device__ __forceinline__ bool used(i64 g, i64 row0, i64 rows) const {
        const i64 row = row0 + threadIdx.x;
        return __syncthreads_or(threadIdx.x < ROWS && row < rows && of(row) == g);
    }
};

template <class T, class W, class A> struct ProductParams {
    Strided<T> left;
    i64 rows, columns, depth;
    Adapters lora;
    const A* low;  // [rows, rank]
    i64 low_stride;
    Column<const T> bias;
    T* y;
    const T* addend;  // added last: the residual, or y itself; null for none
    i64 row_stride, addend_stride;
    W right;
};
