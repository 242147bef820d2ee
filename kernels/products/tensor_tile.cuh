// Products of tiles: ROWS x 128 outputs a block, ROWS = 64 or 128, 64 steps a stage.
//
// sm_90a: a warpgroup fills stages (copies X, expands W), one warpgroup per 64 rows multiplies them
// with wgmma, both operands from shared memory; six stages, barriers between the two sides. With a
// cluster of 8 every block takes one chunk of the depth, and the chunks' sums meet over the
// cluster: few tiles then still occupy the machine.
//
// sm_80: eight warps fill a stage while they multiply the one before with mma.sync, each ROWS / 2 x
// 32 outputs.
//
// Sums leave through shared memory, in rows of 128.
#pragma once

#include "tensor_stage.cuh"

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
    __device__ __forceinline__ TilePlace(const P& p, int rows, i64 tile)
        : rank(p.cluster > 1 ? ptx_cluster_rank() : 0),
          row0(tile * rows),
          column0((i64)blockIdx.y * TILE_COLUMNS) {}
};

template <int ROWS> struct TileMemory {
    static constexpr int X = ROWS * 128, W = 128 * 128, STAGE = X + W;
    static constexpr int RING = 4096;  // packed weights of a stage
    static constexpr int RINGS = AHEAD + 1;
    char* at;
    __device__ __forceinline__ char* x(int stage) const { return at + stage * STAGE; }
    __device__ __forceinline__ char* w(int stage) const { return x(stage) + X; }
    __device__ __forceinline__ char* ring(int count) const {
        return at + STAGES * STAGE + count % RINGS * RING;
    }
    // 256 nested maxima and 16 codes.
    __device__ __forceinline__ float* table() const {
        return (float*)(at + STAGES * STAGE + RINGS * RING);
    }
    __device__ __forceinline__ u64* barriers() const { return (u64*)(table() + 256 + 16); }
    // Parameters of the block's own, where it has some.
    __device__ __forceinline__ char* params() const { return (char*)(barriers() + 2 * STAGES); }
    // The sums take the place of the stages.
    __device__ __forceinline__ float* sums() const { return (float*)at; }
};

