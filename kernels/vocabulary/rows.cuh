// Rows of logits on the GPU: how the kernels of the vocabulary read, stage and write one.
// row_sums.cuh adds up what is read.
//
// A row is V logits x of f32, bf16 or f16, contiguous, at any address. Its z = k·t(x), where t is
// x, -x or tanh(a·x): scale, softcap and temperature folded into k = `logit_scale` and
// a = `inner_scale` of the `RowSet`.
//
// Mapping. A row is cut into tiles of 128 vectors of 16 bytes: 1,024 logits of 16 bits or 512 of
// f32.
//
//     grid.x    one block per row on sm_80; one cluster of 1, 2, 4 or 8 blocks per row on sm_90a
//     cluster   block r has tiles [r·n, (r + 1)·n), n = `tiles_per_block`: its `RowSlice`
//     block     8 warps; warp w takes tiles w, w + 8, ... of the slice
//     warp      lane l has vectors l, 32 + l, 64 + l, 96 + l of a tile, so that a load of the warp
//               is 512 neighboring bytes
//
// Which thread adds up which column follows from the column's number, V, the dtype and the kernel
// set, never from an address: a row has the same bits wherever it lies and in any batch.
//
// 1. Clusters. A slice of a row up to 768 KB has at most 96 KB, so two blocks fit on a
//    multiprocessor and a kernel that needs the row twice reads it once: it is staged in shared
//    memory. A row of 151,936 bf16 takes a cluster of 4, and a gradient moves 1.005 of T·V read +
//    T·V written; sm_80, where 304 KB do not fit into one block, reads twice: 1.5 (counted, tests
//    of logprob).
// 2. Rows off 16 bytes (seven of eight rows of 16 bits where V is odd) are read in the aligned
//    words that memory has. A vector is cut out of two words by `funnel_shift`; the second is the
//    next lane's and comes by four shuffles. One word more per 128: 1.017 of the bytes, and 2.8
//    warp instructions per 32 logits of bf16 (12.4 -> 15.1). One load per logit instead takes 4.0,
//    and 2.6 times as many memory instructions (counted).
// 3. Loads leave no line in L1 and stores are streamed: caches stay free for what is used again.
// 4. Gradients may overwrite the logits they come from: a thread reads a word before it writes it.
#pragma once

#include "common.cuh"
#include "rows.h"

static constexpr int WARPS = THREADS / WARP;

static constexpr i32 IGNORE = -100;
static constexpr float LOWEST = -3.402823466e38f;
static constexpr float FLOOR = -200.0f;  // 2^FLOOR is 0; keeps 0·(-inf) out of the sums
static constexpr double LN2 = 0.6931471805599453;

// Which row a block works on, and which part of it: rank 0 of the cluster, and its first thread,
// write what a row has one of.
struct RowBlock {
    int rank;
    i64 row;
    __device__ __forceinline__ explicit RowBlock(const RowSet& s)
        : rank(s.cluster == 1 ? 0 : ptx_cluster_rank()), row(blockIdx.x >> s.cluster_shift) {}
    __device__ __forceinline__ bool leads() const { return rank == 0 && threadIdx.x == 0; }
};

// ---- from stored logits to t -------------------------------------------------------------------

// tanh without a branch: 1 - 2/(1 + e^2|x|), and below 0.55, where that cancels, a polynomial in x²
// with a relative error of 1e-9.
__device__ __forceinline__ float tanh_f32(float x) {
    const float u = fabsf(x), s = x * x;
    const float large = __fmaf_rn(-2.0f, ptx_rcp(1.0f + ptx_ex2(2.885390082f * u)), 1.0f);
    float p = -0.0062824577f;
    p = __fmaf_rn(p, s, 0.021077747f);
    p = __fmaf_rn(p, s, -0.053853855f);
    p = __fmaf_rn(p, s, 0.13332602f);
    p = __fmaf_rn(p, s, -0.33333318f);
    const float small = __fmaf_rn(p * s, u, u);
    return copysignf(u < 0.55f ? small : large, x);
}

