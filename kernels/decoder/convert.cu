// y = x in another dtype, rounded once to nearest, ties to even.
//
// | operand | shape | dtype                        | layout                    |
// |---------|-------|------------------------------|---------------------------|
// | x, y    | [n]   | f32, bf16, f16, f64, any two | contiguous, any alignment |
//
// Mapping: 16 elements per thread in passes; a pass moves 16 bytes of the wider dtype per lane,
// neighboring lanes on neighboring addresses.
// Traffic: n elements of each dtype, no flops: a conversion an element, none where dtypes are
// equal.
// Numerics: widening is exact; f64 reaches 16 bits in one rounding (`from_f64`). NaN stays NaN;
// equal dtypes keep all bits.
// Bound by memory.
#include "common.cuh"
#include "convert.h"

template <class S, class T> struct Converted {
    static __device__ __forceinline__ T of(S x) { return from_f32<T>(to_f32(x)); }
};
template <class T> struct Converted<T, T> {
    static __device__ __forceinline__ T of(T x) { return x; }
};
template <class T> struct Converted<double, T> {
    static __device__ __forceinline__ T of(double x) { return from_f64<T>(x); }
};
template <> struct Converted<double, double> {
    static __device__ __forceinline__ double of(double x) { return x; }
};

// N elements of T that move as one word.
template <class T, int N> struct __align__(sizeof(T) * N) Pack { T at[N]; };

template <class S, class T> __device__ __forceinline__ void convert(const ConvertParams& p) {
    constexpr int N = 16 / (sizeof(S) > sizeof(T) ? sizeof(S) : sizeof(T));
    typedef Pack<S, N> From;
    typedef Pack<T, N> To;
    const S* x = (const S*)p.x;
    T* y = (T*)p.y;
    const bool whole = (u64)x % sizeof(From) == 0 && (u64)y % sizeof(To) == 0;
    const i64 first = (i64)blockIdx.x * THREADS * PER_THREAD;
#pragma unroll
    for (int pass = 0; pass < PER_THREAD / N; ++pass) {
        const i64 i = first + ((i64)pass * THREADS + threadIdx.x) * N;
        if (whole && i + N <= p.n) {
            const From from = *(const From*)(x + i);
            To to;
#pragma unroll
            for (int k = 0; k < N; ++k) to.at[k] = Converted<S, T>::of(from.at[k]);
            *(To*)(y + i) = to;
        } else {
            for (i64 k = i; k < i + N && k < p.n; ++k) y[k] = Converted<S, T>::of(x[k]);
        }
    }
}

KERNEL(convert_f32_f32, (THREADS), ConvertParams) { convert<float, float>(p); }
KERNEL(convert_f32_bf16, (THREADS), ConvertParams) { convert<float, bf16>(p); }
KERNEL(convert_f32_f16, (THREADS), ConvertParams) { convert<float, f16>(p); }
KERNEL(convert_f32_f64, (THREADS), ConvertParams) { convert<float, double>(p); }
KERNEL(convert_bf16_f32, (THREADS), ConvertParams) { convert<bf16, float>(p); }
KERNEL(convert_bf16_bf16, (THREADS), ConvertParams) { convert<bf16, bf16>(p); }
KERNEL(convert_bf16_f16, (THREADS), ConvertParams) { convert<bf16, f16>(p); }
KERNEL(convert_bf16_f64, (THREADS), ConvertParams) { convert<bf16, double>(p); }
KERNEL(convert_f16_f32, (THREADS), ConvertParams) { convert<f16, float>(p); }
KERNEL(convert_f16_bf16, (THREADS), ConvertParams) { convert<f16, bf16>(p); }
KERNEL(convert_f16_f16, (THREADS), ConvertParams) { convert<f16, f16>(p); }
KERNEL(convert_f16_f64, (THREADS), ConvertParams) { convert<f16, double>(p); }
KERNEL(convert_f64_f32, (THREADS), ConvertParams) { convert<double, float>(p); }
KERNEL(convert_f64_bf16, (THREADS), ConvertParams) { convert<double, bf16>(p); }
KERNEL(convert_f64_f16, (THREADS), ConvertParams) { convert<double, f16>(p); }
KERNEL(convert_f64_f64, (THREADS), ConvertParams) { convert<double, double>(p); }
