// (x_i, x_{i+D/2}) <- (x_i·c - x_{i+D/2}·s, x_{i+D/2}·c + x_i·s) with c, s = cos, sin[positions[t],
// i].
//
// Rotary position embedding (arXiv:2104.09864, eq. 34) in the half-split layout of GPT-NeoX and
// Llama.
//
// | operand   | shape     | dtype               | layout                                     |
// |-----------|-----------|---------------------|--------------------------------------------|
// | x         | [T, H, D] | f32, bf16, f16, f64 | last dimension contiguous; in place        |
// | positions | [T]       | i32                 | any stride                                 |
// | cos, sin  | [P, D/2]  | f32                 | rows contiguous, any row stride            |
//
// Mapping: one block per token, one thread per pair; the heads of a token share its row of the
// tables in L1.
// Traffic: 2·T·H·D elements, 3 flops per value (f64).
// Numerics: x·c -+ y·s in f64, one rounding: the bits of the CPU. A position outside the tables
// leaves the token as it is (host memory is checked before the launch).
#include "common.cuh"
#include "rope.h"

template <class T> __device__ __forceinline__ void rope(const RopeParams<T>& p) {
    const i64 at = p.position.get(blockIdx.x);
    if (at < 0 || at >= p.positions) return;
    const float *cos = p.cos + at * p.cos_stride, *sin = p.sin + at * p.sin_stride;
    for (i64 pair = threadIdx.x; pair < p.heads * p.half; pair += THREADS) {
        const i64 i = pair % p.half;
        T* x = p.x + (i64)blockIdx.x * p.token_stride + pair / p.half * p.head_stride + i;
        const double low = to_f64(x[0]), high = to_f64(x[p.half]), c = cos[i], s = p.sign * sin[i];
        x[0] = from_f64<T>(fma(low, c, -__dmul_rn(high, s)));
        x[p.half] = from_f64<T>(fma(high, c, __dmul_rn(low, s)));
    }
}

KERNEL(rope_f32, (THREADS), RopeParams<float>) { rope(p); }
KERNEL(rope_bf16, (THREADS), RopeParams<bf16>) { rope(p); }
KERNEL(rope_f16, (THREADS), RopeParams<f16>) { rope(p); }
KERNEL(rope_f64, (THREADS), RopeParams<double>) { rope(p); }
