// Counts of delta = w1 - w0: exact zeros, |delta| <= tol, changes that bf16 absorbs, max |delta|,
// and changed elements per row.
//
// Sparsity of an update as Mukherjee et al. 2025 measure it (arXiv:2505.11711, §3).
//
// | operand | shape  | dtype               | layout                                 |
// |---------|--------|---------------------|----------------------------------------|
// | w0, w1  | [N, K] | f32, bf16, f16, f64 | contiguous rows, any stride, any alignment |
// | row_nnz | [N]    | i64                 | any stride, may be null                |
// | result  | [1]    | struct              |                                        |
//
// Mapping: one warp per row at a time, 8 warps per block, as many blocks as fill the device; the
// block that is done last adds the blocks' counts. 16-byte loads where both rows are aligned.
// Traffic: 2·N·K elements, about 6 flops each; 8·N bytes if row_nnz is wanted.
//
//     for each row of this warp:
//         for each element: delta in f64, three counts and a maximum in registers
//         if the maximum is not finite: look for the first value to blame
//         row_nnz = K - (the row's exact zeros over all lanes)
//     counts over the block, then over the blocks
//
// Numerics: counts and a maximum, exact in any order. The first value that is not finite is found
// by the smallest key row·3K + operand·K + column, operand 2 being a difference that overflows.
#include "common.cuh"
#include "sparsity_stats.h"

static constexpr int WARPS = THREADS / WARP;

template <class A, class B> struct Same {
    static constexpr bool yes = false;
};
template <class A> struct Same<A, A> {
    static constexpr bool yes = true;
};

// bf16 of a number, to nearest, ties to even, in the upper half.
__device__ __forceinline__ u32 bf16_bits(float x) {
    const u32 bits = __float_as_uint(x);
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// One row's counts of a lane. `delta` holds the bits of max |delta|, which order as the numbers do,
// with infinity and then NaN above all of them.
struct RowCounts {
    u32 equal, within, absorbed;
    u64 delta;
};

template <class T> __device__ __forceinline__ void count(RowCounts& r, T old, T now, double tol) {
    const double delta = fabs(to_f64(now) - to_f64(old));
    const bool equal = delta == 0.0;
    r.equal += equal;
    r.within += delta <= tol;
    if (!Same<T, bf16>::yes)
        r.absorbed += !equal && bf16_bits(to_f32(old)) == bf16_bits(to_f32(now));
    const u64 bits = (u64)__double_as_longlong(delta);
    r.delta = bits > r.delta ? bits : r.delta;
}

// The key of this lane's first value in a row that is not finite.
template <class T>
__device__ __forceinline__ i64 first_bad(const T* w0, const T* w1, i64 row, i64 columns) {
    i64 first = NO_KEY;
    for (i64 j = threadIdx.x % WARP; j < columns; j += WARP) {
        const double a = to_f64(w0[j]), b = to_f64(w1[j]);
        if (fabs(b - a) < INF_F64) continue;
        i64 key = row * 3 * columns + 2 * columns;
        if (!(fabs(b) < INF_F64)) key = row * 3 * columns + columns + j;
        if (!(fabs(a) < INF_F64)) key = row * 3 * columns + j;
        if (key < first) first = key;
    }
    return first;
}

// This lane's share of a row, added to `c`; how many of its elements are equal.
template <class T>
__device__ __forceinline__ u32 count_row(SparsityCounts& c, const SparsityStatsParams& p, i64 row) {
    constexpr int N = Vec16<T>::N;
    const T *w0 = (const T*)p.w0 + row * p.w0_stride, *w1 = (const T*)p.w1 + row * p.w1_stride;
    const i64 lane = threadIdx.x % WARP;
    const i64 whole = aligned16(w0) && aligned16(w1) ? p.columns / N * N : 0;
    RowCounts r = {0, 0, 0, 0};
#pragma unroll 2
    for (i64 j = lane * N; j < whole; j += WARP * N) {
        Vec16<T> a, b;
        a.raw = ptx_load_stream(w0 + j);
        b.raw = ptx_load_stream(w1 + j);
#pragma unroll
        for (int k = 0; k < N; ++k) count(r, a.at[k], b.at[k], p.tol);
    }
    for (i64 j = whole + lane; j < p.columns; j += WARP) count(r, w0[j], w1[j], p.tol);
    c.equal += r.equal;
    c.within += r.within;
    c.absorbed += r.absorbed;
    const double delta = __longlong_as_double((i64)r.delta);
    c.max_delta = fmax(c.max_delta, delta);
    // All lanes look, as columns are dealt to lanes in another way here.
    if (__any_sync(ALL_LANES, !(delta < INF_F64)))
        c.bad = Min()(c.bad, first_bad(w0, w1, row, p.columns));
    return r.equal;
}

// The counts of all threads of the block.
__device__ __forceinline__ SparsityCounts of_block(SparsityCounts c) {
    __shared__ i64 counts[WARPS];
    __shared__ double deltas[WARPS];
    c.equal = block_reduce<THREADS>(c.equal, (i64)0, Sum(), counts);
    c.within = block_reduce<THREADS>(c.within, (i64)0, Sum(), counts);
    c.absorbed = block_reduce<THREADS>(c.absorbed, (i64)0, Sum(), counts);
    c.bad = block_reduce<THREADS>(c.bad, NO_KEY, Min(), counts);
    c.max_delta = block_reduce<THREADS>(c.max_delta, 0.0, Max(), deltas);
    return c;
}

template <class T> __device__ __forceinline__ void sparsity_stats(const SparsityStatsParams& p) {
    SparsityCounts c = {0, 0, 0, NO_KEY, 0.0};
    for (i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / WARP; row < p.rows;
         row += (i64)gridDim.x * WARPS) {
        const i64 own = count_row<T>(c, p, row);
        if (!p.row_nnz.at) continue;
        const i64 equal = warp_reduce(own, Sum());
        if (threadIdx.x % WARP == 0) p.row_nnz.set(row, p.columns - equal);
    }
    c = of_block(c);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = c;
    if (!last_block(p.ticket, gridDim.x)) return;
    c = {0, 0, 0, NO_KEY, 0.0};
    for (i64 i = threadIdx.x; i < gridDim.x; i += THREADS) {
        const SparsityCounts other = p.partial[i];
        c.equal += other.equal;
        c.within += other.within;
        c.absorbed += other.absorbed;
        c.bad = Min()(c.bad, other.bad);
        c.max_delta = fmax(c.max_delta, other.max_delta);
    }
    c = of_block(c);
    if (threadIdx.x == 0) *p.result = c;
}

KERNEL(sparsity_stats_f32, (THREADS), SparsityStatsParams) { sparsity_stats<float>(p); }
KERNEL(sparsity_stats_bf16, (THREADS), SparsityStatsParams) { sparsity_stats<bf16>(p); }
KERNEL(sparsity_stats_f16, (THREADS), SparsityStatsParams) { sparsity_stats<f16>(p); }
KERNEL(sparsity_stats_f64, (THREADS), SparsityStatsParams) { sparsity_stats<double>(p); }
