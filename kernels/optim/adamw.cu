// AdamW over many tensors in one launch (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2), with
// 32-bit state, or 8-bit block-wise state (Dettmers et al., arXiv:2110.02861).
//
//     m = b1·m + (1 - b1)·g,  v = b2·v + (1 - b2)·g²,  q = m / (sqrt(v)·r + eps)
//     p = p - (step·q + decay·p)        decoupled decay before the step, or after it
//
// | operand            | shape             | dtype    | layout                             |
// |--------------------|-------------------|----------|------------------------------------|
// | param, grad, m, v  | [n]               | f32 (m, v: u8 codes for 8-bit) | contiguous   |
// | m_absmax, v_absmax | [ceil(n / 256)]   | f32      | contiguous                         |
// | mask               | [n]               | u8       | contiguous, may be absent          |
// | outcome            | [4]               | u64      | bad, updated, unchanged, absorbed  |
//
// Mapping: 4,096 elements per block of 256 threads, which find the block's tensor in a table of
// first blocks. Two launches: the first looks for gradients that may not be used and
// leaves the least (tensor, element) in `outcome`; the second does nothing if there is one. The
// host need not look in between.
// Traffic: 4 elements read, 3 written, and the gradients once more for the check: 32 bytes an
// element; 8-bit state 18 bytes. One atomic a block and counter: all go to one sector, so at one a
// warp 2^22 elements waited for 24,600 of them (77 µs measured on an H200; predicted now 40, not
// yet measured). The tensor's entry is read once, not in the loop.
// Numerics: f32 with the roundings spelled out, so that every executor has the same bits. Counters
// are integers. A masked element is neither looked at nor written.
#include "owner.cuh"
#include "adamw.h"

static constexpr int STATE_BLOCK = 256;
static constexpr u64 NONE = ~0ull;

// What a block works on: a tensor, a copy of its entry, and the elements from `first` to `end`.
struct Work {
    AdamWTensor t;
    i64 index, first, end;

    __device__ __forceinline__ explicit Work(const AdamWParams& p)
        : index(last_start(p.tensor_count, blockIdx.x,
                           [&](i64 i) { return p.tensors[i].first_block; })) {
        t = p.tensors[index];
        first = ((i64)blockIdx.x - t.first_block) * CHUNK;
        end = first + CHUNK < t.count ? first + CHUNK : t.count;
    }

    __device__ __forceinline__ bool takes(i64 i) const { return !t.mask || t.mask[i] != 0; }

    // Calls four(i) for neighbors i .. i + 4 that all take part, where `aligned` says that they can
    // be read at once, and one(i) for every other element that does.
    template <class Four, class One>
    __device__ __forceinline__ void for_each(bool aligned, const Four& four, const One& one) const {
        const bool pieces = aligned && ((u64)t.mask & 3) == 0;
        const i64 whole = pieces ? end - (end - first) % 4 : first;
        for (i64 i = first + threadIdx.x * 4; i < whole; i += THREADS * 4) {
            const u32 mask = t.mask ? *(const u32*)(t.mask + i) : ~0u;
            // No byte is 0.
            if (((mask - 0x01010101u) & ~mask & 0x80808080u) == 0) {
                four(i);
                continue;
            }
#pragma unroll 1
            for (int k = 0; k < 4; ++k)
                if (mask >> 8 * k & 255) one(i + k);
        }
        for (i64 i = whole + threadIdx.x; i < end; i += THREADS)
            if (takes(i)) one(i);
    }
};

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0.0f; }

KERNEL(adamw_check, (THREADS), AdamWParams) {
    const Work work(p);
    const auto look = [&](float grad, i64 i) {
        const float g = __fmul_rn(p.grad_scale, grad);
        if (is_finite(g) && is_finite(__fmul_rn(__fmul_rn(p.one_minus_beta2, g), g))) return;
        atomicMin((unsigned long long*)p.outcome + OUTCOME_BAD,
                  (unsigned long long)work.index << 40 | (unsigned long long)i);
    };
    work.for_each(
        aligned16(work.t.grad),
        [&](i64 i) {
            Vec16<float> grad;
            grad.raw = *(const uint4*)(work.t.grad + i);
#pragma unroll
            for (int k = 0; k < 4; ++k) look(grad.at[k], i + k);
        },
        [&](i64 i) { look(work.t.grad[i], i); });
}

// One element; returns the new parameter.
__device__ __forceinline__ float update(const AdamWParams& p, float param, float grad, float& m,
                                        float& v) {
    const float g = __fmul_rn(p.grad_scale, grad);
    m = __fmaf_rn(p.beta1, m, __fmul_rn(p.one_minus_beta1, g));
    v = __fmaf_rn(p.beta2, v, __fmul_rn(__fmul_rn(p.one_minus_beta2, g), g));
    const float q = __fdiv_rn(m, __fmaf_rn(__fsqrt_rn(v), p.inverse_root, p.eps));
    // p·(1 - lr·lambda) would carry the rounding of 1 - lr·lambda through every step.
    const float decayed = p.decay_after ? __fmaf_rn(-p.step, q, param) : param;
    return __fsub_rn(param, __fmaf_rn(p.step, q, __fmul_rn(p.decay, decayed)));
}

