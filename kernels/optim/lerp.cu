// y = (1 - lambda)·a + lambda·b, interpolation of weights (arXiv:2109.01903, eq. 1).
//
// | operand | shape | dtype          | layout                       |
// |---------|-------|----------------|------------------------------|
// | a, b, y | [n]   | f32, bf16, f16 | contiguous, any alignment    |
//
// Mapping: 32 elements per thread, neighboring threads on neighboring 16 bytes.
// Traffic: 3·n elements, 3·n flops (f64). lambda = 0 and 1 copy: 2·n elements.
// Numerics: both products and the sum in f64, one rounding; a copied value keeps all its bits.
// Bound by memory: 3 flops for 6 to 12 bytes.
#include "common.cuh"
#include "lerp.h"

template <class T> __device__ __forceinline__ T mix(T a, T b, double lambda) {
    if (lambda == 0.0) return a;
    if (lambda == 1.0) return b;
    return from_f64<T>(__dadd_rn(__dmul_rn(1.0 - lambda, to_f64(a)), __dmul_rn(lambda, to_f64(b))));
}

template <class T> __device__ __forceinline__ void lerp(const LerpParams& p) {
    constexpr int N = Vec16<T>::N;
    const T *a = (const T*)p.a, *b = (const T*)p.b;
    T* y = (T*)p.y;
    const bool read_a = p.lambda != 1.0, read_b = p.lambda != 0.0;
    const bool whole = aligned16(a) && aligned16(b) && aligned16(y);
    const i64 first = (i64)blockIdx.x * THREADS * PER_THREAD;
#pragma unroll 2
    for (int pass = 0; pass < PER_THREAD / N; ++pass) {
        const i64 i = first + ((i64)pass * THREADS + threadIdx.x) * N;
        if (whole && i + N <= p.n) {
            Vec16<T> va, vb;
            if (read_a) va.raw = ptx_load_stream(a + i);
            if (read_b) vb.raw = ptx_load_stream(b + i);
            if (!read_a) va.raw = vb.raw;
            if (!read_b) vb.raw = va.raw;
#pragma unroll
            for (int k = 0; k < N; ++k) va.at[k] = mix(va.at[k], vb.at[k], p.lambda);
            ptx_store_stream(y + i, va.raw);
        } else {
            for (i64 k = i; k < i + N && k < p.n; ++k)
                y[k] = mix(read_a ? a[k] : b[k], read_b ? b[k] : a[k], p.lambda);
        }
    }
}

KERNEL(lerp_f32, (THREADS), LerpParams) { lerp<float>(p); }
KERNEL(lerp_bf16, (THREADS), LerpParams) { lerp<bf16>(p); }
KERNEL(lerp_f16, (THREADS), LerpParams) { lerp<f16>(p); }
KERNEL(lerp_f64, (THREADS), LerpParams) { lerp<double>(p); }