// t of some logits, in place. -inf marks a token that cannot occur and stays -inf.
// One branch per four logits bounds the temporaries that are alive at once.
template <int COUNT>
__device__ __forceinline__ void transform_all(const RowSet& s, float (&t)[COUNT]) {
    constexpr int AT_ONCE = COUNT < 4 ? COUNT : 4;
#pragma unroll
    for (int first = 0; first < COUNT; first += AT_ONCE) {
        if (s.transform == TRANSFORM_IDENTITY) continue;
#pragma unroll
        for (int i = first; i < first + AT_ONCE; ++i) {
            const float u = s.inner_scale * t[i];
            t[i] = t[i] == -INF_F32 ? t[i] : s.transform == TRANSFORM_NEGATE ? u : tanh_f32(u);
        }
    }
}

__device__ __forceinline__ float transform(const RowSet& s, float x) {
    float t[1] = {x};
    transform_all(s, t);
    return t[0];
}

// dt/dx; sech² by e^(-2|u|), which does not cancel where tanh is close to 1.
__device__ __forceinline__ float transform_derivative(const RowSet& s, float x) {
    if (s.transform == TRANSFORM_IDENTITY) return 1.0f;
    if (s.transform == TRANSFORM_NEGATE) return s.inner_scale;
    const float w = ptx_ex2(-2.885390082f * fabsf(s.inner_scale * x));
    return s.inner_scale * 4.0f * w / ((1.0f + w) * (1.0f + w));
}

__device__ __forceinline__ u32 bits_of(float x) { return __float_as_int(x); }
__device__ __forceinline__ u32 bits_of(bf16 x) { return x.bits; }
__device__ __forceinline__ u32 bits_of(f16 x) { return x.bits; }

template <class T> __device__ __forceinline__ T from_raw(u32 bits);
template <> __device__ __forceinline__ float from_raw<float>(u32 bits) {
    return __int_as_float(bits);
}
template <> __device__ __forceinline__ bf16 from_raw<bf16>(u32 bits) { return {(u16)bits}; }
template <> __device__ __forceinline__ f16 from_raw<f16>(u32 bits) { return {(u16)bits}; }

// N logits in f32.
template <class T> __device__ __forceinline__ void widen(const Vec16<T>& v, float* t) {
#pragma unroll
    for (int k = 0; k < Vec16<T>::N; ++k) t[k] = to_f32(v.at[k]);
}
template <> __device__ __forceinline__ void widen<bf16>(const Vec16<bf16>& v, float* t) {
    const u32 pairs[4] = {v.raw.x, v.raw.y, v.raw.z, v.raw.w};
#pragma unroll
    for (int k = 0; k < 4; ++k)
        t[2 * k] = __int_as_float(pairs[k] << 16),
              t[2 * k + 1] = __int_as_float(pairs[k] & 0xffff0000u);
}

// Multiplies gradients by dt/dx at the logits `x`.
template <class T>
__device__ __forceinline__ void times_derivative(const RowSet& s, const Vec16<T>& x,
                                                 float (&d)[Vec16<T>::N]) {
    if (s.transform == TRANSFORM_IDENTITY) return;
#pragma unroll
    for (int i = 0; i < Vec16<T>::N; ++i) d[i] *= transform_derivative(s, to_f32(x.at[i]));
}

// ---- reading -----------------------------------------------------------------------------------

