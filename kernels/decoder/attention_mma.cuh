// What attention and its gradients share on tensor cores: tiles of queries, blocks of keys in
// shared memory, and the fragments of mma.m16n8k16.
//
// A tile is 64 rows, 16 per warp: the (query, head) pairs of one sequence and one key/value head,
// head fastest. So the heads of a group fill a fragment where there is a single query, and prefill,
// training and decoding run one kernel. Keys come in blocks of 64 counted from the sequence's
// first.
//
// What a row computes is a function of its own operands and of key indices: a product's element
// takes one row and one column, hidden keys have weight 0, and blocks without a visible key change
// nothing.
#pragma once

#include "attention.cuh"
#include "attention_mma.h"

static constexpr int STEP = 16;          // depth of one mma
static constexpr int ROWS_OF_WARP = 16;  // height of one mma

// Fragments of T: two elements per register.
template <class T> struct Half;
template <> struct Half<bf16> : Halves<bf16> {
    static constexpr float SHIFT = 0.0f, UNIT = 1.0f;
    // Some half of x is infinite or NaN.
    static __device__ __forceinline__ bool odd(u32 x) {
        return (x & 0x7f80u) == 0x7f80u || (x & 0x7f800000u) == 0x7f800000u;
    }
};
// Weights are at most 1: times 2^15 they use the whole range of f16.
template <> struct Half<f16> : Halves<f16> {
    static constexpr float SHIFT = 15.0f, UNIT = 32768.0f;
    static __device__ __forceinline__ bool odd(u32 x) {
        return (x & 0x7c00u) == 0x7c00u || (x & 0x7c000000u) == 0x7c000000u;
    }
};

