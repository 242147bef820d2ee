// Losses with weights and their total, as pair and group losses take them.
#pragma once

#include "types.h"

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
