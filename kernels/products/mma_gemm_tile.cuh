// Products of tiles: ROWS x 128 outputs per block, ROWS = 64 or 128, 64 steps per stage.
//
// sm_90a: a producer warpgroup fills stages (copies X, expands W); one consumer warpgroup per 64
// rows multiplies them with wgmma, both operands from shared memory. Six stages; a stage has a
// `full` and an `empty` barrier. With a
// cluster of 8 every block takes one chunk of the depth, and the chunks' sums meet over the
// cluster: few tiles then still occupy the machine.
//
// sm_80: eight warps fill a stage while they multiply the one before with mma.sync, each ROWS / 2 x
// 32 outputs.
//
// Sums leave through shared memory, in rows of 128.
#pragma once

#include "mma_gemm_stage.cuh"

// Which stages a block multiplies: whole chunks, and the low-rank chunk behind the last one.
struct Steps {
    i64 begin;
    int count, per_chunk;
    int low_rank;  // stages of the low-rank chunk
    template <class P>
    __device__ __forceinline__ Steps(const P& p, int rank, int stages_of_adapter) {
        const bool last = p.cluster == 1 || rank == p.chunks - 1;
        begin = (i64)rank * p.chunk;
        const i64 end = p.cluster > 1 && begin + p.chunk < p.depth ? begin + p.chunk : p.depth;
        count = end > begin ? (int)((end - begin + STEPS - 1) / STEPS) : 0;
        per_chunk = p.chunk / STEPS;
        low_rank = last ? (int)p.lora.count * stages_of_adapter : 0;
    }
    __device__ __forceinline__ int all() const { return count + low_rank; }
    // Whether stage i, the `in_chunk`th of its chunk counted from 1, is the chunk's last.
    __device__ __forceinline__ bool ends_chunk(int i, int in_chunk) const {
        return i + 1 == count || i + 1 == all() || (i < count && in_chunk == per_chunk);
    }
};

// Which outputs a block has, and its rank among those that share them.
struct TilePlace {
    int rank;
    i64 row0, column0;
    template <class P>
    __device__ __forceinline__ TilePlace(const P& p, int rows, i64 tile, i64 column_tile)
        : rank(p.cluster > 1 ? ptx_cluster_rank() : 0),
          row0(tile * rows),
          column0(column_tile * TILE_COLUMNS) {}
};

template <int ROWS> struct TileMemory {
    static constexpr int X = ROWS * 128, W = 128 * 128, STAGE = X + W;
    static constexpr int RING_SLOTS = PREFETCH_DISTANCE + 1;
    char* at;
    __device__ __forceinline__ char* x(int stage) const { return at + stage * STAGE; }
    __device__ __forceinline__ char* w(int stage) const { return x(stage) + X; }
    __device__ __forceinline__ char* ring_slot(int count) const {
        return at + STAGES * STAGE + count % RING_SLOTS * SLOT_BYTES;
    }
    // 256 nested maxima and 16 codes.
    __device__ __forceinline__ float* table() const {
        return (float*)(at + STAGES * STAGE + RING_SLOTS * SLOT_BYTES);
    }
    __device__ __forceinline__ u64* barriers() const { return (u64*)(table() + 256 + 16); }
    // Parameters of the block's own, where it has some.
    __device__ __forceinline__ char* params() const { return (char*)(barriers() + 2 * STAGES); }
    // The sums take the place of the stages.
    __device__ __forceinline__ float* sums() const { return (float*)at; }
};

// What fills stages: the loads of X and W, and of the low-rank chunk.
template <class T, int ROWS, bool N_MAJOR, class Loader> struct Producer {
    const TileMemory<ROWS>& m;
    const Steps& steps;
    const Input<T, ROWS> x;
    Loader& w;
    const LowRankLoader<T, N_MAJOR>& low;
    const T* parts;
    i64 row0, rows;

    // Starts what runs beside the arithmetic, for stage i.
    __device__ __forceinline__ void copy(int i, int thread) {
        const int stage = i % STAGES;
        if (i < steps.count) {
            const i64 k = steps.begin + (i64)i * STEPS;
            x.copy(m.x(stage), thread, k);
            w.copy(m.w(stage), m.ring_slot(i), thread, k);
            return;
        }
        w.skip();
        if (i >= steps.all()) return;
        const int g = (i - steps.count) / low.stages, k = (i - steps.count) % low.stages * STEPS;
        const i64 depth = 3 * low.rank;
        Input<T, ROWS>(parts + g * rows * depth, depth, row0, rows, depth)
            .copy(m.x(stage), thread, k);
        low.copy(m.w(stage), thread, g, k);
    }
    // Finishes it.
    __device__ __forceinline__ void expand(int i, int thread) {
        if (i < steps.count)
            w.expand(m.w(i % STAGES), m.ring_slot(i), thread, steps.begin + (i64)i * STEPS);
    }
};