// Rows of D elements. The pitch is an odd number of 16-byte chunks, so that the 8 rows of a matrix
// lie in 32 banks.
template <class T, int D> struct Tile {
    static constexpr int CHUNKS = D / 8;
    T value[TILE][D + 8];

    // Chunk k of this thread: neighbors take neighboring chunks of a row.
    static __device__ __forceinline__ int row(int k) {
        return (threadIdx.x + k * THREADS) / CHUNKS;
    }
    static __device__ __forceinline__ int column(int k) {
        return (threadIdx.x + k * THREADS) % CHUNKS * 8;
    }

    // Starts copying N rows to `to` and the next: from(i) is where row i begins, null for zeros, as
    // behind the d elements of a row. `aligned`: all rows begin at multiples of 16 bytes, and
    // `somewhere` does.
    template <int N, class From>
    __device__ __forceinline__ void fetch(int to, From from, int d, bool aligned,
                                          const T* somewhere) {
        constexpr int COUNT = N * CHUNKS / THREADS;
        if (aligned) {
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                const T* at = from(row(k));
                const bool there = at && column(k) < d;
                ptx_copy16(&value[to + row(k)][column(k)], there ? at + column(k) : somewhere,
                           there);
            }
            return;
        }
#pragma unroll 1
        for (int k = 0; k < COUNT; ++k) {
            const T* at = from(row(k));
            const bool there = at && column(k) < d;
#pragma unroll 1
            for (int i = 0; i < 8; ++i)
                value[to + row(k)][column(k) + i] = there ? at[column(k) + i] : T{0};
        }
    }

    // Some element that this thread fetched is infinite or NaN.
    __device__ __forceinline__ bool odd() const {
        bool found = false;
#pragma unroll
        for (int k = 0; k < TILE * CHUNKS / THREADS; ++k) {
            const uint4 x = *(const uint4*)&value[row(k)][column(k)];
            found |= Half<T>::odd(x.x) | Half<T>::odd(x.y) | Half<T>::odd(x.z) | Half<T>::odd(x.w);
        }
        return found;
    }

    // a[16 rows, 16 columns], the left side of a product.
    __device__ __forceinline__ void left(u32 (&a)[4], int row, int column) const {
        const int lane = threadIdx.x % WARP;
        ptx_load_matrices(a, &value[row + lane % 16][column + lane / 16 * 8]);
    }

    // Two right sides b[8 rows, 16 columns], one after the other.
    __device__ __forceinline__ void right(u32 (&b)[4], int row, int column) const {
        const int lane = threadIdx.x % WARP;
        ptx_load_matrices(b, &value[row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
    }

    // Two right sides b[8 columns, 16 rows]: sums over rows.
    __device__ __forceinline__ void right_down(u32 (&b)[4], int row, int column) const {
        const int lane = threadIdx.x % WARP;
        ptx_load_matrices_transposed(b, &value[row + lane % 16][column + lane / 16 * 8]);
    }
};

// True if every row of a head begins at a multiple of 16 bytes.
template <class T> __device__ __forceinline__ bool rows_aligned(const Heads<T>& x) {
    return aligned16(x.at) && x.row % 8 == 0 && x.head % 8 == 0;
}

// The row (0 or 1, eight apart) and the first of two columns that a thread has of a product's 8
// columns.
__device__ __forceinline__ int row_of(int h) {
    return threadIdx.x / WARP * ROWS_OF_WARP + threadIdx.x % WARP / 4 + 8 * h;
}
__device__ __forceinline__ int pair_of() { return threadIdx.x % 4 * 2; }

// Sum and maximum over the four threads that share a row.
template <class A, class Op> __device__ __forceinline__ A quad_reduce(A x, Op op) {
    x = op(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return op(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// The rows that a block of threads computes.
struct QueryTile {
    KeyRows keys;
    int token, queries;  // of row 0; to the end of the sequence from there
    int len, room;       // keys; keys there is room for
    u32 head, group;     // of row 0
    int rows;            // that exist

    __device__ __forceinline__ int query_of(int r) const { return (int)((head + r) / group); }
    __device__ __forceinline__ i64 token_of(int r) const { return token + query_of(r); }
    __device__ __forceinline__ i64 head_of(int r) const { return (head + r) % group; }

    // Keys that row r sees; none if the tables do not fit.
    __device__ __forceinline__ int visible(int r) const {
        const int seen = len - queries + query_of(r) + 1;
        return r < rows && query_of(r) < queries && seen >= 1 && seen <= room ? seen : 0;
    }

    // A bound on the keys that any row sees.
    __device__ __forceinline__ int extent() const {
        const int last = query_of(rows - 1),
                  seen = len - queries + (last < queries ? last : queries - 1) + 1;
        return seen < 1 ? 0 : seen < room ? seen : room;
    }

    // Row r of q or of a tensor like it, null if there is none.
    template <class T> __device__ __forceinline__ T* row(const Heads<T>& x, i64 g, int r) const {
        return r < rows ? x.of(token_of(r), g * group + head_of(r)) : nullptr;
    }
};

// Tile `unit` of all. Sequence b takes those from b + ⌊cu_seqlens[b]·group/64⌋ on: as many as it
// needs and at most one more, so that the number of blocks is known without the tables. Tokens
// behind the last sequence belong to it and see nothing.
__device__ __forceinline__ QueryTile query_tile(const Sequences& s, i64 group, i64 unit) {
    i64 low = 0, high = s.count;
    while (high - low > 1) {
        const i64 middle = (low + high) / 2;
        if (middle + s.cu_seqlens.get(middle) * group / TILE <= unit) low = middle;
        else high = middle;
    }
    const Span all = span(s.cu_seqlens, low, s.tokens);
    const i64 last = low + 1 == s.count ? s.tokens : all.end, len = s.kv_len.get(low);
    const i64 row = (unit - low - all.begin * group / TILE) * TILE,
              left = (last - all.begin) * group - row;
    const u32 divisor = (u32)group;
    QueryTile q;
    q.keys = rows_of(s, low);
    const i64 room = room_of(s, q.keys), query = (u32)row / divisor;
    q.token = (int)(all.begin + query), q.queries = (int)(all.end - all.begin - query);
    // A length that cannot be is no length.
    q.room = (int)(room < LIMIT ? room : LIMIT), q.len = len >= 0 && len <= q.room ? (int)len : 0;
    q.head = (u32)row % divisor, q.group = divisor;
    q.rows = row < 0 || left < 0 ? 0 : left < TILE ? (int)left : TILE;
    return q;
}

// ---- what a warp does with a block -------------------------------------------------------------

// Rows times rows: s[n] are the products with rows 8n .. 8n + 8 of `right`, counted from `from`.
template <class T, int D, int N>
__device__ __forceinline__ void multiply(float (&s)[N][4], const u32 (&left)[D / STEP][4],
                                         const Tile<T, D>& right, int from) {
#pragma unroll
    for (int n = 0; n < N; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int c = 0; c < D / STEP; ++c)
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            right.right(b, from + n * 8, c * STEP);
            Half<T>::mma(s[n], left[c], b);
            Half<T>::mma(s[n + 1], left[c], b + 2);
        }
}

// Products in the place of a left side, rounded to T.
template <class T, int N>
__device__ __forceinline__ void pack(u32 (&left)[N / 2][4], const float (&s)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            left[k][i] =
                Half<T>::pack(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
}

// One row of a thread as its blocks go by.
struct Row {
    Reference<float> reference;
    double total = 0.0;  // of this thread's keys
    float factor;
    int visible, seen;  // keys, of which in this block

    __device__ __forceinline__ void see(int from, int count) {
        const int left = visible - from;
        seen = left < 0 ? 0 : left < count ? left : count;
    }

    // What scores are taken relative to. No key so far: -inf less a number is a weight of 0.
    template <class T> __device__ __forceinline__ float shifted() const {
        return reference.m == -INF_F32 ? 0.0f : reference.m - Half<T>::SHIFT;
    }
};

// Scores of a block to weights, and what they do to the sums before it.
template <class T, int N>
__device__ __forceinline__ void weigh(Row& row, float (&s)[N][4], int h, float scale) {
    float largest = -INF_F32;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
            s[n][e] = n * 8 + pair_of() + e % 2 < row.seen ? s[n][e] * scale : -INF_F32;
            largest = fmaxf(largest, s[n][e]);
        }
    row.factor = row.reference.raise(quad_reduce(largest, Max()));
    const float m = row.template shifted<T>();
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) sum += s[n][e] = power_of_2(s[n][e] - m);
    row.total = fma(row.total, (double)row.factor, (double)sum);
}

// 1/x for a total of weights, NaN for 0: an estimate and one step of Newton's method. A division
// would be a call that every live register is spilled for.
__device__ __forceinline__ double inverse_of(double x) {
    const double y = ptx_rcp((float)x);
    return y * (2.0 - x * y);
}

// The warp's 16 rows, the lower and the upper of a thread times a factor each, to where `to(r)`
// says, null for nowhere; through the warp's part of `stage`, so that stores are whole chunks.
template <class T, int D, class To>
__device__ __forceinline__ void store_rows(const float (&x)[D / 8][4], float low, float high,
                                           Tile<T, D>& stage, To to, int d, bool aligned) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        *(u32*)&stage.value[row_of(0)][n * 8 + pair_of()] =
            Half<T>::pack(x[n][0] * low, x[n][1] * low);
        *(u32*)&stage.value[row_of(1)][n * 8 + pair_of()] =
            Half<T>::pack(x[n][2] * high, x[n][3] * high);
    }
    __syncwarp();
    for (int i = threadIdx.x % WARP; i < ROWS_OF_WARP * (D / 8); i += WARP) {
        const int r = threadIdx.x / WARP * ROWS_OF_WARP + i / (D / 8), c = i % (D / 8) * 8;
        T* out = to(r);
        if (!out || c >= d) continue;
        const T* from = &stage.value[r][c];
        if (aligned) *(uint4*)(out + c) = *(const uint4*)from;
        else
            for (int e = 0; e < 8; ++e) out[c + e] = from[e];
    }
}
