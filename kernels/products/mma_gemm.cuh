// Products of bf16 and f16 on tensor cores: out[i, j] = Σ_p x(i, p)·w(j, p) + Σ_q s(i, q)·b(j, q),
// then the bias and an addend, all in f32, rounded once.
//
// Every kernel of the family adds in one order, so a row has the same bits for any number of rows,
// whichever kernel computes it and however the work is cut:
//
//     depth        cut into at most 8 chunks of 64·ceil(depth/512) steps
//     chunk        a chain of products from 0, 64 steps after 64 steps; in those, for u = 0..4, one
//                  product over the 16 steps 8u..8u+8 and 32+8u..32+8u+8
//     sum          0 + chunk 0 + chunk 1 + .. + the low-rank chunk, then bias and addend
//
// The low-rank chunk multiplies S, which is f32, as the sum of three numbers of 16 bits: a chain
// over 3·rank steps of every adapter, in blocks of 64 as above. In bf16 the parts are exact.
//
// The 16 steps of a product come from the two halves of a block of 64 because a lane then reads its
// part of a 4-bit row with one 16-byte load (mma_gemm_skinny.cuh), and because 8 neighboring steps
// are the smallest piece that wgmma can take from shared memory.
//
//     mma_gemm_skinny.cuh   up to 16 rows: weights from global memory to registers, split over
//                           chunks; mma_gemm_nf4.cuh: 4-bit weights for them
//     mma_gemm_tile.cuh     more: tiles of 64 or 128 rows x 128 columns; mma_gemm_stage.cuh: their
//                           operands; mma_gemm_wgmma.cuh (sm_90a) and mma_gemm_sync.cuh (sm_80)
#pragma once

#include "product.cuh"
#include "mma_gemm.h"

extern __shared__ __align__(1024) char shared[];

__device__ __forceinline__ u32 shared_address(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

// ---- sums of the chunks -----------------------------------------------------------------------

// The chunks' sums of a piece of the output: one in each block of a cluster, or all in this one,
// SIZE bytes apart.
template <int SIZE, bool CLUSTERED> struct Partials {
    u32 here;  // shared address
    int count;
    int extra;  // bytes from the last chunk's sums to the low-rank chunk's; 0 for none

    // V = 2 or 4 sums from element `at` on: those of all chunks, added in order.
    template <int V> __device__ __forceinline__ void total(int at, float (&sum)[V]) const {
        const u32 from = here + at * 4;
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = 0.0f;
        if (count == CHUNKS) {
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) add(c, from, sum);
        } else {
#pragma unroll 1
            for (int c = 0; c < count; ++c) add(c, from, sum);
        }
        if (extra) add(count - 1, from + extra, sum);
    }
    __device__ __forceinline__ u32 of_chunk(int c, u32 from) const {
        return CLUSTERED ? ptx_cluster_address(from, c) : from + c * SIZE;
    }
    __device__ __forceinline__ void add(int c, u32 from, float (&sum)[2]) const {
        const float2 v = ptx_cluster_load_pair(of_chunk(c, from));
        sum[0] += v.x, sum[1] += v.y;
    }
    __device__ __forceinline__ void add(int c, u32 from, float (&sum)[4]) const {
        const float4 v = ptx_cluster_load_quad(of_chunk(c, from));
        sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
    }
};

// ---- from a sum to the output -----------------------------------------------------------------

// V neighboring values of a row, `count` of which exist.
template <int V, class T>
__device__ __forceinline__ void store_row(T* to, const float (&sum)[V], int count) {
    union {
        T at[V];
        u32 words[V / 2];
    } out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = from_f32<T>(sum[j]);
    if (count >= V && ((u64)to & 3) == 0) {
#pragma unroll
        for (int j = 0; j < V / 2; ++j) ((u32*)to)[j] = out.words[j];
        return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j)
        if (j < count) to[j] = out.at[j];
}

// An element of an adapter's first product.
template <class T, class W>
__device__ __forceinline__ void finish_factor(const GemmParams<T, W>& p, i64 row, i64 column,
                                              float value) {
    const i64 g = p.lora.of(row);
    if (g == p.only || (g < 0 && p.only == 0))
        p.factor[row * p.factor_stride + column] = g < 0 ? 0.0f : value;
    if (!p.factor_parts) return;
    T* parts = p.factor_parts + row * 3 * p.columns + column;
    float rest = g == p.only ? value : 0.0f;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
        const T rounded = from_f32<T>(rest);
        parts[part * p.columns] = rounded;
        // What is no number leaves no rest.
        const float left = rest - to_f32(rounded);
        rest = left - left == 0.0f ? left : 0.0f;
    }
}

// x, or N if it is larger.
template <int N> __device__ __forceinline__ int at_most(i64 x) { return x < N ? (int)x : N; }

// Finishes the outputs (row0.., column0..), R rows of V neighbors, as far as they exist.
template <int R, int V, class T, class W>
__device__ __forceinline__ void finish(const GemmParams<T, W>& p, i64 row0, i64 column0,
                                       float (&sum)[R][V]) {
    const int rows = at_most<R>(p.rows - row0), columns = at_most<V>(p.columns - column0);
    if (rows <= 0 || columns <= 0) return;
    if (p.factor) {
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
            for (int j = 0; j < V; ++j)
                if (i < rows && j < columns)
                    finish_factor(p, row0 + i, column0 + j, (float)(p.scale * (double)sum[i][j]));
        return;
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
        if (i >= rows) continue;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            if (j >= columns) continue;
            if (p.bias.at) sum[i][j] += to_f32(p.bias.at[(column0 + j) * p.bias.stride]);
            if (p.addend)
                sum[i][j] =
                    to_f32(p.addend[(row0 + i) * p.addend_stride + column0 + j]) + sum[i][j];
        }
        store_row(p.y + (row0 + i) * p.y_stride + column0, sum[i], columns);
    }
}

// True if rows of a matrix can be read in pieces of `bytes`.
template <class T> __device__ __forceinline__ bool in_pieces(const T* at, i64 stride, int bytes) {
    return (((u64)at | (u64)(stride * (i64)sizeof(T))) & (bytes - 1)) == 0;
}

// Two values of T in a register, the first in the low half.
template <class T> __device__ __forceinline__ u32 pair_of(T low, T high) {
    return (u32)low.bits | (u32)high.bits << 16;
}
