// Products of bf16 and f16 on tensor cores: out[i, j] = Σ_p x(i, p)·w(j, p), then a low-rank part, the
// bias and an addend, all in f32, rounded once.
//
// Every kernel of the family adds in one order, so a row has the same bits for any number of rows,
// whichever kernel computes it and however the work is cut:
//
//     depth        cut into at most 8 chunks of 64·ceil(depth/512) steps
//     chunk        a chain of products from 0, 64 steps after 64 steps; in those, for u = 0..4, one
//                  product over the 16 steps 8u..8u+8 and 32+8u..32+8u+8
//     sum          0 + chunk 0 + chunk 1 + .., then the adapter's rank steps, bias, addend
//
// The 16 steps of a product come from the two halves of a block of 64 because a lane then reads its
// part of a 4-bit row with one 16-byte load (tensor_few.cuh), and because 8 neighbouring steps are the
// smallest piece that wgmma can take from shared memory.
//
//     tensor_few.cuh     up to 16 rows: weights from global memory to registers, split over chunks
//     tensor_tile.cuh    more: tiles of 64 or 128 rows x 128 columns; mma.sync, or wgmma on sm_90a
#pragma once

#include "product.cuh"

static constexpr int CHUNKS = 8;
static constexpr int STEPS = 64;

template <class T, class W> struct TensorParams {
    const T* x;
    i64 x_stride, rows, columns, depth;
    Adapters lora;
    const float* low;  // [rows, rank]: what the adapter's second factor is multiplied with
    i64 low_stride;
    Column<const T> bias;
    T* y;
    const T* addend;  // added last: the residual, or y itself; null for none
    i64 y_stride, addend_stride;
    float* factor;  // instead of y: scale·sum in the rows of adapter `only`, 0 in those of none if it is 0
    i64 factor_stride, only;
    double scale;
    i32 chunk, chunks;  // 64·ceil(depth/512) steps; how many there are
    i32 cluster;        // 8 blocks of a chunk each share a piece of the output, or 1
    i32 pad;
    W right;
};

extern __shared__ __align__(1024) char shared[];

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- sums of the chunks -----------------------------------------------------------------------

// The chunks' sums of a piece of the output: one in each block of a cluster, or all in this one, SIZE
// bytes apart.
template <int SIZE, bool CLUSTERED> struct Partials {
    u32 here;  // shared address
    int count;

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
    }
    __device__ __forceinline__ u32 of_chunk(int c, u32 from) const { return CLUSTERED ? ptx_cluster_address(from, c) : from + c * SIZE; }
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

// sum[i][j] += low[row0 + i, q]·factor(column0 + j, q), q ascending.
template <int R, int V, class T> __device__ __forceinline__ void low_rank_chain(
    const Dense<T>& factor, const float* low, i64 low_stride, i64 rank, int rows, int columns, float (&sum)[R][V]) {
#pragma unroll 2
    for (i64 q = 0; q < rank; ++q) {
        float b[V], s[R];
#pragma unroll
        for (int j = 0; j < V; ++j) b[j] = j < columns ? factor.template get<float>(factor.place(j, q)) : 0.0f;
#pragma unroll
        for (int i = 0; i < R; ++i) s[i] = i < rows ? low[i * low_stride + q] : 0.0f;
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
            for (int j = 0; j < V; ++j) sum[i][j] = fma(s[i], b[j], sum[i][j]);
    }
}

template <int R, int V, class T> __device__ __forceinline__ void add_adapters(
    const Adapters& a, const float* low, i64 low_stride, i64 row0, int rows, i64 column0, int columns, float (&sum)[R][V]) {
    const float* from = low + row0 * low_stride;
    if (!a.index.at) {
        Dense<T> factor = a.template side<T>(0);
        factor.at += factor.place(column0, 0);
        return low_rank_chain(factor, from, low_stride, a.rank, rows, columns, sum);
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const i64 g = i < rows ? a.of(row0 + i) : -1;
        if (g < 0 || g >= a.count) continue;
        Dense<T> factor = a.template side<T>(g);
        factor.at += factor.place(column0, 0);
        float one[1][V];
#pragma unroll
        for (int j = 0; j < V; ++j) one[0][j] = sum[i][j];
        low_rank_chain(factor, from + i * low_stride, low_stride, a.rank, 1, columns, one);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[i][j] = one[0][j];
    }
}

// V neighbouring values of a row, `count` of which exist.
template <int V, class T> __device__ __forceinline__ void store_row(T* to, const float (&sum)[V], int count) {
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

// x, or N if it is larger.
template <int N> __device__ __forceinline__ int at_most(i64 x) { return x < N ? (int)x : N; }

// Finishes the outputs (row0.., column0..), R rows of V neighbours, as far as they exist.
template <int R, int V, class T, class W>
__device__ __forceinline__ void finish(const TensorParams<T, W>& p, i64 row0, i64 column0, float (&sum)[R][V]) {
    const int rows = at_most<R>(p.rows - row0), columns = at_most<V>(p.columns - column0);
    if (rows <= 0 || columns <= 0) return;
    if (p.factor) {
#pragma unroll
        for (int i = 0; i < R; ++i) {
            if (i >= rows) continue;
            const i64 g = p.lora.of(row0 + i);
            if (g != p.only && !(g < 0 && p.only == 0)) continue;
#pragma unroll
            for (int j = 0; j < V; ++j)
                if (j < columns) p.factor[(row0 + i) * p.factor_stride + column0 + j] = g < 0 ? 0.0f : (float)(p.scale * (double)sum[i][j]);
        }
        return;
    }
    if (p.lora.count > 0) add_adapters<R, V, T>(p.lora, p.low, p.low_stride, row0, rows, column0, columns, sum);
#pragma unroll
    for (int i = 0; i < R; ++i) {
        if (i >= rows) continue;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            if (j >= columns) continue;
            if (p.bias.at) sum[i][j] += to_f32(p.bias.at[(column0 + j) * p.bias.stride]);
            if (p.addend) sum[i][j] = to_f32(p.addend[(row0 + i) * p.addend_stride + column0 + j]) + sum[i][j];
        }
        store_row(p.y + (row0 + i) * p.y_stride + column0, sum[i], columns);
    }
}

// True if rows of a matrix can be read in pieces of `bytes`.
template <class T> __device__ __forceinline__ bool in_pieces(const T* at, i64 stride, int bytes) {
    return (((u64)at | (u64)(stride * (i64)sizeof(T))) & (bytes - 1)) == 0;
}

// Two values of T in a register, the first in the low half.
__device__ __forceinline__ u32 pack(float low, float high, bf16) { return ptx_pack_bf16(low, high); }
__device__ __forceinline__ u32 pack(float low, float high, f16) { return ptx_pack_f16(low, high); }
template <class T> __device__ __forceinline__ u32 pair_of(T low, T high) { return (u32)low.bits | (u32)high.bits << 16; }