// The tiles of one row that one block owns.
template <class T> struct RowSlice {
    static constexpr int N = Vec16<T>::N;
    static constexpr int COLUMNS = SPAN * N;  // of a lane in a tile
    const T* row;                             // column 0
    i64 vocab;
    int misalignment;  // elements between the 16-byte boundary before column 0 and it
    i64 first, end;    // tiles

    __device__ __forceinline__ RowSlice(const RowSet& s, const T* row, int rank)
        : row(row), vocab(s.vocab), misalignment((int)((u64)row % 16 / sizeof(T))) {
        const i64 tiles = (u64)(s.vocab + TILE * N - 1) / (TILE * N);
        first = min(tiles, s.tiles_per_block * rank), end = min(tiles, first + s.tiles_per_block);
    }

    // Word w of the row's memory holds columns N·w - misalignment and on. Columns outside [from,
    // to) are not read and come as 0.
    __device__ __forceinline__ Vec16<T> word(i64 w, i64 from, i64 to) const {
        const i64 column = w * N - misalignment;
        Vec16<T> v;
        if (column >= from && column + N <= to) {
            v.raw = ptx_load_stream(row + column);
            return v;
        }
        u64 low = 0, high = 0;
#pragma unroll 1
        for (int k = (int)min((i64)N, to - column) - 1; k >= 0; --k) {
            high = high << 8 * sizeof(T) | low >> (64 - 8 * sizeof(T));
            low <<= 8 * sizeof(T);
            if (column + k >= from) low |= bits_of(row[column + k]);
        }
        v.raw = make_uint4((u32)low, (u32)(low >> 32), (u32)high, (u32)(high >> 32));
        return v;
    }
    __device__ __forceinline__ Vec16<T> word(i64 w) const { return word(w, 0, vocab); }

    // Words of memory that the slice reaches into.
    __device__ __forceinline__ i64 words() const {
        return (end - first) * TILE + (misalignment ? 1 : 0);
    }

    // First column of this lane's vector `k` of a tile.
    __device__ __forceinline__ i64 column(i64 tile, int k) const {
        return (tile * TILE + k * WARP + threadIdx.x % WARP) * N;
    }
};

// 16 bytes that start `misalignment` elements into `a` and go on in `b`.
template <class T>
__device__ __forceinline__ uint4 funnel_shift(const uint4& a, const uint4& b, int misalignment) {
    u32 w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    const int bytes = misalignment * (int)sizeof(T);
#pragma unroll
    for (int i = 0; i < 6; ++i) w[i] = bytes & 8 ? w[i + 2] : w[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) w[i] = bytes & 4 ? w[i + 1] : w[i];
    const int bits = bytes % 4 * 8;
    return make_uint4(__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits),
                      __funnelshift_r(w[2], w[3], bits), __funnelshift_r(w[3], w[4], bits));
}

// N columns of a block's slice from `column` on, whatever word they start in; what lies outside the
// slice is anything. Comes from `staged` if the row is there.
template <class T>
__device__ __forceinline__ Vec16<T> read_columns(const RowSlice<T>& slice, const uint4* staged,
                                                 i64 column) {
    constexpr int N = Vec16<T>::N;
    const i64 from = slice.first * TILE * N, to = min(slice.end * TILE * N, slice.vocab);
    const i64 w = (u64)(column + slice.misalignment) / N;
    const int misalignment = (int)(column + slice.misalignment) % N;
    auto word = [&](i64 w) {
        if (!staged) return slice.word(w, from, to).raw;
        const i64 place = w - slice.first * TILE;
        return place >= 0 && place < slice.words() ? staged[place] : make_uint4(0, 0, 0, 0);
    };
    Vec16<T> v;
    v.raw = word(w);
    if (misalignment) v.raw = funnel_shift<T>(v.raw, word(w + 1), misalignment);
    return v;
}

// Copies a block's slice of a row to shared memory.
template <class T>
__device__ __forceinline__ void stage_slice(const RowSlice<T>& slice, uint4* staged) {
    for (i64 w = threadIdx.x; w < slice.words(); w += THREADS)
        staged[w] = slice.word(slice.first * TILE + w).raw;
}

