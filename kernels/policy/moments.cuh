// Statistics of a set of values that a warp or a block looks at together.
#pragma once

#include "common.cuh"
#include "moments.h"

// How the threads that share a set of values combine: a warp, or the block.
struct WarpTeam {
    static constexpr int SIZE = WARP;
    __device__ __forceinline__ int rank() const { return threadIdx.x % WARP; }
    template <class T, class Op> __device__ __forceinline__ T reduce(T x, T, Op op) const {
        return warp_reduce(x, op);
    }
};
template <int THREADS> struct BlockTeam {
    static constexpr int SIZE = THREADS;
    double* partial;
    __device__ __forceinline__ int rank() const { return threadIdx.x; }
    template <class Op>
    __device__ __forceinline__ double reduce(double x, double neutral, Op op) const {
        return block_reduce<THREADS>(x, neutral, op, partial);
    }
    template <class Op> __device__ __forceinline__ i64 reduce(i64 x, i64 neutral, Op op) const {
        return block_reduce<THREADS>(x, neutral, op, (i64*)partial);
    }
};

__device__ __forceinline__ bool is_nan(double x) { return x != x; }

struct Moments {
    i64 count;
    double min, rise, variance;  // mean = min + rise
    bool equal;                  // max == min, or there is nothing
};

// Two-pass moments of those of value(0) .. value(n - 1) that are not NaN, about the smallest of
// them: differences of equal or nearby numbers are exact, so equal values have variance 0, not
// rounding noise.
template <class Value, class Team>
__device__ __forceinline__ Moments moments(i64 n, const Value& value, int ddof, const Team& team) {
    i64 count = 0;
    double low = INF_F64, high = -INF_F64;
    for (i64 i = team.rank(); i < n; i += Team::SIZE) {
        const double x = value(i);
        if (is_nan(x)) continue;
        ++count;
        low = fmin(low, x);
        high = fmax(high, x);
    }
    count = team.reduce(count, (i64)0, Sum());
    low = team.reduce(low, INF_F64, Min());
    high = team.reduce(high, -INF_F64, Max());
    if (count == 0 || low == high) return {count, count == 0 ? 0.0 : low, 0.0, 0.0, true};
    double sum = 0.0;
    for (i64 i = team.rank(); i < n; i += Team::SIZE) {
        const double x = value(i);
        if (!is_nan(x)) sum += x - low;
    }
    const double rise = team.reduce(sum, 0.0, Sum()) / (double)count;
    double squares = 0.0;
    for (i64 i = team.rank(); i < n; i += Team::SIZE) {
        const double x = value(i), d = x - low - rise;
        if (!is_nan(x)) squares += d * d;
    }
    squares = team.reduce(squares, 0.0, Sum());
    return {count, low, rise, squares / (double)(count - ddof), false};
}

__device__ __forceinline__ double guarded_std(double variance, double eps, i64 form) {
    if (form == EPS_FORM_ADD_TO_STD) return sqrt(variance) + eps;
    if (form == EPS_FORM_ADD_TO_VARIANCE) return sqrt(variance + eps);
    return sqrt(fmax(variance, eps));
}
