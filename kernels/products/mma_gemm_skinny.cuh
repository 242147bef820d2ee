// Products with up to 16 rows and a depth of whole blocks of 64 steps: the weight is the left
// operand of the tensor core, and goes from global memory to registers.
//
// A warp owns 32 rows of W and one chunk of the depth. A block of 8 warps has 32 rows and all
// chunks; or it is one of a cluster of 8 (sm_90a), which has 256 rows, and each block one chunk of
// them. The chunks' sums meet in shared memory, where each block finishes 32 rows of W. There is no
// second launch and no memory in between.
//
// With mma.m16n8k16 lane (g, t) = (lane / 4, lane % 4) holds 4 steps of rows g and g+8 of W and of
// row g of X. In a block of 64 steps, its part of product u is the 4 steps from 8u + 4·(t % 2) +
// 32·(t / 2).
#pragma once

#include "mma_gemm.cuh"

// Groups of rows, or chunks, that the warps of a block have.
#if __CUDA_ARCH__ >= 900
static constexpr int SKINNY_GROUPS = CHUNKS, SKINNY_INNER = 1;
#else
static constexpr int SKINNY_GROUPS = 1, SKINNY_INNER = CHUNKS;
#endif

// Where lane t's 4 steps of product 0 begin.
__device__ __forceinline__ int skinny_step() {
    return threadIdx.x % 2 * 4 + threadIdx.x % 4 / 2 * 32;
}
// Row of W of lane g in half `h` of tile `i`.
__device__ __forceinline__ int skinny_row(int i, int h) {
    return threadIdx.x % WARP / 4 + 16 * i + 8 * h;
}

// The same; beyond the end the last one, whose sums nobody wants.
__device__ __forceinline__ int skinny_row_inside(i64 row0, i64 rows, int i, int h) {
    const int last = (int)(rows - 1 - row0);
    return skinny_row(i, h) < last ? skinny_row(i, h) : last;
}

// A weight has `load<BLOCK>`, which fetches block BLOCK of 64 steps from where it stands;
// `segment`, called before every 8 blocks, and `next`, before each; and `advance`, two blocks on.

// A matrix whose rows can be read in pieces of 8 bytes.
template <class T> struct SkinnyDense {
    const T* at[2][2];
    struct Raw {
        uint2 at[2][2][4];
    };

    __device__ __forceinline__ SkinnyDense(const Strided<T>& w, i64 row0, i64 rows, i64 begin) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                at[i][h] = w.at + (row0 + skinny_row_inside(row0, rows, i, h)) * w.lane_stride +
                           begin + skinny_step();
    }
    template <int BLOCK> __device__ __forceinline__ void load(Raw& raw, bool there) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                ptx_load8_if<BLOCK * 128>(raw.at[i][h][0], at[i][h], there),
                    ptx_load8_if<BLOCK * 128 + 16>(raw.at[i][h][1], at[i][h], there);
                ptx_load8_if<BLOCK * 128 + 32>(raw.at[i][h][2], at[i][h], there),
                    ptx_load8_if<BLOCK * 128 + 48>(raw.at[i][h][3], at[i][h], there);
            }
    }
    __device__ __forceinline__ void segment(int, int) {}
    __device__ __forceinline__ void next() {}
    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int i = 0; i < 2; ++i) at[i][0] += 2 * STEPS, at[i][1] += 2 * STEPS;
    }
    __device__ __forceinline__ void fragment(const Raw& raw, int i, int u, u32 (&a)[4]) const {
        a[0] = raw.at[i][0][u].x, a[1] = raw.at[i][1][u].x, a[2] = raw.at[i][0][u].y,
        a[3] = raw.at[i][1][u].y;
    }
};

// Rows of X as right operands, N tiles of 8 rows; readable in pieces of 8 bytes.
template <class T, int N> struct SkinnyInput {
    const T* at[N];
    struct Raw {
        uint2 at[N][4];
    };

    __device__ __forceinline__ SkinnyInput(const T* x, i64 stride, i64 rows, i64 begin) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const int row = threadIdx.x % WARP / 4 + 8 * n, last = (int)rows - 1;
            at[n] = x + begin + skinny_step() + (row < last ? row : last) * stride;
        }
    }
    // The part of product U of this block.
    template <int U> __device__ __forceinline__ void load(Raw& raw) const {
#pragma unroll
        for (int n = 0; n < N; ++n) ptx_load8<U * 16>(raw.at[n][U], at[n]);
    }
    // A block on if there is one: then what is loaded next is valid memory in any case.
    __device__ __forceinline__ void advance(bool more) {
        const int steps = more ? STEPS : 0;
#pragma unroll
        for (int n = 0; n < N; ++n) at[n] += steps;
    }
};

