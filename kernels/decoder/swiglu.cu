// y = silu(gate) ⊙ up with silu(x) = x·σ(x), and its gradients.
//
// SwiGLU (arXiv:2002.05202, eq. 6). dgate = dy·up·σ·(1 + gate·(1 - σ)), dup = dy·gate·σ.
//
// | operand                     | shape  | dtype               | layout                          |
// |-----------------------------|--------|---------------------|---------------------------------|
// | gate, up, y, dy, dgate, dup | [T, F] | f32, bf16, f16, f64 | rows contiguous, any row stride |
//
// Mapping: a piece of 16 bytes of a row per thread.
// Traffic: 3·T·F elements forward, 5·T·F backward; one exponential and one division an element.
// Numerics: rounded once. f32, f64 and the gradients of f16 are formed in f64; the exponential may
// differ from the CPU's in its last bit. bf16 and f16 are formed in f32 with a relative error below
// 2^-19, so the result is the rounded value or its neighbor; the gradients of f16 are not, as
// 1 + gate·(1 - σ) cancels near gate = -1.28: there f32 is off by 2 units of f16, and by 1/8 of one
// of bf16. Products that leave the range of f32 on the way are lost.
// Trick: f64 took 35 instructions an element at half rate, which bound: 25 µs measured for 512 x
// 8,960 (H200, bf16), 36 backward. Predicted in f32: 7.5 and 12; not yet measured on hardware.
// local memory: swiglu_*: registers live across the call in an f64 division
#include "swiglu.cuh"
#include "swiglu.h"

// Calls body(j, count) for the piece of a row that is this thread's: the columns from j on.
template <class T, class Body>
__device__ __forceinline__ void for_piece(i64 columns, const Body& body) {
    constexpr int N = Vec16<T>::N;
    const i64 j = ((i64)blockIdx.y * THREADS + threadIdx.x) * N;
    if (j < columns) body(j, columns - j < N ? (int)(columns - j) : N);
}

// `count` elements of a piece; the others are 0. `whole`: 16 bytes at once.
template <class T> __device__ __forceinline__ Vec16<T> load(const T* from, int count, bool whole) {
    Vec16<T> v;
    if (whole) {
        v.raw = *(const uint4*)from;
        return v;
    }
#pragma unroll
    for (int k = 0; k < Vec16<T>::N; ++k) v.at[k] = k < count ? from[k] : T{};
    return v;
}
template <class T>
__device__ __forceinline__ void store(T* to, const Vec16<T>& v, int count, bool whole) {
    if (whole) {
        store16(to, v);
        return;
    }
#pragma unroll
    for (int k = 0; k < Vec16<T>::N; ++k)
        if (k < count) to[k] = v.at[k];
}

template <class A, class T> __device__ __forceinline__ void swiglu(const SwigluParams<T>& p) {
    const i64 row = blockIdx.x;
    const T *gate = p.gate + row * p.gate_stride, *up = p.up + row * p.up_stride;
    T* y = p.y + row * p.y_stride;
    const bool aligned = aligned16(gate) && aligned16(up) && aligned16(y);
    for_piece<T>(p.columns, [&](i64 j, int count) {
        const bool whole = aligned && count == Vec16<T>::N;
        const Vec16<T> g = load(gate + j, count, whole), u = load(up + j, count, whole);
        Vec16<T> out;
#pragma unroll
        for (int k = 0; k < Vec16<T>::N; ++k) out.at[k] = gated<A>(g.at[k], u.at[k]);
        store(y + j, out, count, whole);
    });
}

template <class A, class T> __device__ __forceinline__ void swiglu_bwd(const SwigluParams<T>& p) {
    const i64 row = blockIdx.x;
    const T *gate = p.gate + row * p.gate_stride, *up = p.up + row * p.up_stride,
            *dy = p.dy + row * p.dy_stride;
    T *dgate = p.dgate + row * p.dgate_stride, *dup = p.dup + row * p.dup_stride;
    const bool aligned =
        aligned16(gate) && aligned16(up) && aligned16(dy) && aligned16(dgate) && aligned16(dup);
    for_piece<T>(p.columns, [&](i64 j, int count) {
        const bool whole = aligned && count == Vec16<T>::N;
        const Vec16<T> g = load(gate + j, count, whole), u = load(up + j, count, whole),
                       d = load(dy + j, count, whole);
        Vec16<T> dg, du;
#pragma unroll
        for (int k = 0; k < Vec16<T>::N; ++k) {
            const A x = widen<A>(g.at[k]), out = widen<A>(d.at[k]);
            const Gate<A> of = gate_of(x);
            dg.at[k] = rounded<T>(out * (of.s * fma(x, of.rest, (A)1)) * widen<A>(u.at[k]));
            du.at[k] = rounded<T>(out * of.silu);
        }
        store(dgate + j, dg, count, whole);
        store(dup + j, du, count, whole);
    });
}

KERNEL(swiglu_f32, (THREADS), SwigluParams<float>) { swiglu<double>(p); }
KERNEL(swiglu_bwd_f32, (THREADS), SwigluParams<float>) { swiglu_bwd<double>(p); }
KERNEL(swiglu_bf16, (THREADS), SwigluParams<bf16>) { swiglu<float>(p); }
KERNEL(swiglu_bwd_bf16, (THREADS), SwigluParams<bf16>) { swiglu_bwd<float>(p); }
KERNEL(swiglu_f16, (THREADS), SwigluParams<f16>) { swiglu<float>(p); }
KERNEL(swiglu_bwd_f16, (THREADS), SwigluParams<f16>) { swiglu_bwd<double>(p); }
KERNEL(swiglu_f64, (THREADS), SwigluParams<double>) { swiglu<double>(p); }
KERNEL(swiglu_bwd_f64, (THREADS), SwigluParams<double>) { swiglu_bwd<double>(p); }
