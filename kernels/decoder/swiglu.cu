// y = silu(gate) ⊙ up with silu(x) = x·σ(x), and its gradients.
//
// SwiGLU (arXiv:2002.05202, eq. 6). dgate = dy·up·σ·(1 + gate·(1 - σ)), dup = dy·gate·σ.
//
// | operand                     | shape  | dtype               | layout                          |
// |-----------------------------|--------|---------------------|---------------------------------|
// | gate, up, y, dy, dgate, dup | [T, F] | f32, bf16, f16, f64 | rows contiguous, any row stride |
//
// Mapping: 1,024 columns of a row per block, 4 per thread.
// Traffic: 3·T·F elements forward, 5·T·F backward; one exponential and one division an element.
// Numerics: formed in f64 and rounded once; the exponential may differ from the CPU's in its last
// bit. Not yet tuned: f64 arithmetic binds before memory does.
// local memory: swiglu_*: registers live across the call in an f64 division
#include "common.cuh"
#include "swiglu.h"

__device__ __forceinline__ double sigmoid(double x) {
    const double e = exp(-fabs(x));
    return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

template <class T, bool BACKWARD> __device__ __forceinline__ void swiglu(const SwigluParams<T>& p) {
    const i64 row = blockIdx.x;
#pragma unroll 1
    for (int k = 0; k < PER_THREAD; ++k) {
        const i64 j = ((i64)blockIdx.y * PER_THREAD + k) * THREADS + threadIdx.x;
        if (j >= p.columns) return;
        const double g = to_f64(p.gate[row * p.gate_stride + j]),
                     up = to_f64(p.up[row * p.up_stride + j]);
        const double s = sigmoid(g);
        if (!BACKWARD) {
            p.y[row * p.y_stride + j] = from_f64<T>(g * s * up);
            continue;
        }
        const double dy = to_f64(p.dy[row * p.dy_stride + j]);
        p.dgate[row * p.dgate_stride + j] = from_f64<T>(dy * up * s * fma(g, 1.0 - s, 1.0));
        p.dup[row * p.dup_stride + j] = from_f64<T>(dy * g * s);
    }
}

KERNEL(swiglu_f32, (THREADS), SwigluParams<float>) { swiglu<float, false>(p); }
KERNEL(swiglu_bwd_f32, (THREADS), SwigluParams<float>) { swiglu<float, true>(p); }
KERNEL(swiglu_bf16, (THREADS), SwigluParams<bf16>) { swiglu<bf16, false>(p); }
KERNEL(swiglu_bwd_bf16, (THREADS), SwigluParams<bf16>) { swiglu<bf16, true>(p); }
KERNEL(swiglu_f16, (THREADS), SwigluParams<f16>) { swiglu<f16, false>(p); }
KERNEL(swiglu_bwd_f16, (THREADS), SwigluParams<f16>) { swiglu<f16, true>(p); }
KERNEL(swiglu_f64, (THREADS), SwigluParams<double>) { swiglu<double, false>(p); }
KERNEL(swiglu_bwd_f64, (THREADS), SwigluParams<double>) { swiglu<double, true>(p); }
