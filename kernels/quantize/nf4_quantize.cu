// code[i] = argmin_c |x[i] / absmax[block] - book[c]|, absmax[block] = max |x| over a block, and
// the second quantization of the maxima (QLoRA, arXiv:2305.14314, eq. 1 and §3). Every bit is that
// of bitsandbytes on the CPU: see `ops::nf4_quantize` for the rules.
//
// | operand | shape              | dtype          | layout                                     |
// |---------|--------------------|----------------|--------------------------------------------|
// | x       | [N, K]             | f32, bf16, f16 | rows contiguous, any row stride            |
// | packed  | [ceil(NK/2)]       | u8             | contiguous                                 |
// | absmax  | [blocks]           | f32            | any stride                                 |
// | bad     | [1]                | u64            | ~index of the first non-finite value, or 0 |
// | codes   | [blocks]           | u8             | any stride                                 |
// | nested  | [ceil(blocks/256)] | f32            | any stride                                 |
// | table   | [256]              | f32            | ascending                                  |
// | offset  | [1]                | f32            | mean of absmax                             |
//
// Mapping: 512 threads take 4,096 values, the largest block size; a thread has 8 neighbors. The
// maximum of a block is a butterfly over the threads that share it, in shared memory from 512
// values on. Maxima: one block sums in the order of torch on one thread, which interleaves 32
// chains: a lane a chain, a warp some runs of them; then a block of threads per 256 maxima.
// Traffic: x once, half a byte per value, 4 bytes per block.
// Numerics: a full block is scaled by the f32 reciprocal of its maximum, a short last one by
// division; codes change where the scaled value exceeds a midpoint. Max is exact, so no order
// matters.
#include "common.cuh"
#include "nf4_quantize.h"

static constexpr float TINY = 1e-38f;

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0.0f; }

template <class T>
__device__ __forceinline__ void load(const Nf4QuantizeParams<T>& p, i64 first, i64 count,
                                     float* v) {
    constexpr int N = Vec16<T>::N;
    const bool linear = p.row_stride == p.columns || p.rows == 1;
    if (linear && first + VECTOR <= count && aligned16(p.x + first)) {
#pragma unroll
        for (int part = 0; part < VECTOR / N; ++part) {
            Vec16<T> raw;
            raw.raw = *(const uint4*)(p.x + first + part * N);
#pragma unroll
            for (int k = 0; k < N; ++k) v[part * N + k] = to_f32(raw.at[k]);
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
        const i64 i = first + k;
        v[k] = i < count ? to_f32(p.x[i / p.columns * p.row_stride + i % p.columns]) : 0.0f;
    }
}

// Maximum over the `share` neighboring threads that hold a block.
__device__ __forceinline__ float block_max(float m, int share, float* warps) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, m, step);
        if (step < share) m = fmaxf(m, other);
    }
    if (share <= WARP) return m;
    const int warp = threadIdx.x / WARP, span = share / WARP;
    if (threadIdx.x % WARP == 0) warps[warp] = m;
    __syncthreads();
    for (int w = warp / span * span, end = w + span; w < end; ++w) m = fmaxf(m, warps[w]);
    return m;
}

template <class T> __device__ __forceinline__ u32 code_of(const Nf4QuantizeParams<T>& p, float x) {
    u32 rank = 0;
#pragma unroll
    for (int k = 0; k < 15; ++k) rank += x > p.bounds[k];
    return p.order[rank];
}

template <class T> __device__ __forceinline__ void nf4_quantize(const Nf4QuantizeParams<T>& p) {
    __shared__ float warps[THREADS / WARP];
    const i64 count = p.rows * p.columns, first = (i64)blockIdx.x * GROUP + threadIdx.x * VECTOR;
    float v[VECTOR], m = 0.0f;
    load(p, first, count, v);
    i64 bad = -1;
#pragma unroll
    for (int k = VECTOR - 1; k >= 0; --k) {
        if (!is_finite(v[k])) bad = first + k;
        m = fmaxf(m, fabsf(v[k]));
    }
    if (bad >= 0) atomicMax((unsigned long long*)p.bad, ~(unsigned long long)bad);
    m = block_max(m, (int)(p.blocksize / VECTOR), warps);
    if (first >= count) return;
    const i64 block = first / p.blocksize;
    const bool whole = (block + 1) * p.blocksize <= count;
    const float top = fmaxf(m, TINY), inverse = __frcp_rn(top);
    if (first % p.blocksize == 0) p.absmax.set(block, whole ? m : top);
    u32 bytes = 0;
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
        const float scaled = whole ? __fmul_rn(v[k], inverse) : __fdiv_rn(v[k], top);
        bytes |= code_of(p, fminf(fmaxf(scaled, -1.0f), 1.0f)) << (4 * (k ^ 1));
    }
    u8* out = p.packed + first / 2;
    if (first + VECTOR <= count && ((u64)out & 3) == 0) {
        *(u32*)out = bytes;
    } else {
        for (int k = 0; k < VECTOR / 2 && first + 2 * k < count; ++k)
            out[k] = (u8)(bytes >> (8 * k));
    }
}

KERNEL(nf4_quantize_f32, (THREADS), Nf4QuantizeParams<float>) { nf4_quantize(p); }
KERNEL(nf4_quantize_bf16, (THREADS), Nf4QuantizeParams<bf16>) { nf4_quantize(p); }
KERNEL(nf4_quantize_f16, (THREADS), Nf4QuantizeParams<f16>) { nf4_quantize(p); }

