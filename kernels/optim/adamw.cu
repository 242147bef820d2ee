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
// Mapping: 4,096 elements per block of 256 threads; the block's tensor is found by halving in a
// table of first blocks. Two launches: the first looks for gradients that may not be used and
// leaves the least (tensor, element) in `outcome`; the second does nothing if there is one. The
// host need not look in between.
// Traffic: 4 elements read, 3 written, and the gradients once more for the check: 32 bytes an
// element; 8-bit state 18 bytes.
// Numerics: f32 with the roundings spelled out, so that every executor has the same bits. Counters
// are integers. A masked element is neither looked at nor written.
#include "common.cuh"
#include "adamw.h"

static constexpr int STATE_BLOCK = 256;
static constexpr u64 NONE = ~0ull;

// The tensor a block works on, and its first element there.
__device__ __forceinline__ const AdamWTensor& find(const AdamWParams& p, i64* index, i64* first) {
    i64 low = 0, high = p.tensor_count - 1;
    while (low < high) {
        const i64 middle = (low + high + 1) / 2;
        if (p.tensors[middle].first_block <= (i64)blockIdx.x) low = middle;
        else high = middle - 1;
    }
    *index = low;
    *first = ((i64)blockIdx.x - p.tensors[low].first_block) * CHUNK;
    return p.tensors[low];
}

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0.0f; }

KERNEL(adamw_check, (THREADS), AdamWParams) {
    i64 index, first;
    const AdamWTensor& t = find(p, &index, &first);
    for (i64 i = first + threadIdx.x; i < first + CHUNK && i < t.count; i += THREADS) {
        if (t.mask && t.mask[i] == 0) continue;
        const float g = __fmul_rn(p.grad_scale, t.grad[i]);
        if (is_finite(g) && is_finite(__fmul_rn(__fmul_rn(p.one_minus_beta2, g), g))) continue;
        atomicMin((unsigned long long*)p.outcome + OUTCOME_BAD,
                  (unsigned long long)index << 40 | (unsigned long long)i);
    }
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

    __device__ __forceinline__ void store(u64* outcome) const {
        const u32 sums[3] = {__reduce_add_sync(ALL_LANES, updated),
                             __reduce_add_sync(ALL_LANES, unchanged),
                             __reduce_add_sync(ALL_LANES, absorbed)};
        if (threadIdx.x % WARP != 0) return;
#pragma unroll
        for (int k = 0; k < 3; ++k)
            if (sums[k])
                atomicAdd((unsigned long long*)outcome + OUTCOME_UPDATED + k,
                          (unsigned long long)sums[k]);
    }
};

KERNEL(adamw, (THREADS), AdamWParams) {
    if (p.outcome[OUTCOME_BAD] != NONE) return;
    i64 index, first;
    const AdamWTensor& t = find(p, &index, &first);
    Counts counts = {0, 0, 0};
    for (i64 i = first + threadIdx.x; i < first + CHUNK && i < t.count; i += THREADS) {
        if (t.mask && t.mask[i] == 0) continue;
        const float before = t.param[i];
        float m = ((float*)t.m)[i], v = ((float*)t.v)[i];
        const float after = update(p, before, t.grad[i], m, v);
        t.param[i] = after;
        ((float*)t.m)[i] = m;
        ((float*)t.v)[i] = v;
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
    i64 index, first;
    const AdamWTensor& t = find(p, &index, &first);
    Counts counts = {0, 0, 0};
    for (i64 begin = first; begin < first + CHUNK && begin < t.count; begin += STATE_BLOCK) {
        const i64 i = begin + threadIdx.x, block = begin / STATE_BLOCK;
        const bool there = i < t.count;
        u8 *m_codes = (u8*)t.m, *v_codes = (u8*)t.v;
        float m = 0.0f, v = 0.0f;
        if (there) {
            m = __fmul_rn(signed_map.values[m_codes[i]], t.m_absmax[block]);
            v = __fmul_rn(unsigned_map.values[v_codes[i]], t.v_absmax[block]);
            if (!t.mask || t.mask[i] != 0) {
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
