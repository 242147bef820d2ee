// Several products of one X in one launch, and silu(y[0]) ⊙ y[1] of the first two: q, k and v of a
// decoder, or gate and up, or the first factors of their adapters.
//
// A block finds its product by its tile of columns, and works on a copy of that product's
// parameters in shared memory. So every product has the bits that it has alone. A piece of the
// output that is finished by a block is finished, with the same rows and columns, by one block of
// the other product; of the two, the one that comes last gates it. It reads what was rounded to T,
// so the result has the bits of swiglu.
#pragma once

#include "mma_gemm_tile.cuh"
#include "mma_gemm_fan.h"
#include "swiglu.cuh"

// Rows row0.. and columns column0.. of the output that this block has finished.
struct FanPiece {
    i64 row0, rows, column0, columns;
    i64 ticket;
};

// Copies the parameters of the product that tile `tile` belongs to. Returns the tile's number in
// it.
template <class T, class W>
__device__ __forceinline__ i64 fan_choose(const FanParams<T, W>& p, i64 tile,
                                          GemmParams<T, W>& mine) {
    static_assert(FAN == 3, "a choice of three");
    static_assert(sizeof(GemmParams<T, W>) + 16 <= FAN_SHARED, "the launch asks for this much");
    const int map = tile >= p.first[2] ? 2 : tile >= p.first[1] ? 1 : 0;
    // A parameter is not indexed at run time: it would be copied to local memory.
    if (threadIdx.x == 0) {
        if (map == 0) mine = p.map[0];
        else if (map == 1) mine = p.map[1];
        else mine = p.map[2];
    }
    __syncwarp();
    __syncthreads();
    return tile - (map == 0 ? 0 : map == 1 ? p.first[1] : p.first[2]);
}

template <class T, class W>
__device__ __forceinline__ void fan_gate(const FanParams<T, W>& p, const FanPiece& piece) {
    if (!p.gated || !last_block(p.tickets + piece.ticket, 2)) return;
    constexpr int N = Vec16<T>::N;
    const GemmParams<T, W>&gate = p.map[0], &up = p.map[1];
    const i64 rows = gate.rows - piece.row0 < piece.rows ? gate.rows - piece.row0 : piece.rows,
              columns = gate.columns - piece.column0 < piece.columns ? gate.columns - piece.column0
                                                                     : piece.columns;
    const bool pieces = in_pieces(gate.y, gate.y_stride, 16) && in_pieces(up.y, up.y_stride, 16) &&
                        in_pieces(p.gated, p.gated_stride, 16) && columns == piece.columns;
    const int per_row = (int)piece.columns / N;
    for (int i = threadIdx.x; i < rows * per_row; i += blockDim.x) {
        const i64 row = piece.row0 + i / per_row, column = piece.column0 + i % per_row * N;
        const T *g = gate.y + row * gate.y_stride + column, *u = up.y + row * up.y_stride + column;
        T* y = p.gated + row * p.gated_stride + column;
        if (pieces) {
            Vec16<T> a, b, out;
            a.raw = *(const uint4*)g, b.raw = *(const uint4*)u;
#pragma unroll
            for (int k = 0; k < N; ++k) out.at[k] = gated<float>(a.at[k], b.at[k]);
            store16(y, out);
            continue;
        }
#pragma unroll 1
        for (int k = 0; k < N && column + k < gate.columns; ++k) y[k] = gated<float>(g[k], u[k]);
    }
}

// Up to 16 rows: a block finishes 32 columns.
template <class T, class W>
__device__ __forceinline__ void fan_gate_skinny(const FanParams<T, W>& p, i64 tile) {
    const i64 block = tile * SKINNY_GROUPS + (SKINNY_GROUPS > 1 ? ptx_cluster_rank() : 0);
    fan_gate(p, {0, 16, block * SKINNY_ROWS, SKINNY_ROWS, block});
}

// Tiles: a block finishes its share of the rows.
template <int ROWS, class T, class W>
__device__ __forceinline__ void fan_gate_tile(const FanParams<T, W>& p, int cluster, i64 tile) {
    const i64 rows = ROWS / cluster, tiles = p.first[1];
    fan_gate(
        p, {blockIdx.x * rows, rows, tile * TILE_COLUMNS, TILE_COLUMNS, blockIdx.x * tiles + tile});
}

#define FAN_KERNELS(name, T, W, SKINNY_BOUNDS)                                             \
    KERNEL(name##_few8_##T, SKINNY_BOUNDS, FanParams<T, W>) { fan_skinny<1>(p); }          \
    KERNEL(name##_few16_##T, SKINNY_BOUNDS, FanParams<T, W>) { fan_skinny<2>(p); }         \
    KERNEL(name##_tile64_##T, (TILE_THREADS<64>, 1), FanParams<T, W>) { fan_tile<64>(p); } \
    KERNEL(name##_tile128_##T, (TILE_THREADS<128>, 1), FanParams<T, W>) { fan_tile<128>(p); }
