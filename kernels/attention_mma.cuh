// What attention and its gradients share on tensor cores: tiles of queries, blocks of keys in shared
// memory, and the fragments of mma.m16n8k16.
//
// A tile is 64 rows, 16 a warp: the (query, head) pairs of one sequence and one key/value head, head
// fastest. So the heads of a group fill a fragment where there is a single query, and prefill,
// training and decoding run one kernel. Keys come in blocks of 64 counted from the sequence's first.
//
// What a row computes is a function of its own operands and of key indices: a product's element takes
// one row and one column, hidden keys have weight 0, and blocks without a visible key change nothing.
#pragma once

#include "attention.cuh"

static constexpr int TILE = 64;          // rows of a tile, keys of a block
static constexpr int STEP = 16;          // depth of one mma
static constexpr int ROWS_OF_WARP = 16;  // height of one mma

// Fragments of T: two elements a register.
template <class T> struct Half;
template <> struct Half<bf16> {
    static constexpr float SHIFT = 0.0f;
    static __device__ __forceinline__ u32 pack(float low, float high) { return ptx_pack_bf16(low, high); }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32* b) {
        const u32 pair[2] = {b[0], b[1]};
        ptx_mma_bf16(d, a, pair);
    }
    // Some half of x is infinite or NaN.
    static __device__ __forceinline__ bool odd(u32 x) { return (x & 0x7f80u) == 0x7f80u || (x & 0x7f800000u) == 0x7f800000u; }
};
// Weights are at most 1: times 2^15 they use the whole range of f16.
template <> struct Half<f16> {
    static constexpr float SHIFT = 15.0f;
    static __device__ __forceinline__ u32 pack(float low, float high) { return ptx_pack_f16(low, high); }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32* b) {
        const u32 pair[2] = {b[0], b[1]};
        ptx_mma_f16(d, a, pair);
    }
    static __device__ __forceinline__ bool odd(u32 x) { return (x & 0x7c00u) == 0x7c00u || (x & 0x7c000000u) == 0x7c000000u; }
};

// Rows of D elements. The pitch is an odd number of 16-byte chunks, so that the 8 rows of a matrix
// lie in 32 banks.
template <class T, int D> struct Tile {
    static constexpr int CHUNKS = D / 8, COUNT = TILE * CHUNKS / THREADS;
    T value[TILE][D + 8];

    // Chunk k of this thread: neighbours take neighbouring chunks of a row.
    static __device__ __forceinline__ int row(int k) { return (threadIdx.x + k * THREADS) / CHUNKS; }
    static __device__ __forceinline__ int column(int k) { return (threadIdx.x + k * THREADS) % CHUNKS * 8; }

    // Starts copying: from(i) is where row i begins, null for zeros, as behind the d elements of a
    // row. `aligned`: all rows begin at multiples of 16 bytes, and `somewhere` does.
    template <class From> __device__ __forceinline__ void fetch(From from, int d, bool aligned, const T* somewhere) {
        if (aligned) {
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                const T* at = from(row(k));
                const bool there = at && column(k) < d;
                ptx_copy16(&value[row(k)][column(k)], there ? at + column(k) : somewhere, there);
            }
            return;
        }
#pragma unroll 1
        for (int k = 0; k < COUNT; ++k) {
            const T* at = from(row(k));
            const bool there = at && column(k) < d;
#pragma unroll 1
            for (int i = 0; i < 8; ++i) value[row(k)][column(k) + i] = there ? at[column(k) + i] : T{0};
        }
    }

    // Some element that this thread fetched is infinite or NaN.
    __device__ __forceinline__ bool odd() const {
        bool found = false;
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
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

// The row (0 or 1, eight apart) and the first of two columns that a thread has of a product's 8 columns.
__device__ __forceinline__ int row_of(int h) { return threadIdx.x / WARP * ROWS_OF_WARP + threadIdx.x % WARP / 4 + 8 * h; }
__device__ __forceinline__ int pair_of() { return threadIdx.x % 4 * 2; }

// Sum and maximum over the four threads that share a row.
template <class A, class Op> __device__ __forceinline__ A quad_reduce(A x, Op op) {
    x = op(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return op(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// Tokens, rows and keys are below this: they fit an int with a block to spare.
static constexpr i64 LIMIT = 0x7fffff00;

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
        const int last = query_of(rows - 1), seen = len - queries + (last < queries ? last : queries - 1) + 1;
        return seen < 1 ? 0 : seen < room ? seen : room;
    }

    // Row r of q or of a tensor like it, null if there is none.
    template <class T> __device__ __forceinline__ T* row(const Heads<T>& x, i64 g, int r) const {
        return r < rows ? x.of(token_of(r), g * group + head_of(r)) : nullptr;
    }
};

// Tile `unit` of all. Sequence b takes those from b + ⌊cu_seqlens[b]·group/64⌋ on: as many as it needs
// and at most one more, so that the number of blocks is known without the tables. Tokens behind the
// last sequence belong to it and see nothing.
__device__ __forceinline__ QueryTile query_tile(const Sequences& s, i64 group, i64 unit) {
    i64 low = 0, high = s.count;
    while (high - low > 1) {
        const i64 middle = (low + high) / 2;
        if (middle + s.cu_seqlens.get(middle) * group / TILE <= unit) low = middle; else high = middle;
    }
    const Span all = span(s.cu_seqlens, low, s.tokens);
    const i64 last = low + 1 == s.count ? s.tokens : all.end, len = s.kv_len.get(low);
    const i64 row = (unit - low - all.begin * group / TILE) * TILE, left = (last - all.begin) * group - row;
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