// Everything that fills stages.
template <class T, int ROWS, bool ACROSS, class Source> struct Filler {
    const TileMemory<ROWS>& m;
    const Steps& steps;
    const Input<T, ROWS> x;
    Source& w;
    const LowRankSource<T, ACROSS>& low;
    const T* parts;
    i64 row0, rows;

    // Starts what runs beside the arithmetic, for stage i.
    __device__ __forceinline__ void copy(int i, int thread) {
        const int stage = i % STAGES;
        if (i < steps.count) {
            const i64 k = steps.begin + (i64)i * STEPS;
            x.copy(m.x(stage), thread, k);
            w.copy(m.w(stage), m.ring(i), thread, k);
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
            w.expand(m.w(i % STAGES), m.ring(i), thread, steps.begin + (i64)i * STEPS);
    }
};

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ u64 matrix_descriptor(const char* at, u32 leading, u32 stride) {
    return (u64)(shared_address(at) >> 4 & 0x3fff) | (u64)(leading >> 4) << 16 |
           (u64)(stride >> 4) << 32 | 1ull << 62;
}
template <int ACROSS>
__device__ __forceinline__ void wgmma(float (&d)[64], u64 a, u64 b, int keep, bf16) {
    ptx_wgmma_bf16<ACROSS>(d, a, b, keep);
}
template <int ACROSS>
__device__ __forceinline__ void wgmma(float (&d)[64], u64 a, u64 b, int keep, f16) {
    ptx_wgmma_f16<ACROSS>(d, a, b, keep);
}

template <int ROWS> static constexpr int TILE_THREADS = ROWS * 2 + WORKERS;

// Stages are made visible to wgmma by those who wait for them: a fence here would wait for the
// copies under way to the next stages as well.
template <class Source, int ROWS, class Filler>
__device__ __forceinline__ void fill_stages(const TileMemory<ROWS>& m, Filler& filler, int thread) {
    const u32 full = shared_address(m.barriers()), empty = full + 8 * STAGES;
    const int all = filler.steps.all();
    if (!Source::EXPANDS) {
        // Nothing to finish: nobody here waits for a copy.
        for (int i = 0; i < all; ++i) {
            const u32 stage = (u32)i % STAGES;
            ptx_barrier_wait(empty + 8 * stage, (u32)i / STAGES % 2 ^ 1);
            filler.copy(i, thread);
            ptx_barrier_arrive_after_copies(full + 8 * stage);
            ptx_barrier_arrive(full + 8 * stage);
        }
        return;
    }
    for (int i = -AHEAD; i < all; ++i) {
        const int next = i + AHEAD;
        if (next < all) ptx_barrier_wait(empty + 8 * (next % STAGES), next / STAGES % 2 ^ 1);
        filler.copy(next, thread);
        ptx_copy_commit();
        if (i < 0) continue;
        ptx_copy_wait_groups<AHEAD>();
        __syncwarp();
        filler.expand(i, thread);
        ptx_barrier_arrive(full + 8 * (i % STAGES));
    }
}

// Starts the products of stage i; the first of a chunk starts from 0.
template <class T, int ROWS, bool ACROSS>
__device__ __forceinline__ void multiply_stage(float (&sum)[64], u64 a, u64 b, u32 full, int i,
                                               int keep) {
    const u32 stage = (u32)i % STAGES;
    ptx_barrier_wait(full + 8 * stage, (u32)i / STAGES % 2);
    ptx_fence_async();
    // Addresses are in units of 16 bytes, and stay below the field's 14 bits.
    const u32 at = stage * (TileMemory<ROWS>::STAGE / 16);
    a += at, b += at;
    ptx_wgmma_fence();
#pragma unroll
    for (int u = 0; u < 4; ++u)
        wgmma<ACROSS>(sum, a + u * 2, b + u * (ACROSS ? 128 : 2), u > 0 || keep, T{});
    ptx_wgmma_commit();
}

__device__ __forceinline__ void release_stage(u32 empty, int i) {
    if (threadIdx.x % WARP == 0) ptx_barrier_arrive(empty + 8 * ((u32)i % STAGES));
}

// The sums of a warpgroup's 64 rows: chunk after chunk, each from 0, one stage's products under way
// while those of the next are started. Where every block has one chunk, those of the low-rank chunk
// stay in `sum`. The loops are written so that ptxas sees where the sums are at rest: otherwise it
// runs the products one by one (its remarks C7514 and C7515), as it does where `sum` does not begin
// as 0.
template <class T, int ROWS, bool ACROSS>
__device__ __forceinline__ void multiply_stages(float (&total)[64], float (&sum)[64],
                                                const TileMemory<ROWS>& m, const Steps& steps,
                                                bool clustered, int group) {
    const u32 full = shared_address(m.barriers()), empty = full + 8 * STAGES;
    const u64 a = matrix_descriptor(m.x(0) + group * 8192, 16, 1024),
              b = matrix_descriptor(m.w(0), ACROSS ? 8192 : 16, 1024);
    const int all = steps.all();
    for (int i = 0; i < all;) {
        const bool main = i < steps.count;
        const int end = !main                               ? all
                        : i + steps.per_chunk < steps.count ? i + steps.per_chunk
                                                            : steps.count;
        multiply_stage<T, ROWS, ACROSS>(sum, a, b, full, i, 0);
        for (++i; i < end; ++i) {
            multiply_stage<T, ROWS, ACROSS>(sum, a, b, full, i, 1);
            ptx_wgmma_wait<1>();
            release_stage(empty, i - 1);
        }
        ptx_wgmma_wait<0>();
        release_stage(empty, end - 1);
        if (clustered && !main) return;
#pragma unroll
        for (int e = 0; e < 64; ++e) total[e] += sum[e];
    }
}

__device__ __forceinline__ void park(float* tile, const float (&sum)[64]) {
    float* to =
        tile + (threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4) * PITCH + threadIdx.x % 4 * 2;
#pragma unroll
    for (int e = 0; e < 64; e += 2)
        *(float2*)(to + e / 2 % 2 * 8 * PITCH + e / 4 * 8) = make_float2(sum[e], sum[e + 1]);
}

// Sums of ROWS x 128 outputs in shared memory.
template <class T, int ROWS, bool ACROSS, class P, class Source>
__device__ __forceinline__ void tile_sums(const P& p, const TileMemory<ROWS>& m,
                                          const TilePlace& place, Source& w) {
    constexpr int GROUPS = ROWS / 64;
    const int group = threadIdx.x / 128;
    const LowRankSource<T, ACROSS> low(p, place.column0);
    const Steps steps(p, place.rank, low.stages);
    float total[64], sum[64];
    if (group == GROUPS) {
        Filler<T, ROWS, ACROSS, Source> filler = {
            m,          steps, {p.x, p.x_stride, place.row0, p.rows, p.depth}, w, low, p.parts,
            place.row0, p.rows};
        fill_stages<Source>(m, filler, threadIdx.x % 128);
    } else {
#pragma unroll
        for (int e = 0; e < 64; ++e) total[e] = sum[e] = 0.0f;
        multiply_stages<T, ROWS, ACROSS>(total, sum, m, steps, p.cluster > 1, group);
    }
    __syncthreads();
    if (group == GROUPS) return;
    park(m.sums(), total);
    if (p.cluster > 1 && steps.low_rank > 0) park(m.sums() + ROWS * PITCH, sum);
}

template <int ROWS>
__device__ __forceinline__ void tile_begin(const TileMemory<ROWS>& m, bool expands) {
    if (threadIdx.x == 0) {
        // By each worker, and once more by its copies if it does not wait for them.
        const int arrivals = expands ? WORKERS : 2 * WORKERS;
        const u32 full = shared_address(m.barriers());
        for (int i = 0; i < STAGES; ++i) {
            ptx_barrier_init(full + 8 * i, arrivals);
            ptx_barrier_init(full + 8 * (STAGES + i), ROWS / 16);
        }
    }
}

#else

template <int ROWS> static constexpr int TILE_THREADS = WORKERS;

// The sums of a warp: MT x 4 products m16n8.
template <int MT> struct WarpTile {
    float at[MT][4][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) at[i][j][e] = 0.0f;
    }
};

