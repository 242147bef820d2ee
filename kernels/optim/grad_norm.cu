// norm = sqrt(sum over tensors of sum_i g[i]^2), in one launch over a list of tensors.
//
// Global norm of Pascanu et al. 2013 (arXiv:1211.5063, algorithm 1).
//
// | operand | shape    | dtype               | layout                                |
// |---------|----------|---------------------|---------------------------------------|
// | tensors | [count]  | address, length, .. | contiguous; the tensors contiguous too |
// | g       | [length] | f32, bf16, f16, f64 | contiguous, any alignment             |
// | norm    | [1]      | f64                 |                                       |
//
// Mapping: a block brings 32 KB to shared memory, chunks of 4,096 elements, which start anew with
// each tensor; 16 lanes walk a chunk there. The block that is done last adds the blocks' sums.
// Traffic: every element once, 2 flops each in f64; 8 bytes for 32 KB written and read.
// Trick: all loads of a block are under way at once. 16 lanes that read a chunk's 256 rounds 8 at a
// time took 32 µs for 2^22 f32 (measured, H200); predicted now 8, not yet measured.
//
//     lane l of a chunk:  s_l = fma(g[i], g[i], s_l) for i = l, l + 16, ...
//     everything else:    neighbors are added to neighbors, again and again
//
// Numerics: the bits are those of the CPU. The tree over lanes, chunks and blocks is one and the
// same binary tree over consecutive chunks, so it does not matter where a block ends; what is
// missing at its right edge is 0, and x + 0 = x for every sum of squares, infinity and NaN
// included.
#include "owner.cuh"
#include "grad_norm.h"

static constexpr int WARPS = THREADS / WARP;

// The sum of each group of `width` lanes, neighbors first.
__device__ __forceinline__ double add_neighbors(double x, int width) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2)
        if (step < width) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// The same over the threads of a block. All threads get it.
__device__ __forceinline__ double tree(double x) {
    __shared__ double warps[WARPS];
    const int lane = threadIdx.x % WARP;
    x = add_neighbors(x, WARP);
    if (lane == 0) warps[threadIdx.x / WARP] = x;
    __syncthreads();
    x = add_neighbors(lane < WARPS ? warps[lane] : 0.0, WARPS);
    x = __shfl_sync(ALL_LANES, x, 0);
    __syncthreads();
    return x;
}

// Chunks of a block, side by side in shared memory; where a half of a warp walks each, they lie in
// different banks.
template <class T> struct Stage {
    static constexpr int CHUNKS = STAGE_BYTES / (CHUNK * (int)sizeof(T)),
                         PITCH = CHUNK + 64 / (int)sizeof(T);
    T at[CHUNKS * PITCH];
};

template <class T> __device__ __forceinline__ void grad_norm(const GradNormParams& p) {
    constexpr int N = Vec16<T>::N, CHUNKS = Stage<T>::CHUNKS, PIECES = CHUNK / N / THREADS;
    __shared__ __align__(16) Stage<T> stage;
    __shared__ const T* from[CHUNKS];
    __shared__ int lengths[CHUNKS];
    const i64 first = (i64)blockIdx.x * CHUNKS;
    i64 index = last_start(p.count, first, [&](i64 i) { return p.tensors[i].first_chunk; });
    if (threadIdx.x < CHUNKS) {
        const i64 mine = first + threadIdx.x;
        while (index + 1 < p.count && p.tensors[index + 1].first_chunk <= mine) ++index;
        const GradTensor tensor = p.tensors[index];
        const i64 begin = (mine - tensor.first_chunk) * CHUNK, left = tensor.length - begin;
        from[threadIdx.x] = (const T*)tensor.g + begin;
        lengths[threadIdx.x] = mine >= p.chunks ? 0 : left < CHUNK ? (int)left : CHUNK;
    }
    __syncwarp();
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < CHUNKS; ++c) {
        const T* g = from[c];
        T* to = stage.at + c * Stage<T>::PITCH;
        if (lengths[c] == CHUNK && aligned16(g)) {
            uint4 v[PIECES];
#pragma unroll
            for (int k = 0; k < PIECES; ++k) v[k] = ((const uint4*)g)[threadIdx.x + k * THREADS];
#pragma unroll
            for (int k = 0; k < PIECES; ++k) ((uint4*)to)[threadIdx.x + k * THREADS] = v[k];
        } else {
            for (int i = threadIdx.x; i < lengths[c]; i += THREADS) to[i] = g[i];
        }
    }
    __syncthreads();
    double sum = 0.0;
    const int walked = threadIdx.x / LANES, length = walked < CHUNKS ? lengths[walked] : 0;
    const T* chunk = stage.at + walked * Stage<T>::PITCH;
#pragma unroll 16
    for (int i = threadIdx.x % LANES; i < length; i += LANES)
        sum = fma(to_f64(chunk[i]), to_f64(chunk[i]), sum);
    sum = tree(sum);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
    if (!last_block(p.ticket, gridDim.x)) return;
    // In place: a level writes to its left of where it still reads.
    for (i64 n = gridDim.x; n > 1; n = (n + THREADS - 1) / THREADS) {
        for (i64 first = 0; first < n; first += THREADS) {
            const i64 i = first + threadIdx.x;
            const double total = tree(i < n ? p.partial[i] : 0.0);
            if (threadIdx.x == 0) p.partial[first / THREADS] = total;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) *p.norm = sqrt(p.partial[0]);
}

KERNEL(grad_norm_f32, (THREADS), GradNormParams) { grad_norm<float>(p); }
KERNEL(grad_norm_bf16, (THREADS), GradNormParams) { grad_norm<bf16>(p); }
KERNEL(grad_norm_f16, (THREADS), GradNormParams) { grad_norm<f16>(p); }
KERNEL(grad_norm_f64, (THREADS), GradNormParams) { grad_norm<double>(p); }
