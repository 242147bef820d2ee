// Matrix products: out[i, j] = Σ_p left(i, p)·right(j, p), then a low-rank part per row, then
// whatever the caller does with a sum.
//
// A side hands out element (lane, step): lane is a row of the left side or a column of the right
// one, step the index that is summed over. Whether a matrix is read along its rows or across them
// is a matter of two strides, so one body serves Y = X·Wᵀ, dX = dY·W and dW = dYᵀ·X.
//
// A block of 128 threads owns 32 x 64 outputs. Two engines add up a tile of staged operands:
//
//     Chain  f32 and f64: one chain of fused multiply-adds per output, p ascending from 0: the bits
//            of the CPU
//     Mma    dW of bf16 and f16: mma.m16n8k16 with f32 sums, steps of 16 ascending from 0
//
// Y and dX of bf16 and f16 have kernels of their own: mma_gemm.cuh.
//
// An output's operations depend on its own operands and on the depth only, whatever the number of
// rows: a row has the same bits alone and in any batch.
//
// 1. The next tile is fetched into registers while this one is multiplied: one global latency a
//    tile is hidden behind 16 (32 for Mma) steps.
// 2. Warps without a row skip the arithmetic: a single row costs a quarter of the block.
#pragma once

#include "common.cuh"

// ---- sides ------------------------------------------------------------------------------------

template <class V, class T> struct As;
template <class T> struct As<float, T> {
    static __device__ __forceinline__ float of(T x) { return to_f32(x); }
};
template <class T> struct As<double, T> {
    static __device__ __forceinline__ double of(T x) { return to_f64(x); }
};
template <> struct As<bf16, bf16> {
    static __device__ __forceinline__ bf16 of(bf16 x) { return x; }
};
template <> struct As<f16, f16> {
    static __device__ __forceinline__ f16 of(f16 x) { return x; }
};

// Its operands say how an element is read.
#include "product.h"

// ---- tiles ------------------------------------------------------------------------------------

// [step][lane]: a thread reads neighboring lanes of a step as one vector. The pitch of 4 more
// words halves the conflicts of lanes that write down a column.
template <class V, int LANES_> struct ChainTile {
    typedef V Value;
    static constexpr int LANES = LANES_, DEPTH = 16;
    V value[DEPTH][LANES + 4];
    __device__ __forceinline__ V& at(int lane, int step) { return value[step][lane]; }
};

// [lane][step]: a fragment register is two neighboring steps. A pitch of 40 halves turns the bank
// by 20 words per row, so that the 8 rows x 4 words of a fragment lie in 32 banks.
template <class V, int LANES_> struct MmaTile {
    typedef V Value;
    static constexpr int LANES = LANES_, DEPTH = 32;
    V value[LANES][DEPTH + 8];
    __device__ __forceinline__ V& at(int lane, int step) { return value[lane][step]; }
};

// A thread's share of a tile on its way from global memory. Lanes and steps beyond the matrix are
// 0.
template <class Tile> struct Staging {
    static constexpr int COUNT = Tile::LANES * Tile::DEPTH / THREADS;
    typename Tile::Value value[COUNT];

    // Neighboring threads take neighboring addresses; a thread's elements lie one stride apart.
    static constexpr int LANES_APART = THREADS / Tile::DEPTH, STEPS_APART = THREADS / Tile::LANES;
    static __device__ __forceinline__ int lane_of(int k, bool along) {
        return along ? threadIdx.x / Tile::DEPTH + k * LANES_APART : threadIdx.x % Tile::LANES;
    }
    static __device__ __forceinline__ int step_of(int k, bool along) {
        return along ? threadIdx.x % Tile::DEPTH : threadIdx.x / Tile::LANES + k * STEPS_APART;
    }

    template <class Operand>
    __device__ __forceinline__ void fetch(const Operand& operand, i64 lane0, i64 lanes, i64 step0,
                                          i64 steps) {
        typedef typename Tile::Value V;
        const bool along = operand.along_steps();
        const int lanes_left = lanes - lane0 < Tile::LANES ? (int)(lanes - lane0) : Tile::LANES;
        const int steps_left = steps - step0 < Tile::DEPTH ? (int)(steps - step0) : Tile::DEPTH;
        i64 place = operand.place(lane0 + lane_of(0, along), step0 + step_of(0, along));
        const i64 apart = along ? operand.place(LANES_APART, 0) : operand.place(0, STEPS_APART);
#pragma unroll
        for (int k = 0; k < COUNT; ++k, place += apart)
            value[k] = lane_of(k, along) < lanes_left && step_of(k, along) < steps_left
                           ? operand.template get<V>(place)
                           : V{};
    }

    __device__ __forceinline__ void store(Tile& tile, bool along) const {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) tile.at(lane_of(k, along), step_of(k, along)) = value[k];
    }
};