// Steps 8u + 4·(t % 2) + 32·(t / 2) and the next 3 of a row.
__device__ __forceinline__ uint2 four_steps(const char* stage, int row, int u) {
    const int t = threadIdx.x % 4;
    return *(const uint2*)(stage + along(row, u + t / 2 * 4) + t % 2 * 8);
}

// Right operands of columns column0..column0+32 for product u.
template <bool ACROSS>
__device__ __forceinline__ void right_operands(u32 (&b)[4][2], const char* stage, int column0,
                                               int u) {
    const int lane = threadIdx.x % WARP;
    if (!ACROSS) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint2 v = four_steps(stage, column0 + 8 * j + lane / 4, u);
            b[j][0] = v.x, b[j][1] = v.y;
        }
        return;
    }
    // Matrix m: half m % 2 of columns 8·(m / 2); its rows are the steps in the order of four_steps.
    const int m = lane / 8, r = lane % 8;
    const int step = 8 * u + r % 2 + r / 2 % 2 * 4 + r / 4 * 32 + m % 2 * 2;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        u32 v[4];
        ptx_load_matrices_transposed(v, stage + across(step, column0 / 8 + j + m / 2));
        b[j][0] = v[0], b[j][1] = v[1], b[j + 1][0] = v[2], b[j + 1][1] = v[3];
    }
}

template <class T, bool ACROSS, int MT>
__device__ __forceinline__ void multiply_stage(WarpTile<MT>& sum, const char* x, const char* w,
                                               int row0, int column0) {
    const int g = threadIdx.x % WARP / 4;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
        u32 b[4][2];
        right_operands<ACROSS>(b, w, column0, u);
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            const uint2 upper = four_steps(x, row0 + 16 * i + g, u),
                        lower = four_steps(x, row0 + 16 * i + g + 8, u);
            const u32 a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
            for (int j = 0; j < 4; ++j) Halves<T>::mma(sum.at[i][j], a, b[j]);
        }
    }
}

