// ids[t] = the K columns of the largest logits of row t, in rising order; of equals the lower ids.
//
// | operand | shape        | dtype          | layout                        |
// |---------|--------------|----------------|-------------------------------|
// | logits  | [T, V_alloc] | f32, bf16, f16 | rows contiguous; V exist      |
// | ids     | [T, K]       | i32            | rows contiguous; 1 <= K <= V  |
//
// Mapping: one block per row. The K-th largest key is found by its digits of 8 bits: a histogram of
// a digit over the keys that share the digits before it, and a walk from the top bin down. Then the
// columns that are kept are written where a scan over runs of neighboring columns says.
// Traffic: T·V elements, six passes (the row of a block mostly lies in L2). Not yet measured on
// hardware.
// Numerics: keys are exact, so the choice is that of the CPU. Sums are of integers.
#include "common.cuh"
#include "top_k.h"

static constexpr int BINS = 256;
static constexpr int WARPS = THREADS / WARP;
static_assert(THREADS == BINS, "a thread clears a bin");

// Numbers that are ordered like the logits.
__device__ __forceinline__ u32 key_of(float x) {
    const u32 bits = __float_as_int(x);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

struct Shared {
    u32 bins[BINS];
    u32 partial[2][WARPS];
    u32 digit, above;
};

// Adds one to the bin of every lane that is `here`, lanes of one bin together.
__device__ __forceinline__ void count_digit(u32* bins, bool here, u32 digit) {
    const u32 active = __ballot_sync(ALL_LANES, here);
    if (!here) return;
    const u32 peers = __match_any_sync(active, digit);
    if ((int)(threadIdx.x % WARP) == __ffs(peers) - 1) atomicAdd(&bins[digit], __popc(peers));
}

// The bin from the top down that reaches `wanted`, and how many keys lie above it.
__device__ __forceinline__ void find_bin(Shared& s, u32 wanted) {
    constexpr int EACH = BINS / WARP;
    __syncthreads();
    if (threadIdx.x < WARP) {
        const int lane = threadIdx.x, top = BINS - 1 - lane * EACH;
        u32 own = 0;
        for (int i = 0; i < EACH; ++i) own += s.bins[top - i];
        u32 upto = own;
#pragma unroll
        for (int by = 1; by < WARP; by *= 2) {
            const u32 left = __shfl_up_sync(ALL_LANES, upto, by);
            if (lane >= by) upto += left;
        }
        u32 above = upto - own;
        for (int i = 0; i < EACH; ++i) {
            const u32 n = s.bins[top - i];
            if (above < wanted && wanted <= above + n) {
                s.digit = top - i;
                s.above = above;
            }
            above += n;
        }
    }
    __syncthreads();
}

// Σ of x over the threads before this one.
__device__ __forceinline__ u32 before(u32 x, u32* partial) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 upto = x;
#pragma unroll
    for (int by = 1; by < WARP; by *= 2) {
        const u32 left = __shfl_up_sync(ALL_LANES, upto, by);
        if (lane >= by) upto += left;
    }
    if (lane == WARP - 1) partial[warp] = upto;
    __syncthreads();
    u32 sum = upto - x;
    for (int w = 0; w < warp; ++w) sum += partial[w];
    return sum;
}

template <class T> __device__ __forceinline__ void top_k(const TopKParams& p) {
    __shared__ Shared s;
    const T* row = (const T*)p.logits + (i64)blockIdx.x * p.row_stride;
    u32 found = 0, wanted = (u32)p.count;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        s.bins[threadIdx.x] = 0;
        __syncthreads();
        const u32 known = shift == 24 ? 0u : ~0u << (shift + 8);
        for (i64 first = 0; first < p.vocab; first += THREADS) {
            const i64 v = first + threadIdx.x;
            const u32 key = v < p.vocab ? key_of(to_f32(row[v])) : 0;
            const bool here = v < p.vocab && (key & known) == (found & known);
            count_digit(s.bins, here, key >> shift & 255);
        }
        find_bin(s, wanted);
        found |= s.digit << shift;
        wanted -= s.above;
        __syncthreads();
    }
    // `wanted` of the columns whose key is `found`, and all above.
    const i64 each = (p.vocab + THREADS - 1) / THREADS;
    const i64 begin = min(each * threadIdx.x, p.vocab), end = min(begin + each, p.vocab);
    u32 larger = 0, equal = 0;
    for (i64 v = begin; v < end; ++v) {
        const u32 key = key_of(to_f32(row[v]));
        larger += key > found;
        equal += key == found;
    }
    larger = before(larger, s.partial[0]);
    equal = before(equal, s.partial[1]);
    i32* ids = p.ids + (i64)blockIdx.x * p.ids_stride;
    for (i64 v = begin; v < end; ++v) {
        const u32 key = key_of(to_f32(row[v]));
        if (key > found || (key == found && equal < wanted))
            ids[larger + min(equal, wanted)] = (i32)v;
        larger += key > found;
        equal += key == found;
    }
}

KERNEL(top_k_f32, (THREADS), TopKParams) { top_k<float>(p); }
KERNEL(top_k_bf16, (THREADS), TopKParams) { top_k<bf16>(p); }
KERNEL(top_k_f16, (THREADS), TopKParams) { top_k<f16>(p); }