// A lane's columns of a tile as t, -inf where there is no column. If `staged` is given, the words
// go there too, word w of the row to staged[w - TILE·first].
template <class T>
__device__ __forceinline__ void read_tile(const RowSlice<T>& slice, const RowSet& s, i64 tile,
                                          uint4* staged, float (&t)[RowSlice<T>::COLUMNS]) {
    constexpr int N = Vec16<T>::N;
    const int lane = threadIdx.x % WARP;
    const i64 first = tile * TILE + lane;
    uint4* here = staged + (first - slice.first * TILE);
    Vec16<T> v[SPAN];
#pragma unroll
    for (int k = 0; k < SPAN; ++k) v[k] = slice.word(first + k * WARP);
    if (staged) {
#pragma unroll
        for (int k = 0; k < SPAN; ++k) here[k * WARP] = v[k].raw;
    }
    if (slice.misalignment) {
        // The same address in all lanes: one sector, and no lane waits for another.
        const uint4 next = slice.word((tile + 1) * TILE).raw;
        if (staged && lane == 0 && tile == slice.end - 1) here[TILE] = next;
#pragma unroll
        for (int k = 0; k < SPAN; ++k) {
            // Lane 0 gives lane 31 the first word of the next 32.
            const uint4 give = lane ? v[k].raw : k + 1 < SPAN ? v[(k + 1) % SPAN].raw : next;
            uint4 take;
            take.x = __shfl_sync(ALL_LANES, give.x, lane + 1);
            take.y = __shfl_sync(ALL_LANES, give.y, lane + 1);
            take.z = __shfl_sync(ALL_LANES, give.z, lane + 1);
            take.w = __shfl_sync(ALL_LANES, give.w, lane + 1);
            v[k].raw = funnel_shift<T>(v[k].raw, take, slice.misalignment);
        }
    }
#pragma unroll
    for (int k = 0; k < SPAN; ++k) widen(v[k], t + k * N);
    transform_all(s, t);
    if ((tile + 1) * TILE * N > slice.vocab) {
#pragma unroll
        for (int i = 0; i < SPAN * N; ++i)
            if (slice.column(tile, i / N) + i % N >= slice.vocab) t[i] = -INF_F32;
    }
}

// ---- writing -----------------------------------------------------------------------------------

// Writes a block's slice of a row of gradients, word by word: `gradient(v, column)` turns the
// logits of N columns into their gradients. Columns behind the vocabulary become 0. With `staged` =
// null the logits are read again; each thread reads a word before it writes it, so `out` may be
// the row itself. `reads` = false hands out zeros in place of logits.
template <class T, class F>
__device__ __forceinline__ void write_slice(const RowSlice<T>& slice, const RowSet& s, T* out,
                                            int rank, const uint4* staged, bool reads, F gradient) {
    constexpr int N = Vec16<T>::N;
    const i64 from = min(slice.first * TILE * N, s.vocab),
              real = min(slice.end * TILE * N, s.vocab);
    const i64 to = rank == s.cluster - 1 ? s.columns : real;
    const bool whole = (u64)out % 16 == slice.misalignment * sizeof(T);
    const i64 last = (u64)(to + slice.misalignment + N - 1) / N;
    for (i64 w = (u64)(from + slice.misalignment) / N + threadIdx.x; w < last; w += THREADS) {
        const i64 column = w * N - slice.misalignment;
        Vec16<T> v;
        v.raw = make_uint4(0, 0, 0, 0);
        if (reads && column < real) v = read_columns(slice, staged, column);
        gradient(v, column);
        if (column + N > s.vocab) {
#pragma unroll
            for (int k = 0; k < N; ++k)
                v.at[k] = column + k < s.vocab ? v.at[k] : from_f32<T>(0.0f);
        }
        if (whole && column >= from && column + N <= to) {
            ptx_store_stream(out + column, v.raw);
        } else {
#pragma unroll
            for (int k = 0; k < N; ++k)
                if (column + k >= from && column + k < to) out[column + k] = v.at[k];
        }
    }
}
