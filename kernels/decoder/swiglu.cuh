// silu, and how SwiGLU forms an element: shared with products that end in it.
#pragma once

#include "pack.cuh"

// σ(x), 1 - σ(x) and silu(x) in the arithmetic A; none of them by a difference.
template <class A> struct Gate {
    A s, rest, silu;
};

__device__ __forceinline__ Gate<double> gate_of(double x) {
    const double e = exp(-fabs(x)), r = 1.0 / (1.0 + e);
    const double s = (x < 0.0 ? e : 1.0) / (1.0 + e);
    return {s, x < 0.0 ? r : 1.0 - s, x * s};
}

// e^-|x| is h², with h in f32's normal numbers as far as results are.
__device__ __forceinline__ Gate<float> gate_of(float x) {
    const float log2_e = 1.44269504f, log2_e_rest = 1.92596299e-8f, half_ln_2 = 0.346573590f;
    const float a = -fminf(fabsf(x), 200.0f), t = a * log2_e;
    const float t_rest = fma(a, log2_e, -t) + a * log2_e_rest;
    const float base = ptx_ex2(0.5f * t), h = fma(base, t_rest * half_ln_2, base);
    const float e = h * h, d = 1.0f + e, estimate = ptx_rcp(d);
    const float r = fma(estimate, fma(-d, estimate, 1.0f), estimate);
    return x < 0.0f ? Gate<float>{e * r, r, x * h * h * r} : Gate<float>{r, e * r, x * r};
}

template <class A, class T> __device__ __forceinline__ A widen(T x);
template <> __device__ __forceinline__ float widen<float, bf16>(bf16 x) { return to_f32(x); }
template <> __device__ __forceinline__ float widen<float, f16>(f16 x) { return to_f32(x); }
template <> __device__ __forceinline__ double widen<double, f16>(f16 x) { return to_f64(x); }
template <> __device__ __forceinline__ double widen<double, float>(float x) { return x; }
template <> __device__ __forceinline__ double widen<double, double>(double x) { return x; }

template <class T> __device__ __forceinline__ T rounded(float x) { return from_f32<T>(x); }
template <class T> __device__ __forceinline__ T rounded(double x) { return from_f64<T>(x); }

// silu(gate)·up, formed in A.
template <class A, class T> __device__ __forceinline__ T gated(T gate, T up) {
    return rounded<T>(gate_of(widen<A>(gate)).silu * widen<A>(up));
}