struct Counts {
    u32 updated, unchanged, absorbed;

    __device__ __forceinline__ void add(float before, float after) {
        ++updated;
        unchanged += before == after;
        absorbed += before != after && from_f32<bf16>(before).bits == from_f32<bf16>(after).bits;
    }

    // Adds the counts of a block, one atomic for each: all blocks add to one sector.
    __device__ __forceinline__ void store(u64* outcome) const {
        __shared__ u32 warps[3][THREADS / WARP];
        const u32 sums[3] = {__reduce_add_sync(ALL_LANES, updated),
                             __reduce_add_sync(ALL_LANES, unchanged),
                             __reduce_add_sync(ALL_LANES, absorbed)};
#pragma unroll
        for (int k = 0; k < 3; ++k)
            if (threadIdx.x % WARP == 0) warps[k][threadIdx.x / WARP] = sums[k];
        __syncthreads();
        if (threadIdx.x >= 3) return;
        u32 sum = 0;
        for (int warp = 0; warp < THREADS / WARP; ++warp) sum += warps[threadIdx.x][warp];
        if (sum)
            atomicAdd((unsigned long long*)outcome + OUTCOME_UPDATED + threadIdx.x,
                      (unsigned long long)sum);
    }
};

KERNEL(adamw, (THREADS), AdamWParams) {
    if (p.outcome[OUTCOME_BAD] != NONE) return;
    const Work work(p);
    float *param = work.t.param, *ms = (float*)work.t.m, *vs = (float*)work.t.v;
    const float* grad = work.t.grad;
    Counts counts = {0, 0, 0};
    // One at a time: registers that live across several divisions, whose slow path is a call, are
    // spilled.
#pragma unroll 1
    for (i64 i = work.first + threadIdx.x; i < work.end; i += THREADS) {
        if (!work.takes(i)) continue;
        const float before = param[i];
        float m = ms[i], v = vs[i];
        const float after = update(p, before, grad[i], m, v);
        param[i] = after, ms[i] = m, vs[i] = v;
        counts.add(before, after);
    }
    counts.store(p.outcome);
}

// An 8-bit map in shared memory with the upper bounds of its codes.
struct Map {
    float values[256], bounds[256];

    __device__ __forceinline__ void load(const float* map) {
        const int i = threadIdx.x;
        values[i] = map[i];
        bounds[i] = i < 255 ? __fmul_rn(__fadd_rn(map[i], map[i + 1]), 0.5f) : INF_F32;
    }

    // Nearest code of x / max; a negative value keeps its sign even where zero is nearest.
    __device__ __forceinline__ u8 code(float x, float max) const {
        const float scaled = max == 0.0f ? 0.0f : __fdiv_rn(x, max);
        int below = 0;
        for (int half = 128; half > 0; half /= 2)
            below += bounds[below + half - 1] < scaled ? half : 0;
        return (u8)(below - (x < 0.0f && values[below] == 0.0f && below > 0));
    }
};

KERNEL(adamw_8bit, (THREADS), AdamWParams) {
    __shared__ Map signed_map, unsigned_map;
    __shared__ float warps[THREADS / WARP];
    if (p.outcome[OUTCOME_BAD] != NONE) return;
    signed_map.load(p.maps);
    unsigned_map.load(p.maps + 256);
    __syncthreads();
    const Work work(p);
    const AdamWTensor& t = work.t;
    Counts counts = {0, 0, 0};
    for (i64 begin = work.first; begin < work.end; begin += STATE_BLOCK) {
        const i64 i = begin + threadIdx.x, block = begin / STATE_BLOCK;
        const bool there = i < t.count;
        u8 *m_codes = (u8*)t.m, *v_codes = (u8*)t.v;
        float m = 0.0f, v = 0.0f;
        if (there) {
            m = __fmul_rn(signed_map.values[m_codes[i]], t.m_absmax[block]);
            v = __fmul_rn(unsigned_map.values[v_codes[i]], t.v_absmax[block]);
            if (work.takes(i)) {
                const float before = t.param[i], after = update(p, before, t.grad[i], m, v);
                t.param[i] = after;
                counts.add(before, after);
            }
        }
        const float m_max = block_reduce<THREADS>(fabsf(m), 0.0f, Max(), warps);
        const float v_max = block_reduce<THREADS>(fabsf(v), 0.0f, Max(), warps);
        if (threadIdx.x == 0) t.m_absmax[block] = m_max, t.v_absmax[block] = v_max;
        if (there) {
            m_codes[i] = signed_map.code(m, m_max);
            v_codes[i] = unsigned_map.code(v, v_max);
        }
    }
    counts.store(p.outcome);
}