#if __CUDA_ARCH__ >= 900
#include "mma_gemm_wgmma.cuh"
#else
#include "mma_gemm_sync.cuh"
#endif

// ---- the whole kernel -------------------------------------------------------------------------

// Each block finishes a part of the rows, a warp 4 rows of 128 at a time.
template <class T, int ROWS, class W>
__device__ __forceinline__ void tile_finish(const GemmParams<T, W>& p, const TileMemory<ROWS>& m,
                                            const TilePlace& place) {
    constexpr int WARPS = TILE_THREADS<ROWS> / WARP;
    const Partials<0, true> partials = {shared_address(m.sums()), p.chunks,
                                        p.lora.count > 0 ? ROWS * PITCH * 4 : 0};
    const int rows = ROWS / (int)p.cluster, column = threadIdx.x % WARP * 4;
    for (int row = threadIdx.x / WARP * 4; row < rows; row += WARPS * 4) {
        const int first = place.rank * rows + row;
        float sum[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = (first + i) * PITCH + column;
            if (p.cluster > 1) {
                partials.total<4>(at, sum[i]);
            } else {
                const float4 v = *(const float4*)(m.sums() + at);
                sum[i][0] = v.x, sum[i][1] = v.y, sum[i][2] = v.z, sum[i][3] = v.w;
            }
        }
        finish<4, 4>(p, place.row0 + first, place.column0 + column, sum);
    }
}

template <class T, int ROWS, class W>
__device__ __forceinline__ void tile_end(const GemmParams<T, W>& p, const TileMemory<ROWS>& m,
                                         const TilePlace& place) {
    __syncthreads();
    if (p.cluster > 1) ptx_cluster_sync();
    tile_finish(p, m, place);
    __syncwarp();
    if (p.cluster > 1) ptx_cluster_sync();
}

template <class T, int ROWS, bool N_MAJOR>
__device__ __forceinline__ void matmul_tile(const GemmParams<T, Strided<T>>& p, i64 column_tile) {
    const TileMemory<ROWS> m = {shared};
    const TilePlace place(p, ROWS, blockIdx.x / p.cluster, column_tile);
    const bool pieces =
        in_pieces(p.right.at, N_MAJOR ? p.right.step_stride : p.right.lane_stride, 16);
    tile_begin(m, !pieces);
    __syncthreads();
    if (pieces) {
        DenseLoader<T, N_MAJOR> loader(p, place.column0);
        tile_sums<T, ROWS, N_MAJOR>(p, m, place, loader);
    } else {
        GatheredLoader<T, N_MAJOR, Strided<T>> loader = {p.right, place.column0, p.columns,
                                                         p.depth};
        tile_sums<T, ROWS, N_MAJOR>(p, m, place, loader);
    }
    tile_end(p, m, place);
}

template <class T, int ROWS, bool N_MAJOR>
__device__ __forceinline__ void nf4_matmul_tile(const GemmParams<T, Nf4Matrix>& p, i64 tile,
                                                i64 column_tile) {
    const TileMemory<ROWS> m = {shared};
    const TilePlace place(p, ROWS, tile, column_tile);
    const bool regular = p.right.regular;
    float* table = m.table();
    for (int i = threadIdx.x; i < 256; i += TILE_THREADS<ROWS>) {
        table[i] = p.right.max.codes.at ? p.right.max.table.get(i) : 0.0f;
        if (i < 16) table[256 + i] = p.right.code.get(i);
    }
    tile_begin(m, true);
    __syncthreads();
    if (regular) {
        Nf4Loader<T, N_MAJOR> loader(p, place.column0, table, threadIdx.x % PRODUCERS);
        tile_sums<T, ROWS, N_MAJOR>(p, m, place, loader);
    } else {
        const Nf4Operand operand = {p.right, table + 256};
        GatheredLoader<T, N_MAJOR, Nf4Operand> loader = {operand, place.column0, p.columns,
                                                         p.depth};
        tile_sums<T, ROWS, N_MAJOR>(p, m, place, loader);
    }
    tile_end(p, m, place);
}