// ---- engines ----------------------------------------------------------------------------------

// acc[i][j] is output (row(i), column(j)) of the block's tile.
template <class A> struct Chain {
    typedef A Sum;
    typedef ChainTile<A, ROWS> Left;
    typedef ChainTile<A, COLUMNS> Right;
    static constexpr int HEIGHT = 4, WIDTH = 4;
    A acc[HEIGHT][WIDTH];

    static __device__ __forceinline__ int row(int i) { return threadIdx.x / 16 * 4 + i; }
    static __device__ __forceinline__ int column(int j) { return threadIdx.x % 16 * 4 + j; }
    // First row that any thread of the warp has.
    static __device__ __forceinline__ int first_row() { return threadIdx.x / WARP * 8; }

    __device__ __forceinline__ void add(Left& left, Right& right, int steps) {
#pragma unroll 4
        for (int p = 0; p < steps; ++p) {
#pragma unroll
            for (int i = 0; i < HEIGHT; ++i)
#pragma unroll
                for (int j = 0; j < WIDTH; ++j)
                    acc[i][j] = fma(left.at(row(i), p), right.at(column(j), p), acc[i][j]);
        }
    }
};

// Four warps, each 16 rows x 32 columns: four products m16n8 side by operand.
template <class T> struct Mma {
    typedef float Sum;
    typedef MmaTile<T, ROWS> Left;
    typedef MmaTile<T, COLUMNS> Right;
    static constexpr int HEIGHT = 2, WIDTH = 8;
    float acc[HEIGHT][WIDTH];

    static __device__ __forceinline__ int row(int i) {
        return first_row() + threadIdx.x % WARP / 4 + 8 * i;
    }
    static __device__ __forceinline__ int column(int j) {
        return first_column() + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
    }
    static __device__ __forceinline__ int first_row() { return threadIdx.x / WARP / 2 * 16; }
    static __device__ __forceinline__ int first_column() { return threadIdx.x / WARP % 2 * 32; }

    // What lies beyond `steps` is 0.
    __device__ __forceinline__ void add(Left& left, Right& right, int) {
        const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4 * 2;
#pragma unroll
        for (int k = 0; k < Left::DEPTH; k += 16) {
            u32 a[4];
#pragma unroll
            for (int q = 0; q < 4; ++q)
                a[q] = *(const u32*)&left.at(first_row() + g + q % 2 * 8, k + t + q / 2 * 8);
#pragma unroll
            for (int tile = 0; tile < 4; ++tile) {
                const int lane = first_column() + tile * 8 + g;
                const u32 b[2] = {*(const u32*)&right.at(lane, k + t),
                                  *(const u32*)&right.at(lane, k + t + 8)};
                float d[4] = {acc[0][2 * tile], acc[0][2 * tile + 1], acc[1][2 * tile],
                              acc[1][2 * tile + 1]};
                Halves<T>::mma(d, a, b);
                acc[0][2 * tile] = d[0], acc[0][2 * tile + 1] = d[1], acc[1][2 * tile] = d[2],
                           acc[1][2 * tile + 1] = d[3];
            }
        }
    }
};

template <class Engine> __device__ __forceinline__ void clear(Engine& e) {
#pragma unroll
    for (int i = 0; i < Engine::HEIGHT; ++i)
#pragma unroll
        for (int j = 0; j < Engine::WIDTH; ++j) e.acc[i][j] = 0;
}

// ---- the sweep over steps ---------------------------------------------------------------------

// Adds left·right over all steps to the block's tile of outputs at (row0, column0).
template <class Engine, class L, class R>
__device__ __forceinline__ void sweep(Engine& e, const L& left, const R& right, i64 row0, i64 rows,
                                      i64 column0, i64 columns, i64 depth) {
    constexpr int DEPTH = Engine::Left::DEPTH;
    __shared__ __align__(16) typename Engine::Left l;
    __shared__ __align__(16) typename Engine::Right r;
    Staging<typename Engine::Left> next_l;
    Staging<typename Engine::Right> next_r;
    next_l.fetch(left, row0, rows, 0, depth);
    next_r.fetch(right, column0, columns, 0, depth);
    for (i64 p = 0; p < depth; p += DEPTH) {
        __syncthreads();
        next_l.store(l, left.along_steps());
        next_r.store(r, right.along_steps());
        __syncthreads();
        if (p + DEPTH < depth) {
            next_l.fetch(left, row0, rows, p + DEPTH, depth);
            next_r.fetch(right, column0, columns, p + DEPTH, depth);
        }
        const i64 steps = depth - p;
        if (row0 + Engine::first_row() < rows) e.add(l, r, steps < DEPTH ? (int)steps : DEPTH);
    }
}