// ---- the maxima ---------------------------------------------------------------------------------

static constexpr int LEVELS = 4;

__device__ __forceinline__ int ceil_log2(i64 n) { return n <= 2 ? 1 : 64 - __clzll(n - 1); }

// A chain of the mean: every 2^power rounds level 0 is emptied into level 1, and so on.
struct Cascade {
    float level[LEVELS];
    int power;

    // After `runs` runs, the last of which has that sum.
    __device__ __forceinline__ void add(float sum, i64 runs) {
        const i64 last = ((i64)1 << power) - 1;
        level[1] += sum;
        if (runs & last) return;
        level[2] += level[1], level[1] = 0.0f;
        if (runs >> power & last) return;
        level[3] += level[2], level[2] = 0.0f;
    }
};

// The f32 mean in the order of torch on one thread: vectors of `width` values go to 4 accumulators
// in turn, lane = accumulator·width + place; every 2^power rounds a chain is emptied into the next
// of 4 levels. Such a run starts from 0, so runs are summed side by side, a warp some of them, and
// their sums added in order by the first warp. Lane 0 adds what is left over, the accumulators and
// the places in order.
KERNEL(nf4_absmax_mean, (MEAN_THREADS), Nf4AbsmaxParams) {
    constexpr int WARPS = MEAN_THREADS / WARP, BATCH = WARPS * MEAN_RUNS;
    __shared__ float sums[BATCH][WARP];
    __shared__ float chains[WARP];
    const i64 n = p.blocks;
    const int width = n < 8 ? 1 : 8, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const i64 vectors = n / width, rounds = vectors / 4;
    Cascade chain = {{0.0f, 0.0f, 0.0f, 0.0f}, max(ceil_log2(rounds) / LEVELS, 4)};
    const i64 length = (i64)1 << chain.power, runs = rounds >> chain.power;
    const auto value = [&](i64 round) {
        return p.absmax.get((round * 4 + lane / width) * width + lane % width);
    };
    const bool works = lane < 4 * width;
    for (i64 base = 0; base < runs; base += BATCH) {
        for (int k = 0; k < MEAN_RUNS; ++k) {
            const i64 run = base + warp * MEAN_RUNS + k;
            float sum = 0.0f;
            // A run has 16 rounds or a multiple of them.
            if (works && run < runs) {
#pragma unroll 16
                for (i64 i = 0; i < length; ++i) sum += value(run * length + i);
            }
            sums[warp * MEAN_RUNS + k][lane] = sum;
        }
        __syncthreads();
        const int count = runs - base < BATCH ? (int)(runs - base) : BATCH;
        if (warp == 0)
            for (int i = 0; i < count; ++i) chain.add(sums[i][lane], base + i + 1);
        __syncthreads();
    }
    if (warp != 0) return;
    if (works) {
        for (i64 i = runs * length; i < rounds; ++i) chain.level[0] += value(i);
        chains[lane] = ((chain.level[0] + chain.level[1]) + chain.level[2]) + chain.level[3];
    }
    __syncwarp();
    if (lane != 0) return;
    float total = 0.0f;
    for (i64 i = vectors * width; i < n; ++i) total += p.absmax.get(i);
    for (int place = 0; place < width; ++place) {
        float sum = chains[place];
        for (i64 v = rounds * 4; v < vectors; ++v) sum += p.absmax.get(v * width + place);
        for (int k = 1; k < 4; ++k) sum += chains[k * width + place];
        total += sum;
    }
    *p.offset = n > 0 ? __fdiv_rn(total, (float)n) : 0.0f;
}

// Number of midpoints below the grid point next to `scaled`; NaN goes to the first point.
__device__ __forceinline__ u8 grid_code(float scaled, const float* bounds) {
    const float limited = fminf(fmaxf(scaled, -1.0f), 1.0f);
    const u32 point = scaled != scaled ? 0
                                       : (u32)__fmaf_rn(__fmul_rn(__fadd_rn(limited, 1.0f), 0.5f),
                                                        65535.0f, 0.5f);
    const float value = __fadd_rn(__fdiv_rn(__fmul_rn(2.0f, (float)point), 65535.0f), -1.0f);
    int below = 0;
    for (int half = 128; half > 0; half /= 2)
        below += bounds[(below + half - 1) & 255] < value ? half : 0;
    return (u8)below;
}

// 8-bit codes of absmax - offset in blocks of 256.
KERNEL(nf4_quantize_absmax, (NESTED), Nf4AbsmaxParams) {
    __shared__ float warps[NESTED / WARP];
    __shared__ float bounds[256];
    const int t = threadIdx.x;
    bounds[t] = t < 255 ? __fmul_rn(__fadd_rn(p.table.get(t), p.table.get(t + 1)), 0.5f) : INF_F32;
    const i64 i = (i64)blockIdx.x * NESTED + t;
    const float centered = i < p.blocks ? __fsub_rn(p.absmax.get(i), *p.offset) : 0.0f;
    const float m = block_reduce<NESTED>(fabsf(centered), 0.0f, Max(), warps);
    __syncthreads();
    if (t == 0) p.nested.set(blockIdx.x, m);
    if (i < p.blocks)
        p.codes.set(i, m == 0.0f ? 0 : grid_code(__fmul_rn(centered, __frcp_rn(m)), bounds));
}
