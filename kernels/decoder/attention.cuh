// What attention and its gradients share: where heads lie, which keys a query sees, scores, and a
// softmax whose running maximum can be raised without an error.
//
// Scores live in base 2: s = q·k·scale·log2(e), p = 2^(s - m). The reference m is the maximum
// rounded up to a whole number, so raising it multiplies what was summed by an exact power of two:
// the order in which maxima are met leaves no trace beyond the sums' own roundings.
#pragma once

#include "common.cuh"
#include "attention.h"

static constexpr int CHAINS = 16;

// Where the keys of a sequence lie: in pages, or `shared` of them from row `prefix` on and the rest
// from row `first` on.
struct KeyRows {
    const i32* table;
    i64 first, prefix, shared, last_page, shift;

    // The row of key j where there are no pages.
    __device__ __forceinline__ i64 row_unpaged(i64 j) const {
        return j < shared ? prefix + j : first + (j - shared);
    }

    // The row of key j; a page that k does not have is read as its last one.
    __device__ __forceinline__ i64 row(i64 j) const {
        if (!table) return row_unpaged(j);
        const i64 page = table[j >> shift];
        return ((u64)page > (u64)last_page ? last_page : page) << shift |
               (j & ((1ll << shift) - 1));
    }
};

// The keys that a query sees: keys 0 .. visible.
struct Keys {
    KeyRows rows;
    i64 visible;
};

// The sequence of token t: the last one that does not start behind it.
__device__ __forceinline__ i64 sequence_of(const Sequences& s, i64 t) {
    i64 low = 0, high = s.count;
    while (high - low > 1) {
        const i64 middle = (low + high) / 2;
        if (s.cu_seqlens.get(middle) <= t) low = middle;
        else high = middle;
    }
    return low;
}

// The rows of sequence b.
__device__ __forceinline__ KeyRows rows_of(const Sequences& s, i64 b) {
    const Pages& pages = s.pages;
    return {pages.table ? pages.table + b * pages.stride : nullptr,
            s.kv_start.get(b),
            s.prefix_start.get(b),
            s.prefix_len.get(b),
            (s.rows >> pages.shift) - 1,
            pages.shift};
}

// How many keys there is room for, whatever the tables hold.
__device__ __forceinline__ i64 room_of(const Sequences& s, const KeyRows& rows) {
    if (rows.table) return rows.last_page < 0 ? 0 : s.pages.width << rows.shift;
    const bool fits = rows.first >= 0 && rows.first <= s.rows && rows.prefix >= 0 &&
                      rows.prefix <= s.rows && rows.shared >= 0 &&
                      rows.shared <= s.rows - rows.prefix;
    return fits ? rows.shared + s.rows - rows.first : 0;
}

// None if the tables do not fit together.
__device__ __forceinline__ Keys keys_of(const Sequences& s, i64 t) {
    const i64 b = sequence_of(s, t), begin = s.cu_seqlens.get(b), end = s.cu_seqlens.get(b + 1);
    const KeyRows rows = rows_of(s, b);
    const i64 visible = s.kv_len.get(b) - (end - t) + 1;
    const bool fits = begin <= t && t < end && visible >= 1 && visible <= room_of(s, rows);
    return {rows, fits ? visible : 0};
}

// The key of sequence b that lies in `row`, -1 for none: among the keys of its prefix (part 0), or
// among those behind it (part 1).
__device__ __forceinline__ i64 key_in(const Sequences& s, i64 b, i64 row, int part) {
    const i64 shared = s.prefix_len.get(b), len = s.kv_len.get(b),
              start = part ? s.kv_start.get(b) : s.prefix_start.get(b);
    if (shared < 0 || shared > s.rows || start < 0 || start > row) return -1;
    const i64 key = row - start + (part ? shared : 0);
    return key < len && (part || key < shared) ? key : -1;
}

__device__ __forceinline__ float power_of_2(float x) { return ptx_ex2(x); }
__device__ __forceinline__ double power_of_2(double x) { return exp2(x); }

// 2^n, exact, for whole n <= 0; 0 below the normal numbers.
__device__ __forceinline__ float exact_power(float n) {
    return n < -126.0f ? 0.0f : __int_as_float((127 + (int)n) << 23);
}
__device__ __forceinline__ double exact_power(double n) {
    return n < -1022.0 ? 0.0 : __longlong_as_double((i64)(1023 + (int)n) << 52);
}

template <class A> struct Limit;
template <> struct Limit<float> {
    static __device__ __forceinline__ float lowest() { return -INF_F32; }
};
template <> struct Limit<double> {
    static __device__ __forceinline__ double lowest() { return -INF_F64; }
};

// Operands in the type that they are summed in.
template <class A, class T> __device__ __forceinline__ A widen(T x) { return (A)to_f64(x); }
template <> __device__ __forceinline__ float widen<float, float>(float x) { return x; }
template <> __device__ __forceinline__ float widen<float, bf16>(bf16 x) { return to_f32(x); }
template <> __device__ __forceinline__ float widen<float, f16>(f16 x) { return to_f32(x); }

template <class T> __device__ __forceinline__ T narrow(float x) { return from_f32<T>(x); }
template <class T> __device__ __forceinline__ T narrow(double x) { return from_f64<T>(x); }

// A row into shared memory of the warp.
template <class A, class T> __device__ __forceinline__ void stage(A* to, const T* from, i64 d) {
    for (i64 c = threadIdx.x % WARP; c < d; c += WARP) to[c] = widen<A>(from[c]);
}

template <int WIDTH, class A> __device__ __forceinline__ void fold(A (&sum)[CHAINS]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] += sum[i + WIDTH];
}

// x·y over D, by one lane: 16 chains folded in halves, an error of D/16 + 4 roundings.
template <class A, class T> __device__ __forceinline__ A dot(const A* x, const T* y, i64 d) {
    A sum[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) sum[i] = 0;
#pragma unroll 1
    for (i64 c = 0; c < d; c += CHAINS) {
#pragma unroll
        for (int i = 0; i < CHAINS; ++i)
            if (c + i < d) sum[i] = fma(x[c + i], widen<A>(y[c + i]), sum[i]);
    }
    fold<8>(sum), fold<4>(sum), fold<2>(sum), fold<1>(sum);
    return sum[0];
}

// The running reference of a softmax. `raise` takes a block's largest score and returns the factor
// that brings older sums to the new reference.
template <class A> struct Reference {
    A m = Limit<A>::lowest();
    __device__ __forceinline__ A raise(A largest) {
        const A next = ceil(largest);
        if (!(next > m)) return 1;
        const A factor = m == Limit<A>::lowest() ? (A)0 : exact_power(m - next);
        m = next;
        return factor;
    }
};

// sum[c] = factor·sum[c] + Σ_j weight_j·row(j)[c] over the block's rows in order, lane j holding
// weight_j. Lane j also names row j. The block's own sum is formed first: an error of 32 roundings,
// and one per block.
template <class A, class T>
__device__ __forceinline__ void combine(A* sum, A factor, A weight, const Heads<const T>& rows,
                                        i64 row, i64 head, int count, i64 d) {
    for (i64 c0 = 0; c0 < d; c0 += WARP) {
        const i64 c = c0 + threadIdx.x % WARP;
        A block = 0;
        for (int j = 0; j < count; ++j) {
            const A w = __shfl_sync(ALL_LANES, weight, j);
            const i64 r = __shfl_sync(ALL_LANES, row, j);
            if (c < d) block = fma(w, widen<A>(rows.of(r, head)[c]), block);
        }
        if (c < d) sum[c] = fma(factor, sum[c], block);
    }
}
