// What the two launches of attention_mma_bwd.cu share: statistics of rows, products of fragments,
// p and ds of a pair.
#pragma once

#include "attention_mma.cuh"

struct RowStats {
    float m, inverse, delta, unused;
};

// sum[..] += factor·left·right for both rows of a thread, those that `takes` names; `right` is
// summed over its rows from `from` on.
template <class T, int D, int N>
__device__ __forceinline__ void add_product(float (&sum)[D / 8][4], const u32 (&left)[N][4],
                                            const Tile<T, D>& right, int from,
                                            const float (&factor)[2], const bool (&takes)[2]) {
#pragma unroll
    for (int c = 0; c < D / 16; ++c) {
        float block[2][4] = {};
#pragma unroll
        for (int k = 0; k < N; ++k) {
            u32 b[4];
            right.right_down(b, from + k * STEP, c * 16);
            Half<T>::mma(block[0], left[k], b);
            Half<T>::mma(block[1], left[k], b + 2);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (takes[e / 2])
                    sum[2 * c + i][e] = fma(factor[e / 2], block[i][e], sum[2 * c + i][e]);
    }
}

// As `multiply`, with the warp's rows of a tile on the left, which stay in shared memory.
template <class T, int D, int N>
__device__ __forceinline__ void multiply_rows(float (&s)[N][4], const Tile<T, D>& left,
                                              const Tile<T, D>& right, int from) {
#pragma unroll
    for (int n = 0; n < N; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
// Unrolled whole, the loads are moved ahead and need more registers than there are.
#pragma unroll 2
    for (int c = 0; c < D / STEP; ++c) {
        u32 a[4], b[4];
        left.left(a, threadIdx.x / WARP * ROWS_OF_WARP, c * STEP);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            right.right(b, from + n * 8, c * STEP);
            Half<T>::mma(s[n], a, b);
            Half<T>::mma(s[n + 1], a, b + 2);
        }
    }
}

// Multiplies a row by the power of two that brings its largest magnitude to 2^14, as far as f32
// goes, and returns the inverse; bf16 has the exponents of f32 and needs none.
template <class T, int N> __device__ __forceinline__ float fit(float (&x)[N][4], int h) {
    if (Half<T>::SHIFT == 0.0f) return 1.0f;
    float largest = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n)
        largest = fmaxf(largest, fmaxf(fabsf(x[n][2 * h]), fabsf(x[n][2 * h + 1])));
    const int exponent = __float_as_int(quad_reduce(largest, Max())) >> 23,
              whole = exponent < 15 ? 15 : exponent;
    const float factor = __int_as_float((268 - whole) << 23);
#pragma unroll
    for (int n = 0; n < N; ++n) x[n][2 * h] *= factor, x[n][2 * h + 1] *= factor;
    return __int_as_float((whole - 14) << 23);
}

// p of a visible pair, and ds in the place of dp.
__device__ __forceinline__ float differentiate(float s, float& dp, const RowStats& stats,
                                               float scale, float scale2) {
    const float p = power_of_2(s * scale2 - stats.m) * stats.inverse;
    dp = scale * p * (dp - stats.delta);
    return p;
}
