// Sums over a row of logits: log Σ exp(z), entropy, Σ p², and what kernels build from them.
//
//     top        max t                         m = logit_scale·top, the largest z
//     sum        Σ 2^d       = Σ exp(z - m)    d = (t - top)·c, c = `log2_scale`
//     weighted   Σ d·2^d                       entropy = log(sum) - ln 2·weighted/sum
//     squares    Σ 2^2d                        log Σ p² = log(squares) - 2·log(sum)
//     rest       Σ 2^d without the target      1 - p = rest/sum, which does not cancel near p = 1
//
// One pass. A thread keeps the maximum of what it has seen and its sums relative to it (online
// softmax, arXiv:1805.02867); a larger maximum multiplies them by 2^(old - new), once per tile, not
// once per logit. One exponential (ex2) per logit.
//
// Numerics: a thread's sums are f32, in four interleaved chains per tile; from the warp on they are
// f64. Lanes, warps and the cluster's blocks are merged by butterflies, so every thread gets the
// same bits. The maximum's own term is exactly 1: sums are >= 1, log-probs <= 0, and a certain
// token has exactly 0. d is cut at -200, where 2^d is 0: 0·(-inf) stays out of the sums. A NaN or
// +inf logit makes its row NaN; -inf is a token that cannot occur; a row of nothing else is
// `empty`.
#pragma once

#include "rows.cuh"

// One thread's sums relative to its maximum, in powers of two: d = (t - top)·c.
struct OnlineSums {
    float top = LOWEST;
    float sum = 0.0f;       // Σ 2^d
    float weighted = 0.0f;  // Σ d·2^d
    float squares = 0.0f;   // Σ 2^2d
    float rest = 0.0f;      // Σ 2^d without the target's column
};

// What a row's sums are relative to its maximum `top`.
struct RowStats {
    float top;
    double sum, weighted, squares, rest;
    __device__ __forceinline__ bool empty() const { return top == LOWEST && sum == 0.0; }
};

__device__ __forceinline__ float log2_weight(float t, float top, float c) {
    return ptx_max_nan((t - top) * c, FLOOR);
}

// Adds a lane's columns of a tile. `skip` is the target's place among them, -1 if it is elsewhere,
// -2 if it is in no lane of the warp.
template <int COUNT, bool MOMENTS>
__device__ __forceinline__ void accumulate(OnlineSums& o, const float (&t)[COUNT], float c,
                                           int skip) {
    float top = o.top;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) top = fmaxf(top, t[i]);
    const float drop = log2_weight(o.top, top, c), f = ptx_ex2(drop);
    float sum[4] = {}, weighted[4] = {}, squares[4] = {};
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float d = MOMENTS ? log2_weight(t[i], top, c) : (t[i] - top) * c, e = ptx_ex2(d);
        sum[i % 4] += e;
        if (MOMENTS) {
            weighted[i % 4] = __fmaf_rn(d, e, weighted[i % 4]);
            squares[i % 4] = __fmaf_rn(e, e, squares[i % 4]);
        }
    }
    const float here = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    float rest = here;
    if (skip != -2) {
        float without = 0.0f;
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            without += i == skip ? 0.0f : ptx_ex2(log2_weight(t[i], top, c));
        if (skip >= 0) rest = without;
    }
    if (MOMENTS) {
        const float w = (weighted[0] + weighted[1]) + (weighted[2] + weighted[3]);
        o.weighted = __fmaf_rn(f, __fmaf_rn(drop, o.sum, o.weighted), w);
        o.squares =
            __fmaf_rn(f * f, o.squares, (squares[0] + squares[1]) + (squares[2] + squares[3]));
    }
    o.sum = __fmaf_rn(f, o.sum, here);
    o.rest = __fmaf_rn(f, o.rest, rest);
    o.top = top;
}

// Shared memory of the reductions.
struct RowShared {
    double warps[WARPS][5];
    double block[5];
    double partial[WARPS];
};

// The sums of groups of `width` lanes, all relative to the group's maximum.
__device__ __forceinline__ RowStats merge(RowStats r, int width, float c, bool moments, bool rest) {
    const float own = r.top;
#pragma unroll
    for (int step = 1; step < width; step *= 2)
        r.top = fmaxf(r.top, __shfl_xor_sync(ALL_LANES, r.top, step));
    const float drop = log2_weight(own, r.top, c);
    const double f = ptx_ex2(drop);
    if (moments) r.weighted = f * (r.weighted + drop * r.sum), r.squares *= f * f;
    r.sum *= f, r.rest *= f;
#pragma unroll
    for (int step = 1; step < width; step *= 2) {
        r.sum += __shfl_xor_sync(ALL_LANES, r.sum, step);
        if (rest) r.rest += __shfl_xor_sync(ALL_LANES, r.rest, step);
        if (moments) {
            r.weighted += __shfl_xor_sync(ALL_LANES, r.weighted, step);
            r.squares += __shfl_xor_sync(ALL_LANES, r.squares, step);
        }
    }
    return r;
}

