// Weighted totals of a list of losses: what pair and group losses end with.
#pragma once

#include "common.cuh"

// `count` losses with weights, 1/count each where none are given, and their total.
template <class R> struct LossTerms {
    Column<const R> weight;
    Column<R> loss;
    double* total;    // null if not wanted
    double* partial;  // a value a block
    u32* ticket;
    i64 count;

    __device__ __forceinline__ double weigh(i64 i) const {
        return wide_or(weight, i, 1.0 / (double)count);
    }

    // Adds the blocks' shares of the total; called by all threads of every block, each with its own
    // share. The tree depends on the number of terms alone.
    template <int THREADS> __device__ __forceinline__ void finish(double share) const {
        __shared__ double warps[THREADS / WARP];
        share = block_reduce<THREADS>(share, 0.0, Sum(), warps);
        if (!total) return;
        if (threadIdx.x == 0) partial[blockIdx.x] = share;
        if (!last_block(ticket, gridDim.x)) return;
        double sum = 0.0;
        for (i64 b = threadIdx.x; b < gridDim.x; b += THREADS) sum += partial[b];
        sum = block_reduce<THREADS>(sum, 0.0, Sum(), warps);
        if (threadIdx.x == 0) *total = sum;
    }
};

__device__ __forceinline__ double sigmoid(double x) {
    const double e = exp(-fabs(x));
    return x >= 0.0 ? 1.0 / (1.0 + e) : e / (1.0 + e);
}

// log sigmoid(x) without overflow or cancellation.
__device__ __forceinline__ double log_sigmoid(double x) {
    return fmin(x, 0.0) - log1p(exp(-fabs(x)));
}

// sigmoid'(x).
__device__ __forceinline__ double bell(double x) { return sigmoid(x) * sigmoid(-x); }
