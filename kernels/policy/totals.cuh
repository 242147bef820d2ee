// Totals of a launch in f64: sums, then a minimum, a maximum, and maxima of magnitudes.
#pragma once

#include "common.cuh"

// ALL totals of THREADS threads; the minimum is number MIN, the maximum behind it.
template <int MIN, int ALL, int THREADS> struct Totals {
    static constexpr int WARPS = THREADS / WARP;

    static __device__ __forceinline__ void clear(double* sum) {
#pragma unroll
        for (int k = 0; k < ALL; ++k) sum[k] = 0.0;
        sum[MIN] = INF_F64;
        sum[MIN + 1] = -INF_F64;
    }

    // Adds `mine` of all threads into out[ALL]: a butterfly, then the warps in order.
    static __device__ __forceinline__ void combine(const double* mine, double* out,
                                                   double (*shared)[ALL]) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
        for (int k = 0; k < ALL; ++k) {
            const double x = k < MIN    ? warp_reduce(mine[k], Sum())
                             : k == MIN ? warp_reduce(mine[k], Min())
                                        : warp_reduce(mine[k], Max());
            if (lane == 0) shared[warp][k] = x;
        }
        __syncthreads();
        if (threadIdx.x < ALL) {
            double x = shared[0][threadIdx.x];
            for (int w = 1; w < WARPS; ++w) {
                const double y = shared[w][threadIdx.x];
                x = threadIdx.x < MIN ? x + y : threadIdx.x == MIN ? fmin(x, y) : fmax(x, y);
            }
            out[threadIdx.x] = x;
        }
        __syncthreads();
    }
};