// The sums of a warp: 32 rows of W, 8·N rows of X.
template <int N> struct SkinnySums {
    float at[2][N][4];
};

// Product U of a block, and its part of the next block of X on its way.
template <int U, class T, int N, class Weight>
__device__ __forceinline__ void skinny_product(SkinnySums<N>& sums, const Weight& w,
                                               const typename Weight::Raw& raw,
                                               const SkinnyInput<T, N>& x,
                                               typename SkinnyInput<T, N>::Raw& in) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        u32 a[4];
        w.fragment(raw, i, U, a);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const u32 b[2] = {in.at[n][U].x, in.at[n][U].y};
            Halves<T>::mma(sums.at[i][n], a, b);
        }
    }
    x.template load<U>(in);
}

// A block, BLOCK from where w stands, with `left` blocks from it to the end of the chunk.
template <int BLOCK, class T, int N, class Weight>
__device__ __forceinline__ void skinny_block(SkinnySums<N>& sums, Weight& w,
                                             typename Weight::Raw& raw, SkinnyInput<T, N>& x,
                                             typename SkinnyInput<T, N>::Raw& in, int left) {
    x.advance(left > 1);
    w.next();
    skinny_product<0>(sums, w, raw, x, in), skinny_product<1>(sums, w, raw, x, in);
    skinny_product<2>(sums, w, raw, x, in), skinny_product<3>(sums, w, raw, x, in);
    w.template load<BLOCK + 2>(raw, left > 2);
}

// sums += w·x over `count` > 0 blocks of 64 steps. Two blocks of W and one of X are on their way:
// registers are filled again as soon as they are used.
template <class T, int N, class Weight>
__device__ __forceinline__ void skinny_chain(SkinnySums<N>& sums, Weight& w, SkinnyInput<T, N> x,
                                             int count) {
    typename Weight::Raw raw[2];
    typename SkinnyInput<T, N>::Raw in;
    w.template load<0>(raw[0], true), w.template load<1>(raw[1], count > 1);
    x.template load<0>(in), x.template load<1>(in), x.template load<2>(in), x.template load<3>(in);
    int left = count;
    do {
        w.segment(count - left, count);
        const int last = left > SKINNY_SEGMENT ? left - SKINNY_SEGMENT : 0;
        do {
            skinny_block<0>(sums, w, raw[0], x, in, left);
            if (left > 1) skinny_block<1>(sums, w, raw[1], x, in, left - 1);
            w.advance();
            left -= 2;
        } while (left > last);
    } while (left > 0);
}

template <int N> __device__ __forceinline__ void clear(SkinnySums<N>& sums) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums.at[i][n][e] = 0.0f;
}

// The sums of a chunk as [row of X][row of W]; a pitch of 4 more words puts a warp's stores into 32
// banks.
static constexpr int SKINNY_PITCH = SKINNY_ROWS * SKINNY_GROUPS + 4;

template <int N>
__device__ __forceinline__ void skinny_store_sums(float* tile, const SkinnySums<N>& sums) {
    float* to = tile + threadIdx.x % 4 * 2 * SKINNY_PITCH + skinny_row(0, 0);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                to[(8 * n + e % 2) * SKINNY_PITCH + 16 * i + e / 2 * 8] = sums.at[i][n][e];
}

// PRODUCTS products of a block of 64 of the 3·rank steps of an adapter: element by element, because
// it is little.
template <class T, int N, int PRODUCTS> struct SkinnyLowRank {
    T w[PRODUCTS][2][2][4], x[PRODUCTS][N][4];

    // The steps from `at` on. All loads are on their way before the first value is used: 8.6 us of
    // 34 (H100, r = 16, one row of 4,096).
    template <class W>
    __device__ __forceinline__ void load(const GemmParams<T, W>& p, const Strided<T>& factor,
                                         const T* parts, i64 row0, int at) {
        const int rank = (int)p.lora.rank, steps = 3 * rank, row = threadIdx.x % WARP / 4;
#pragma unroll
        for (int u = 0; u < PRODUCTS; ++u)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int step = at + 8 * u + skinny_step() + e;
                const bool there = step < steps;
                // step % rank of a step below 3·rank.
                const int once = step < rank ? step : step - rank,
                          column = once < rank ? once : once - rank;
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    w[u][i / 2][i % 2][e] =
                        there
                            ? factor.at[factor.place(
                                  row0 + skinny_row_inside(row0, p.columns, i / 2, i % 2), column)]
                            : T{};
#pragma unroll
                for (int n = 0; n < N; ++n)
                    x[u][n][e] =
                        there && row + 8 * n < p.rows ? parts[(row + 8 * n) * steps + step] : T{};
            }
    }
    // sums += product u.
    __device__ __forceinline__ void multiply(SkinnySums<N>& sums, int u) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const u32 a[4] = {
                pair_of(w[u][i][0][0], w[u][i][0][1]), pair_of(w[u][i][1][0], w[u][i][1][1]),
                pair_of(w[u][i][0][2], w[u][i][0][3]), pair_of(w[u][i][1][2], w[u][i][1][3])};
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const u32 b[2] = {pair_of(x[u][n][0], x[u][n][1]), pair_of(x[u][n][2], x[u][n][3])};
                Halves<T>::mma(sums.at[i][n], a, b);
            }
        }
    }
};

