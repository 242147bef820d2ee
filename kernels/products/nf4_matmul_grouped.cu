// Y[e] = X[e]·deq(W[e])ᵀ and dX[e] = dY[e]·deq(W[e]) for the rows of every expert e of a mixture,
// in one launch: rows lie sorted by expert, offsets say whose they are.
//
// A mixture's layer after its router (Shazeer et al. 2017, arXiv:1701.06538, eq. 1) with the
// weights of QLoRA (arXiv:2305.14314, eq. 5).
//
// | operand | shape          | dtype     | layout                                               |
// |---------|----------------|-----------|------------------------------------------------------|
// | x, dy   | [M, K], [M, N] | bf16, f16 | rows contiguous, any row stride                      |
// | offsets | [E + 1]        | i64       | any stride; expert e has rows offsets[e]..offsets[e+1] |
// | weights | [E]            | 4-bit [N, K] each | a list in device memory; as in nf4_matmul    |
// | y, dx   | [M, N], [M, K] | as x      | rows contiguous, any row stride                      |
//
// Mapping: tiles of 64 rows x 128 columns (mma_gemm_tile.cuh). No more than ceil(M / 64) + E tiles
// of rows exist whatever the offsets are; a block finds its expert by a prefix sum over tiles, 32
// experts at a time, and works on a copy of the parameters with that expert's rows and weight. The
// host never looks at the offsets.
// Traffic: W of every expert that has rows, ceil(rows / 64) times, from L2 but for the first; X and
// Y once per tile of columns. 2·M·N·K flops, those of tiles that are not full besides.
// Numerics: a row has the bits that nf4_matmul gives it with its expert's weight.
#include "mma_gemm_tile.cuh"
#include "nf4_matmul_grouped.h"

// Which expert tile `slot` belongs to, -1 for none, and its number there.
template <class T>
__device__ __forceinline__ int find_expert(const GroupedParams<T>& p, i64 slot, i64& tile) {
    const int lane = threadIdx.x % WARP;
    i64 before = 0;
    for (int first = 0; first < p.count; first += WARP) {
        const int e = first + lane;
        const Span rows = e < p.count ? span(p.offsets, e, p.all.rows) : Span{0, 0};
        const i64 tiles = (rows.end - rows.begin + GROUPED_ROWS - 1) / GROUPED_ROWS;
        i64 upto = tiles;
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            const i64 lower = __shfl_up_sync(ALL_LANES, upto, step);
            if (lane >= step) upto += lower;
        }
        const u32 beyond = __ballot_sync(ALL_LANES, before + upto > slot);
        if (beyond) {
            const int found = __ffs((int)beyond) - 1;
            tile = slot - before - __shfl_sync(ALL_LANES, upto - tiles, found);
            return first + found;
        }
        before += __shfl_sync(ALL_LANES, upto, WARP - 1);
    }
    return -1;
}

template <class T, bool N_MAJOR>
__device__ __forceinline__ void nf4_matmul_grouped(const GroupedParams<T>& p) {
    typedef GemmParams<T, Nf4Matrix> Params;
    Params& mine = *(Params*)TileMemory<GROUPED_ROWS>{shared}.params();
    i64 tile;
    const int expert = find_expert(p, blockIdx.x, tile);
    if (expert < 0) return;
    if (threadIdx.x == 0) {
        const Span rows = span(p.offsets, expert, p.all.rows);
        mine = p.all;
        mine.x += rows.begin * mine.x_stride, mine.y += rows.begin * mine.y_stride;
        if (mine.addend) mine.addend += rows.begin * mine.addend_stride;
        mine.rows = rows.end - rows.begin;
        mine.right = p.weights[expert];
    }
    __syncthreads();
    nf4_matmul_tile<T, GROUPED_ROWS, N_MAJOR>(mine, tile, blockIdx.y);
}

KERNEL(nf4_matmul_grouped_bf16, (TILE_THREADS<GROUPED_ROWS>, 1), GroupedParams<bf16>) {
    nf4_matmul_grouped<bf16, false>(p);
}
KERNEL(nf4_matmul_grouped_f16, (TILE_THREADS<GROUPED_ROWS>, 1), GroupedParams<f16>) {
    nf4_matmul_grouped<f16, false>(p);
}
KERNEL(nf4_matmul_grouped_dx_bf16, (TILE_THREADS<GROUPED_ROWS>, 1), GroupedParams<bf16>) {
    nf4_matmul_grouped<bf16, true>(p);
}
KERNEL(nf4_matmul_grouped_dx_f16, (TILE_THREADS<GROUPED_ROWS>, 1), GroupedParams<f16>) {
    nf4_matmul_grouped<f16, true>(p);
}