template <class T, int ROWS, bool ACROSS, class P, class Source>
__device__ __forceinline__ void tile_sums(const P& p, const TileMemory<ROWS>& m,
                                          const TilePlace& place, Source& w) {
    constexpr int MT = ROWS / 32;
    const int thread = threadIdx.x, warp = thread / WARP;
    const int warp_row = warp / 4 * (ROWS / 2), warp_column = warp % 4 * 32;
    const LowRankSource<T, ACROSS> low(p, place.column0);
    const Steps steps(p, place.rank, low.stages);
    Filler<T, ROWS, ACROSS, Source> filler = {
        m,          steps, {p.x, p.x_stride, place.row0, p.rows, p.depth}, w, low, p.parts,
        place.row0, p.rows};
    WarpTile<MT> sum, total;
    sum.clear(), total.clear();
    filler.copy(0, thread);
    for (int i = 0, in_chunk = 0; i < steps.all(); ++i) {
        const int stage = i % STAGES;
        ptx_copy_wait();
        __syncwarp();
        filler.expand(i, thread);
        __syncthreads();
        filler.copy(i + 1, thread);
        multiply_stage<T, ACROSS, MT>(sum, m.x(stage), m.w(stage), warp_row, warp_column);
        if (!steps.ends_chunk(i, ++in_chunk)) continue;
        in_chunk = 0;
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) total.at[i][j][e] += sum.at[i][j][e];
        sum.clear();
    }
    __syncthreads();
    float* to = m.sums() + (warp_row + thread % WARP / 4) * PITCH + warp_column + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                *(float2*)(to + (16 * i + 8 * h) * PITCH + 8 * j) =
                    make_float2(total.at[i][j][2 * h], total.at[i][j][2 * h + 1]);
}

template <int ROWS> __device__ __forceinline__ void tile_begin(const TileMemory<ROWS>&, bool) {}

#endif

// ---- the whole kernel -------------------------------------------------------------------------

// Each block finishes a part of the rows, a warp 4 rows of 128 at a time.
template <class T, int ROWS, class W>
__device__ __forceinline__ void tile_finish(const TensorParams<T, W>& p, const TileMemory<ROWS>& m,
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
__device__ __forceinline__ void tile_end(const TensorParams<T, W>& p, const TileMemory<ROWS>& m,
                                         const TilePlace& place) {
    __syncthreads();
    if (p.cluster > 1) ptx_cluster_sync();
    tile_finish(p, m, place);
    __syncwarp();
    if (p.cluster > 1) ptx_cluster_sync();
}

template <class T, int ROWS, bool ACROSS>
__device__ __forceinline__ void matmul_tile(const TensorParams<T, Dense<T>>& p) {
    const TileMemory<ROWS> m = {shared};
    const TilePlace place(p, ROWS, blockIdx.x / p.cluster);
    const bool pieces = in_pieces(p.right.at, ACROSS ? p.right.step : p.right.lane, 16);
    tile_begin(m, !pieces);
    __syncthreads();
    if (pieces) {
        DenseSource<T, ACROSS> source(p, place.column0);
        tile_sums<T, ROWS, ACROSS>(p, m, place, source);
    } else {
        GatheredSource<T, ACROSS, Dense<T>> source = {p.right, place.column0, p.columns, p.depth};
        tile_sums<T, ROWS, ACROSS>(p, m, place, source);
    }
    tile_end(p, m, place);
}

template <class T, int ROWS, bool ACROSS>
__device__ __forceinline__ void nf4_matmul_tile(const TensorParams<T, Nf4Matrix>& p, i64 tile) {
    const TileMemory<ROWS> m = {shared};
    const TilePlace place(p, ROWS, tile);
    const bool regular = p.right.regular;
    float* table = m.table();
    for (int i = threadIdx.x; i < 256; i += TILE_THREADS<ROWS>) {
        table[i] = p.right.max.codes.at ? p.right.max.table.get(i) : 0.0f;
        if (i < 16) table[256 + i] = p.right.code.get(i);
    }
    tile_begin(m, true);
    __syncthreads();
    if (regular) {
        Nf4Source<T, ACROSS> source(p, place.column0, table, threadIdx.x % WORKERS);
        tile_sums<T, ROWS, ACROSS>(p, m, place, source);
    } else {
        const Nf4Side side = {p.right, table + 256};
        GatheredSource<T, ACROSS, Nf4Side> source = {side, place.column0, p.columns, p.depth};
        tile_sums<T, ROWS, ACROSS>(p, m, place, source);
    }
    tile_end(p, m, place);
}