__device__ __forceinline__ void store(double (&to)[5], const RowStats& r) {
    to[0] = r.top, to[1] = r.sum, to[2] = r.weighted, to[3] = r.squares, to[4] = r.rest;
}

// The row's sums from its threads': lanes, then warps, then blocks, each time a butterfly, so that
// every thread gets the same bits.
__device__ __forceinline__ RowStats reduce_stats(const OnlineSums& o, const RowSet& s, bool moments,
                                                 bool rest, RowShared& shared) {
    const int lane = threadIdx.x % WARP;
    RowStats r =
        merge({o.top, o.sum, o.weighted, o.squares, o.rest}, WARP, s.log2_scale, moments, rest);
    if (lane == 0) store(shared.warps[threadIdx.x / WARP], r);
    __syncthreads();
    const double(&w)[5] = shared.warps[lane % WARPS];
    r = merge({(float)w[0], w[1], w[2], w[3], w[4]}, WARPS, s.log2_scale, moments, rest);
    if (s.cluster == 1) {
        __syncthreads();
        return r;
    }
    if (threadIdx.x == 0) store(shared.block, r);
    ptx_cluster_sync();
    double b[5];
#pragma unroll
    for (int i = 0; i < 5; ++i)
        b[i] = __longlong_as_double(ptx_cluster_load(&shared.block[i], lane & (s.cluster - 1)));
    ptx_cluster_sync();
    return merge({(float)b[0], b[1], b[2], b[3], b[4]}, s.cluster, s.log2_scale, moments, rest);
}

__device__ __forceinline__ u64 to_bits(double x) { return __double_as_longlong(x); }
__device__ __forceinline__ u64 to_bits(u64 x) { return x; }
template <class T> __device__ __forceinline__ T from_bits(u64 bits);
template <> __device__ __forceinline__ double from_bits<double>(u64 bits) {
    return __longlong_as_double(bits);
}
template <> __device__ __forceinline__ u64 from_bits<u64>(u64 bits) { return bits; }

// One value of every block of the row: lane r gets block r's, further lanes `neutral`.
template <class T>
__device__ __forceinline__ T gather_blocks(T x, T neutral, const RowSet& s, RowShared& shared) {
    if (threadIdx.x == 0) shared.block[0] = from_bits<double>(to_bits(x));
    ptx_cluster_sync();
    const int lane = threadIdx.x % WARP;
    const T there = from_bits<T>(ptx_cluster_load(&shared.block[0], lane & (s.cluster - 1)));
    const T y = lane < s.cluster ? there : neutral;
    ptx_cluster_sync();
    return y;
}

// The values of all threads of the row combined; every thread gets the same bits.
template <class T, class Op>
__device__ __forceinline__ T row_reduce(T x, T neutral, Op op, const RowSet& s, RowShared& shared) {
    x = block_reduce<THREADS>(x, neutral, op, (T*)shared.partial);
    return s.cluster == 1 ? x : warp_reduce(gather_blocks(x, neutral, s, shared), op);
}

// A row's sums, reading it once; `target` = -1 leaves `rest` alone.
template <class T>
__device__ __forceinline__ RowStats row_stats(const RowSlice<T>& slice, const RowSet& s, i64 target,
                                              bool moments, uint4* staged, RowShared& shared) {
    constexpr int N = Vec16<T>::N;
    OnlineSums o;
    const u64 vector = (u64)target / N;
    const int lane = threadIdx.x % WARP;
    const int mine = vector % WARP == lane ? (int)(vector % TILE / WARP * N + (u64)target % N) : -1;
    for (i64 tile = slice.first + threadIdx.x / WARP; tile < slice.end; tile += WARPS) {
        float t[RowSlice<T>::COLUMNS];
        read_tile(slice, s, tile, staged, t);
        const int skip = target >= 0 && tile == (i64)(vector / TILE) ? mine : -2;
        if (moments) accumulate<SPAN * N, true>(o, t, s.log2_scale, skip);
        else accumulate<SPAN * N, false>(o, t, s.log2_scale, skip);
    }
    return reduce_stats(o, s, moments, target >= 0, shared);
}

// ---- what a row's sums say ---------------------------------------------------------------------

// log Σ exp(z).
__device__ __forceinline__ double row_lse(const RowSet& s, const RowStats& r) {
    return r.empty() ? -INF_F64 : s.logit_scale * (double)r.top + log(r.sum);
}

// -Σ p·log p = log Σ exp(z - m) - mean(z - m).
__device__ __forceinline__ double row_entropy(const RowStats& r) {
    if (r.empty()) return 0.0;
    const double h = log(r.sum) - LN2 * r.weighted / r.sum;
    return h < 0.0 ? 0.0 : h;
}

// z - lse of one logit.
__device__ __forceinline__ double row_logp(const RowSet& s, const RowStats& r, float t) {
    if (t == -INF_F32 && r.sum == r.sum) return -INF_F64;
    return s.logit_scale * ((double)t - (double)r.top) - log(r.sum);
}
