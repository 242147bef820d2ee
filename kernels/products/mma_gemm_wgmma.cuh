// Tiles on sm_90a: wgmma with both operands in shared memory, filled by a producer warpgroup.
// A part of mma_gemm_tile.cuh.
#pragma once

__device__ __forceinline__ u64 matrix_descriptor(const char* at, u32 leading, u32 stride) {
    return (u64)(shared_address(at) >> 4 & 0x3fff) | (u64)(leading >> 4) << 16 |
           (u64)(stride >> 4) << 32 | 1ull << 62;
}
template <int N_MAJOR>
__device__ __forceinline__ void wgmma(float (&d)[64], u64 a, u64 b, int keep, bf16) {
    ptx_wgmma_bf16<N_MAJOR>(d, a, b, keep);
}
template <int N_MAJOR>
__device__ __forceinline__ void wgmma(float (&d)[64], u64 a, u64 b, int keep, f16) {
    ptx_wgmma_f16<N_MAJOR>(d, a, b, keep);
}

template <int ROWS> static constexpr int TILE_THREADS = ROWS * 2 + PRODUCERS;

// Stages are made visible to wgmma by those who wait for them: a fence here would wait for the
// copies under way to the next stages as well.
template <class Loader, int ROWS, class Producer>
__device__ __forceinline__ void produce_stages(const TileMemory<ROWS>& m, Producer& producer,
                                               int thread) {
    const u32 full = shared_address(m.barriers()), empty = full + 8 * STAGES;
    const int all = producer.steps.all();
    if (!Loader::EXPANDS) {
        // Nothing to finish: nobody here waits for a copy.
        for (int i = 0; i < all; ++i) {
            const u32 stage = (u32)i % STAGES;
            ptx_barrier_wait(empty + 8 * stage, (u32)i / STAGES % 2 ^ 1);
            producer.copy(i, thread);
            ptx_barrier_arrive_after_copies(full + 8 * stage);
            ptx_barrier_arrive(full + 8 * stage);
        }
        return;
    }
    for (int i = -PREFETCH_DISTANCE; i < all; ++i) {
        const int next = i + PREFETCH_DISTANCE;
        if (next < all) ptx_barrier_wait(empty + 8 * (next % STAGES), next / STAGES % 2 ^ 1);
        producer.copy(next, thread);
        ptx_copy_commit();
        if (i < 0) continue;
        ptx_copy_wait_groups<PREFETCH_DISTANCE>();
        __syncwarp();
        producer.expand(i, thread);
        ptx_barrier_arrive(full + 8 * (i % STAGES));
    }
}

// Starts the products of stage i; the first of a chunk starts from 0.
template <class T, int ROWS, bool N_MAJOR>
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
        wgmma<N_MAJOR>(sum, a + u * 2, b + u * (N_MAJOR ? 128 : 2), u > 0 || keep, T{});
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
template <class T, int ROWS, bool N_MAJOR>
__device__ __forceinline__ void consume_stages(float (&total)[64], float (&sum)[64],
                                               const TileMemory<ROWS>& m, const Steps& steps,
                                               bool clustered, int group) {
    const u32 full = shared_address(m.barriers()), empty = full + 8 * STAGES;
    const u64 a = matrix_descriptor(m.x(0) + group * 8192, 16, 1024),
              b = matrix_descriptor(m.w(0), N_MAJOR ? 8192 : 16, 1024);
    const int all = steps.all();
    for (int i = 0; i < all;) {
        const bool main = i < steps.count;
        const int end = !main                               ? all
                        : i + steps.per_chunk < steps.count ? i + steps.per_chunk
                                                            : steps.count;
        multiply_stage<T, ROWS, N_MAJOR>(sum, a, b, full, i, 0);
        for (++i; i < end; ++i) {
            multiply_stage<T, ROWS, N_MAJOR>(sum, a, b, full, i, 1);
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

__device__ __forceinline__ void store_sums(float* tile, const float (&sum)[64]) {
    float* to =
        tile + (threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4) * PITCH + threadIdx.x % 4 * 2;
#pragma unroll
    for (int e = 0; e < 64; e += 2)
        *(float2*)(to + e / 2 % 2 * 8 * PITCH + e / 4 * 8) = make_float2(sum[e], sum[e + 1]);
}

// Sums of ROWS x 128 outputs in shared memory.
template <class T, int ROWS, bool N_MAJOR, class P, class Loader>
__device__ __forceinline__ void tile_sums(const P& p, const TileMemory<ROWS>& m,
                                          const TilePlace& place, Loader& w) {
    constexpr int GROUPS = ROWS / 64;
    const int group = threadIdx.x / 128;
    const LowRankLoader<T, N_MAJOR> low(p, place.column0);
    const Steps steps(p, place.rank, low.stages);
    float total[64], sum[64];
    if (group == GROUPS) {
        Producer<T, ROWS, N_MAJOR, Loader> producer = {
            m,          steps, {p.x, p.x_stride, place.row0, p.rows, p.depth}, w, low, p.parts,
            place.row0, p.rows};
        produce_stages<Loader>(m, producer, threadIdx.x % 128);
    } else {
#pragma unroll
        for (int e = 0; e < 64; ++e) total[e] = sum[e] = 0.0f;
        consume_stages<T, ROWS, N_MAJOR>(total, sum, m, steps, p.cluster > 1, group);
    }
    __syncthreads();
    if (group == GROUPS) return;
    store_sums(m.sums(), total);
    if (p.cluster > 1 && steps.low_rank > 0) store_sums(m.sums() + ROWS * PITCH, sum);
}

template <int ROWS>
__device__ __forceinline__ void tile_begin(const TileMemory<ROWS>& m, bool expands) {
    if (threadIdx.x == 0) {
        // By each producer, and once more by its copies if it does not wait for them.
        const int arrivals = expands ? PRODUCERS : 2 * PRODUCERS;
        const u32 full = shared_address(m.barriers());
        for (int i = 0; i < STAGES; ++i) {
            ptx_barrier_init(full + 8 * i, arrivals);
            ptx_barrier_init(full + 8 * (STAGES + i), ROWS / 16);
        }
    }
}
