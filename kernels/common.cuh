// Types, 16-byte access and reductions that all kernels share.
//
// Conventions. A kernel is `KERNEL(<op>_<dtype>, (<threads>), <Op>Params) { ... }` and has one
// parameter struct. That struct, and every constant and enum that the launch needs, is in `<op>.h`,
// from which kernelc writes the Rust side. A null pointer is an operand that was not given.
// Extents, strides (in elements) and offsets are i64. Rows stand on grid.x. A reduction is a fixed
// tree that depends on the extents of its row alone, so a row has the same bits alone and in any
// batch.
#pragma once

#include "ptx.cuh"
#include "types.h"

// f32 in the smallest text: constants NVRTC has no header for.
#define INF_F32 __int_as_float(0x7f800000)
#define NAN_F32 __int_as_float(0x7fffffff)
#define INF_F64 __longlong_as_double(0x7ff0000000000000ll)
#define NAN_F64 __longlong_as_double(0x7fffffffffffffffll)

// One entry point of a PTX file. `bounds` is (threads per block) or (threads per block, blocks that
// a multiprocessor must hold); the body reads its parameter struct as `p`.
#define KERNEL(name, bounds, ...) \
    extern "C" __global__ void __launch_bounds__ bounds name(const __VA_ARGS__ p)

// Ends the kernel unless `value` is an enumerator: `last` is the enum's last one. A launch cannot
// have another number; a kernel of another version of the crate could.
template <class E> __device__ __forceinline__ void check_enum(E value, E last) {
    if ((u32)value > (u32)last) ptx_trap();
}

static constexpr u32 ALL_LANES = 0xffffffffu;

// ---- element types ----------------------------------------------------------------------------

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(double x) { return (float)x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __int_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_f32(f16 x) { return ptx_f32_from_f16(x.bits); }

// `from_f32<T>(x)`: x rounded once, to nearest, ties to even.
template <class T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ double from_f32<double>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    return {ptx_bf16_from_f32(x)};
}
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) { return {ptx_f16_from_f32(x)}; }

__device__ __forceinline__ double to_f64(double x) { return x; }
template <class T> __device__ __forceinline__ double to_f64(T x) { return to_f32(x); }

// f64 to f32 so that a second rounding to fewer bits is still right: an inexact result is cut
// toward zero and its last bit set (Boldo & Melquiond 2008).
__device__ __forceinline__ float round_to_odd(double x) {
    float y = __double2float_rz(x);
    u32 odd = (double)y != x && y - y == 0.0f;
    return __int_as_float(__float_as_int(y) | odd);
}

// `from_f64<T>(x)`: x rounded once, to nearest, ties to even.
template <class T> __device__ __forceinline__ T from_f64(double x) {
    return from_f32<T>(round_to_odd(x));
}
template <> __device__ __forceinline__ float from_f64<float>(double x) { return (float)x; }
template <> __device__ __forceinline__ double from_f64<double>(double x) { return x; }

// Two elements of 16 bits in a register, and the tensor core's product of 16 x 16 by 16 x 8 of
// them.
template <class T> struct Halves;
template <> struct Halves<bf16> {
    // Rounded once, `low` at the lower address.
    static __device__ __forceinline__ u32 pack(float low, float high) {
        return ptx_pack_bf16(low, high);
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32* b) {
        const u32 pair[2] = {b[0], b[1]};
        ptx_mma_bf16(d, a, pair);
    }
};
template <> struct Halves<f16> {
    static __device__ __forceinline__ u32 pack(float low, float high) {
        return ptx_pack_f16(low, high);
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32* b) {
        const u32 pair[2] = {b[0], b[1]};
        ptx_mma_f16(d, a, pair);
    }
};

// ---- 16-byte access ---------------------------------------------------------------------------

// 16 bytes of T in registers.
template <class T> struct Vec16 {
    static constexpr int N = 16 / sizeof(T);
    union {
        uint4 raw;
        T at[N];
    };
    __device__ __forceinline__ Vec16() {}
};

__device__ __forceinline__ bool aligned16(const void* p) { return ((u64)p & 15) == 0; }

// ---- columns ----------------------------------------------------------------------------------

// Element `i` of a vector that is there, in f64.
template <class T> __device__ __forceinline__ double wide(const Column<T>& c, i64 i) {
    return to_f64(c.at[i * c.stride]);
}
template <class T>
__device__ __forceinline__ double wide_or(const Column<T>& c, i64 i, double otherwise) {
    return c.at ? wide(c, i) : otherwise;
}

// Tokens begin..end of a packed sequence.
struct Span {
    i64 begin, end;
};

// Tokens of sequence `b`; whatever the offsets hold, they lie in 0..total.
__device__ __forceinline__ Span span(const Column<const i64>& offsets, i64 b, i64 total) {
    i64 begin = offsets.get(b), end = offsets.get(b + 1);
    begin = begin < 0 ? 0 : begin > total ? total : begin;
    end = end < begin ? begin : end > total ? total : end;
    return {begin, end};
}

// NaN stays NaN, which fmin and fmax drop.
__device__ __forceinline__ double at_most(double x, double bound) { return x > bound ? bound : x; }
__device__ __forceinline__ double at_least(double x, double bound) { return x < bound ? bound : x; }
__device__ __forceinline__ double clamp(double x, double lo, double hi) {
    return x < lo ? lo : x > hi ? hi : x;
}

// ---- reductions -------------------------------------------------------------------------------

struct Sum {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct Max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
    __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
    __device__ __forceinline__ i64 operator()(i64 a, i64 b) const { return a > b ? a : b; }
};
struct Min {
    __device__ __forceinline__ float operator()(float a, float b) const { return fminf(a, b); }
    __device__ __forceinline__ double operator()(double a, double b) const { return fmin(a, b); }
    __device__ __forceinline__ i64 operator()(i64 a, i64 b) const { return a < b ? a : b; }
};

// The whole warp's values combined by a butterfly; every lane gets the same bits.
template <class T, class Op> __device__ __forceinline__ T warp_reduce(T x, Op op) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x = op(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The whole block's values; every thread gets the same bits. THREADS is a multiple of 32 up to
// 1,024. `partial` is shared memory for THREADS / 32 values, free again when the call returns.
template <int THREADS, class T, class Op>
__device__ __forceinline__ T block_reduce(T x, T neutral, Op op, T* partial) {
    constexpr int WARPS = THREADS / WARP;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_reduce(x, op);
    if (WARPS == 1) return x;
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    x = warp_reduce(lane < WARPS ? partial[lane] : neutral, op);
    __syncthreads();
    return x;
}

// True in all threads of the block that comes here last of `blocks`: it sees what the others wrote
// before. `ticket` is 0 at first and 0 again afterwards. Called by all threads of a block.
__device__ __forceinline__ bool last_block(u32* ticket, i64 blocks) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = (i64)atomicInc(ticket, (u32)(blocks - 1)) == blocks - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}