// sums += parts·factor over 3·rank steps of every adapter.
template <class T, int N, class W>
__device__ __forceinline__ void skinny_low_rank(SkinnySums<N>& sums, const GemmParams<T, W>& p,
                                                i64 row0) {
    constexpr int PRODUCTS = N == 1 ? 2 : 1;  // what registers hold
    const int steps = 3 * (int)p.lora.rank;
    for (i64 g = 0; g < p.lora.count; ++g) {
        const Strided<T> factor = p.lora.template operand<T>(g);
#pragma unroll 1
        // A block of 64 steps is 4 products.
        for (int at = 0; at < steps;
             at = at % STEPS + 8 * PRODUCTS < 32 ? at + 8 * PRODUCTS : at - at % STEPS + STEPS) {
            SkinnyLowRank<T, N, PRODUCTS> some;
            some.load(p, factor, p.parts + g * p.rows * steps, row0, at);
#pragma unroll
            for (int u = 0; u < PRODUCTS; ++u)
                if (at + 8 * u < steps) some.multiply(sums, u);
        }
    }
}

// Columns `tile` of the output, as many as a block or a cluster has. `make(row0, begin, end)`: the
// weight from row row0 on, for the warp that calls it, and its steps. `tiles` may be memory that
// the weight uses until then.
template <class T, int N, class W, class Make>
__device__ __forceinline__ void skinny(const GemmParams<T, W>& p, float* tiles, i64 tile,
                                       Make make) {
    constexpr int SIZE = 8 * N * SKINNY_PITCH;
    const int rank = SKINNY_GROUPS > 1 ? ptx_cluster_rank() : 0, warp = threadIdx.x / WARP;
    const int group = warp % SKINNY_GROUPS, inner = warp / SKINNY_GROUPS;
    const i64 column0 = tile * (SKINNY_GROUPS * SKINNY_ROWS);
    const i64 begin = (i64)(rank + inner) * p.chunk;
    const i64 end = begin + p.chunk < p.depth ? begin + p.chunk : p.depth;
    const bool works = begin < end && column0 + group * SKINNY_ROWS < p.columns;
    SkinnySums<N> sums;
    if (works) {
        clear(sums);
        auto w = make(column0 + group * SKINNY_ROWS, begin, end);
        skinny_chain<T, N>(sums, w, SkinnyInput<T, N>(p.x, p.x_stride, p.rows, begin),
                           (int)(end - begin) / STEPS);
    }
    __syncthreads();
    if (works) skinny_store_sums<N>(tiles + inner * SIZE + group * SKINNY_ROWS, sums);
    if (works && p.lora.count > 0 && end == p.depth) {
        clear(sums);
        skinny_low_rank(sums, p, column0 + group * SKINNY_ROWS);
        skinny_store_sums<N>(tiles + SKINNY_INNER * SIZE + group * SKINNY_ROWS, sums);
    }
    __syncthreads();
    if (SKINNY_GROUPS > 1) ptx_cluster_sync();
    const int row = threadIdx.x / (SKINNY_ROWS / 2),
              column = rank * SKINNY_ROWS + threadIdx.x % (SKINNY_ROWS / 2) * 2;
    if (row < p.rows && column0 + column < p.columns) {
        // The last chunk's sums are those of this block's first warps, or of one of its own.
        const int extra =
            p.lora.count > 0 ? (SKINNY_GROUPS > 1 ? 1 : SKINNY_INNER + 1 - p.chunks) * SIZE * 4 : 0;
        const Partials<SIZE * 4, (SKINNY_GROUPS > 1)> partials = {shared_address(tiles), p.chunks,
                                                                  extra};
        float sum[1][2];
        partials.template total<2>(row * SKINNY_PITCH + column, sum[0]);
        finish<1, 2>(p, row, column0 + column, sum);
    }
    __syncwarp();
    if (SKINNY_GROUPS > 1) ptx_cluster_sync();
}

template <class T, int N>
__device__ __forceinline__ void matmul_skinny(const GemmParams<T, Strided<T>>& p, i64 tile) {
    skinny<T, N>(p, (float*)shared, tile, [&](i64 row0, i64 begin, i64) {
        return SkinnyDense<T>(p.right, row0, p.columns, begin);
    });
}
