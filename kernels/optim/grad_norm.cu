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
// Mapping: 16 lanes per chunk of 4,096 elements, chunks start anew with each tensor; 16 chunks per
// block. The block that is done last adds the blocks' sums.
// Traffic: every element once, 2 flops each in f64; 8 bytes for 65,536 elements written and read.
//
//     lane l of a chunk:  s_l = fma(g[i], g[i], s_l) for i = l, l + 16, ...
//     everything else:    neighbors are added to neighbors, again and again
//
// Numerics: the bits are those of the CPU. The tree over lanes, chunks and blocks is one and the
// same binary tree over consecutive chunks, so it does not matter where a block ends; what is
// missing at its right edge is 0, and x + 0 = x for every sum of squares, infinity and NaN
// included.
#include "common.cuh"
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

// The tensor that holds a chunk: the last one that does not start behind it.
__device__ __forceinline__ GradTensor owner(const GradNormParams& p, i64 chunk) {
    i64 low = 0, high = p.count;
    while (high - low > 1) {
        const i64 middle = (low + high) / 2;
        if (p.tensors[middle].first_chunk <= chunk) low = middle;
        else high = middle;
    }
    return p.tensors[low];
}

template <class T> __device__ __forceinline__ void grad_norm(const GradNormParams& p) {
    const i64 chunk = (i64)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    double sum = 0.0;
    if (chunk < p.chunks) {
        const GradTensor tensor = owner(p, chunk);
        const i64 first = (chunk - tensor.first_chunk) * CHUNK, left = tensor.length - first;
        const int n = left < CHUNK ? (int)left : CHUNK;
        const T* g = (const T*)tensor.g + first;
#pragma unroll 8
        for (int i = threadIdx.x % LANES; i < n; i += LANES) {
            const double x = to_f64(g[i]);
            sum = fma(x, x, sum);
        }
    }
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
