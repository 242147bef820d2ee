// The elements whose bits differ between two tensors, as ascending (index, value) pairs, and back.
//
//     delta_count   how many, and how many before each chunk
//     delta_encode  (index[j], value[j]) = the j-th (i, new[i]) with bits(new[i]) != bits(old[i])
//     delta_apply   target[index[j]] = value[j]
//
// | operand          | shape      | dtype              | layout                    |
// |------------------|------------|--------------------|---------------------------|
// | old, new, target | [n]        | 1, 2, 4 or 8 bytes | contiguous, any alignment |
// | index            | [capacity] | i64                | contiguous                |
// | value            | [capacity] | as new             | contiguous                |
// | before           | [chunks+1] | i64                | scratch; the last is the count |
//
// Mapping: one block per chunk of 16,384 elements; in delta_encode one warp per 2,048 neighbors of
// it. In delta_apply one thread per pair.
// Traffic: delta_count reads both operands once, 16 bytes per lane. delta_encode reads those chunks
// again in which something changed, twice, the second time from cache, and writes 8 bytes and an
// element per change.
//
//     delta_count:   count of each chunk; the block that is done last turns the counts into the
//                    sums of all counts before them
//     delta_encode:  skip a chunk without a change; count each warp's part; then 32 elements at a
//                    time: place = before the chunk + before the warp + before the lane (a ballot)
//
// Numerics: none; values move as bits. An index outside the target, which only device memory can
// hold, is passed over.
#include "common.cuh"
#include "delta.h"

static constexpr int WARPS = THREADS / WARP;

static constexpr int PART = CHUNK / WARPS;

// Sum of the values of all threads before this one; `total` is that of all.
__device__ __forceinline__ i64 sum_before(i64 x, i64* total) {
    __shared__ i64 warps[WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    i64 upto = x;
#pragma unroll
    for (int by = 1; by < WARP; by *= 2) {
        const i64 left = __shfl_up_sync(ALL_LANES, upto, by);
        if (lane >= by) upto += left;
    }
    if (lane == WARP - 1) warps[warp] = upto;
    __syncthreads();
    i64 before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        if (w == warp) before = all;
        all += warps[w];
    }
    __syncthreads();
    *total = all;
    return before + upto - x;
}

template <class T> __device__ __forceinline__ void delta_count(const DeltaParams& p) {
    constexpr int N = Vec16<T>::N;
    const i64 first = (i64)blockIdx.x * CHUNK, end = first + CHUNK < p.n ? first + CHUNK : p.n;
    const T *old = (const T*)p.old, *now = (const T*)p.now;
    const i64 whole = aligned16(old) && aligned16(now) ? first + (end - first) / N * N : first;
    i64 changed = 0;
#pragma unroll 2
    for (i64 i = first + threadIdx.x * N; i < whole; i += THREADS * N) {
        Vec16<T> a, b;
        a.raw = ptx_load_stream(old + i);
        b.raw = ptx_load_stream(now + i);
#pragma unroll
        for (int k = 0; k < N; ++k) changed += a.at[k] != b.at[k];
    }
    for (i64 i = whole + threadIdx.x; i < end; i += THREADS) changed += old[i] != now[i];
    i64 total;
    sum_before(changed, &total);
    if (threadIdx.x == 0) p.before[blockIdx.x] = total;
    if (!last_block(p.ticket, gridDim.x)) return;
    i64 carry = 0;
    for (i64 tile = 0; tile < gridDim.x; tile += THREADS) {
        const i64 i = tile + threadIdx.x;
        const i64 before = sum_before(i < gridDim.x ? p.before[i] : 0, &total);
        if (i < gridDim.x) p.before[i] = carry + before;
        carry += total;
    }
    if (threadIdx.x == 0) p.before[gridDim.x] = carry;
}

template <class T> __device__ __forceinline__ void delta_encode(const DeltaParams& p) {
    __shared__ i64 counts[WARPS];
    const i64 before = p.before[blockIdx.x];
    if (p.before[blockIdx.x + 1] == before) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const T *old = (const T*)p.old, *now = (const T*)p.now;
    const i64 first = (i64)blockIdx.x * CHUNK + warp * PART;
    i64 own = 0;
    for (i64 i = first + lane; i < first + PART && i < p.n; i += WARP) own += old[i] != now[i];
    own = warp_reduce(own, Sum());
    if (lane == 0) counts[warp] = own;
    __syncthreads();
    if (own == 0) return;
    i64 place = before;
    for (int w = 0; w < warp; ++w) place += counts[w];
    for (i64 part = first; part < first + PART && part < p.n; part += WARP) {
        const i64 i = part + lane;
        const bool changed = i < p.n && old[i] != now[i];
        const u32 all = __ballot_sync(ALL_LANES, changed);
        const i64 j = place + __popc(all & ((1u << lane) - 1));
        if (changed && j < p.capacity) {
            p.index[j] = i;
            ((T*)p.value)[j] = now[i];
        }
        place += __popc(all);
    }
}

template <class T> __device__ __forceinline__ void delta_apply(const DeltaApplyParams& p) {
    const i64 j = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (j >= p.count) return;
    const i64 i = p.index[j];
    if (i >= 0 && i < p.n) ((T*)p.target)[i] = ((const T*)p.value)[j];
}

KERNEL(delta_count_b8, (THREADS), DeltaParams) { delta_count<u8>(p); }
KERNEL(delta_encode_b8, (THREADS), DeltaParams) { delta_encode<u8>(p); }
KERNEL(delta_apply_b8, (THREADS), DeltaApplyParams) { delta_apply<u8>(p); }
KERNEL(delta_count_b16, (THREADS), DeltaParams) { delta_count<u16>(p); }
KERNEL(delta_encode_b16, (THREADS), DeltaParams) { delta_encode<u16>(p); }
KERNEL(delta_apply_b16, (THREADS), DeltaApplyParams) { delta_apply<u16>(p); }
KERNEL(delta_count_b32, (THREADS), DeltaParams) { delta_count<u32>(p); }
KERNEL(delta_encode_b32, (THREADS), DeltaParams) { delta_encode<u32>(p); }
KERNEL(delta_apply_b32, (THREADS), DeltaApplyParams) { delta_apply<u32>(p); }
KERNEL(delta_count_b64, (THREADS), DeltaParams) { delta_count<u64>(p); }
KERNEL(delta_encode_b64, (THREADS), DeltaParams) { delta_encode<u64>(p); }
KERNEL(delta_apply_b64, (THREADS), DeltaApplyParams) { delta_apply<u64>(p); }
