// Products with up to 16 rows: the weight is the left operand of the tensor core, and goes from global
// memory to registers.
//
// A warp owns 32 rows of W and one chunk of the depth. A block has 8 warps, a cluster of C blocks
// (sm_90a: 8, else 1) 32·C rows of W and all 8 chunks; the chunks' sums meet in shared memory, where
// each block finishes 32 rows of W. There is no second launch and no memory in between.
//
// With mma.m16n8k16 lane (g, t) = (lane / 4, lane % 4) holds 4 steps of rows g and g+8 of W and of row
// g of X. In a block of 64 steps, its part of product u is the 4 steps from 8u + 4·(t % 2) + 32·(t / 2).
#pragma once

#include "tensor.cuh"

static constexpr int FEW_THREADS = 256;
static constexpr int FEW_ROWS = 32;

// Where lane t's 4 steps of product 0 begin.
__device__ __forceinline__ int few_step() { return threadIdx.x % 2 * 4 + threadIdx.x % 4 / 2 * 32; }
// Row of W of lane g in half `h` of tile `i`.
__device__ __forceinline__ int few_row(int i, int h) { return threadIdx.x % WARP / 4 + 16 * i + 8 * h; }

// A matrix whose rows can be read in pieces of 8 bytes, of a depth that is a multiple of 4.
template <class T> struct FewDense {
    const T* at[2][2];
    struct Raw { uint2 at[2][2][4]; };

    __device__ __forceinline__ FewDense(const Dense<T>& w, i64 row0, i64 rows, i64 begin) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const i64 row = row0 + few_row(i, h);
                at[i][h] = w.at + (row < rows ? row : rows - 1) * w.lane + begin + few_step();
            }
    }
    __device__ __forceinline__ void at_step(int, int) {}
    __device__ __forceinline__ void load(Raw& raw, int k, int end) const {
#pragma unroll
        for (int u = 0; u < 4; ++u) {
            const bool there = k + 8 * u + few_step() < end;
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h) raw.at[i][h][u] = there ? *(const uint2*)(at[i][h] + k + 8 * u) : make_uint2(0, 0);
        }
    }
    __device__ __forceinline__ void fragment(const Raw& raw, int i, int u, u32 (&a)[4]) const {
        a[0] = raw.at[i][0][u].x, a[1] = raw.at[i][1][u].x, a[2] = raw.at[i][0][u].y, a[3] = raw.at[i][1][u].y;
    }
};

// Rows of X as right operands, N tiles of 8 rows; readable in pieces of 8 bytes.
template <class T, int N> struct FewInput {
    const T* at[N];
    struct Raw { uint2 at[N][4]; };

    __device__ __forceinline__ FewInput(const T* x, i64 stride, i64 rows, i64 begin) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const i64 row = threadIdx.x % WARP / 4 + 8 * n;
            at[n] = x + (row < rows ? row : rows - 1) * stride + begin + few_step();
        }
    }
    __device__ __forceinline__ void load(Raw& raw, int u, int k, int end) const {
        const bool there = k + 8 * u + few_step() < end;
#pragma unroll
        for (int n = 0; n < N; ++n) raw.at[n][u] = there ? *(const uint2*)(at[n] + k + 8 * u) : make_uint2(0, 0);
    }
};

// The sums of a warp: 32 rows of W, 8·N rows of X.
template <int N> struct FewSums { float at[2][N][4]; };

// sums += w·x over `end` steps, 64 at a time. Two blocks of steps of W and one of X are on their
// way: registers are filled again as soon as they are used.
template <class T, int N, class Weight>
__device__ __forceinline__ void few_chain(FewSums<N>& sums, Weight& w, const FewInput<T, N>& x, int end) {
    typename Weight::Raw raw[2];
    typename FewInput<T, N>::Raw in;
    w.load(raw[0], 0, end);
    if (STEPS < end) w.load(raw[1], STEPS, end);
#pragma unroll
    for (int u = 0; u < 4; ++u) x.load(in, u, 0, end);
#pragma unroll 1
    for (int k = 0; k < end; k += 2 * STEPS) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const int step = k + side * STEPS;
            if (step >= end) break;
            w.at_step(step, end);
#pragma unroll
            for (int u = 0; u < 4; ++u) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    u32 a[4];
                    w.fragment(raw[side], i, u, a);
#pragma unroll
                    for (int n = 0; n < N; ++n) {
                        const u32 b[2] = {in.at[n][u].x, in.at[n][u].y};
                        mma(sums.at[i][n], a, b, T{});
                    }
                }
                if (step + STEPS < end) x.load(in, u, step + STEPS, end);
            }
            if (step + 2 * STEPS < end) w.load(raw[side], step + 2 * STEPS, end);
        }
    }
}

template <int N> __device__ __forceinline__ void clear(FewSums<N>& sums) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums.at[i][n][e] = 0.0f;
}

// The sums of a chunk as [row of X][row of W]; a pitch of 4 more words puts a warp's stores into 32 banks.
template <int N> __device__ __forceinline__ void few_park(float* tile, int pitch, const FewSums<N>& sums) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) tile[(8 * n + threadIdx.x % 4 * 2 + e % 2) * pitch + few_row(i, e / 2)] = sums.at[i][n][e];
}

// `make(row0, begin, end)`: the weight from row row0 on, for the warp that calls it, and its steps. `tiles` may be memory that the
// weight uses until then.
template <class T, int N, class W, class Make>
__device__ __forceinline__ void few(const TensorParams<T, W>& p, float* tiles, Make make) {
    const int groups = (int)p.cluster, per_block = CHUNKS / groups, rank = groups > 1 ? ptx_cluster_rank() : 0;
    const int warp = threadIdx.x / WARP, group = warp % groups, inner = warp / groups;
    const i64 column0 = (i64)(blockIdx.x / groups) * groups * FEW_ROWS;
    const i64 steps = chunk_steps(p.depth), begin = (rank * per_block + inner) * steps;
    const i64 end = begin + steps < p.depth ? begin + steps : p.depth;
    const int pitch = FEW_ROWS * groups + 4, size = 8 * N * pitch;
    const bool works = begin < end && column0 + group * FEW_ROWS < p.columns;
    FewSums<N> sums;
    clear(sums);
    if (works) {
        auto w = make(column0 + group * FEW_ROWS, begin, end);
        few_chain<T, N>(sums, w, FewInput<T, N>(p.x, p.x_stride, p.rows, begin), (int)(end - begin));
    }
    __syncthreads();
    if (works) few_park<N>(tiles + inner * size + group * FEW_ROWS, pitch, sums);
    __syncthreads();
    if (groups > 1) ptx_cluster_sync();
    const int pair = threadIdx.x % (FEW_ROWS / 2) * 2, row = threadIdx.x / (FEW_ROWS / 2);
    const int column = rank * FEW_ROWS + pair;
    if (row < 8 * N) {
        const Partials partials = {tiles, per_block, size, chunk_count(p.depth)};
        float sum[1][2];
        if (row < p.rows && column0 + column < p.columns) partials.total<2>(row * pitch + column, sum[0]);
        finish<1, 2>(p, row, column0 + column, sum);
    }
    if (groups > 1) ptx_cluster_sync();
}

template <class T, int N> __device__ __forceinline__ void matmul_few(const TensorParams<T, Dense<T>>& p) {
    few<T, N>(p, (float*)shared, [&](i64 row0, i64 begin, i64) { return FewDense<T>(p.right, row0, p.columns, begin); });
}