// ---- low-rank adapters ------------------------------------------------------------------------

// Adds low[i, q]·factor(j, q) for q ascending, each row with its own adapter: `rank` more steps of
// the same chain. Sums are f32 (f64) whatever the engine, and rows without an adapter see nothing.
template <class T, class Engine>
__device__ __forceinline__ void add_low_rank(Engine& e, const Adapters& a,
                                             const Strided<typename Engine::Sum>& left, i64 row0,
                                             i64 rows, i64 column0, i64 columns) {
    typedef typename Engine::Sum A;
    typedef Chain<A> C;
    __shared__ __align__(16) typename C::Left l;
    __shared__ __align__(16) typename C::Right r;
    Staging<typename C::Left> next_l;
    Staging<typename C::Right> next_r;
    for (i64 g = 0; g < a.count; ++g) {
        if (!a.used(g, row0, rows)) continue;
        const Strided<T> right = a.template operand<T>(g);
        for (i64 p = 0; p < a.rank; p += C::Left::DEPTH) {
            next_l.fetch(left, row0, rows, p, a.rank);
            next_r.fetch(right, column0, columns, p, a.rank);
            __syncthreads();
            next_l.store(l, left.along_steps());
            next_r.store(r, right.along_steps());
            __syncthreads();
            const i64 left_over = a.rank - p;
            const int steps = left_over < C::Left::DEPTH ? (int)left_over : C::Left::DEPTH;
#pragma unroll
            for (int i = 0; i < Engine::HEIGHT; ++i) {
                const i64 row = row0 + Engine::row(i);
                if (row >= rows || a.of(row) != g) continue;
                for (int q = 0; q < steps; ++q)
#pragma unroll
                    for (int j = 0; j < Engine::WIDTH; ++j)
                        e.acc[i][j] =
                            fma(l.at(Engine::row(i), q), r.at(Engine::column(j), q), e.acc[i][j]);
            }
        }
    }
}

// Calls out(row, column, sum) for every output that exists.
template <class Engine, class Out>
__device__ __forceinline__ void each(const Engine& e, i64 row0, i64 rows, i64 column0, i64 columns,
                                     Out out) {
#pragma unroll
    for (int i = 0; i < Engine::HEIGHT; ++i) {
        const i64 row = row0 + Engine::row(i);
        if (row >= rows) continue;
#pragma unroll
        for (int j = 0; j < Engine::WIDTH; ++j) {
            const i64 column = column0 + Engine::column(j);
            if (column < columns) out(row, column, e.acc[i][j]);
        }
    }
}

// ---- whole kernels ----------------------------------------------------------------------------

// The engine of operands T.
template <class T> struct EngineOf {
    typedef Mma<T> Type;
};
template <> struct EngineOf<float> {
    typedef Chain<float> Type;
};
template <> struct EngineOf<double> {
    typedef Chain<double> Type;
};

// A sum in the dtype of a result, rounded once.
template <class T> __device__ __forceinline__ T narrow(float sum) { return from_f32<T>(sum); }
template <class T> __device__ __forceinline__ T narrow(double sum) { return from_f64<T>(sum); }

template <class Engine, class T, class W, class Right>
__device__ __forceinline__ void linear(const ProductParams<T, W, typename Engine::Sum>& p,
                                       const Right& right) {
    typedef typename Engine::Sum A;
    const i64 row0 = (i64)blockIdx.x * ROWS, column0 = (i64)blockIdx.y * COLUMNS;
    Engine e;
    clear(e);
    sweep(e, p.left, right, row0, p.rows, column0, p.columns, p.depth);
    if (p.lora.count > 0)
        add_low_rank<T>(e, p.lora, Strided<A>{p.low, p.low_stride, 1}, row0, p.rows, column0,
                        p.columns);
    each(e, row0, p.rows, column0, p.columns, [&](i64 row, i64 column, A sum) {
        if (p.bias.at) sum += As<A, T>::of(p.bias.at[column * p.bias.stride]);
        if (p.addend) sum = As<A, T>::of(p.addend[row * p.addend_stride + column]) + sum;
        p.y[row * p.row_stride + column] = narrow<T>(sum);
    });
}
