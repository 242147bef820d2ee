// y = scale/(1 - p)·x where the mask has a 1, else 0; accumulated or not (Srivastava et al. 2014).
//
// | operand             | shape  | dtype               | layout                         |
// |---------------------|--------|---------------------|--------------------------------|
// | x, y                | [R, K] | f32, bf16, f16, f64 | rows contiguous, any row stride |
// | streams, positions  | [R]    | i32                 | any stride                     |
//
// Mapping: one block per row, one thread per four elements, whose words are one Philox block.
// Traffic: 2·R·K elements, 3·R·K to accumulate; a Philox4x32-10 block for each four.
// Numerics: the words are those of the CPU; product and sum in f64, one rounding: the bits of the
// CPU. The counter is (quad, position, stream, 0), so a row has its mask in any batch.
#include "common.cuh"
#include "dropout.h"

// One block of Philox4x32-10 (Salmon et al. 2011).
__device__ __forceinline__ void philox(u32 (&c)[4], u64 key) {
    u32 k0 = (u32)key, k1 = (u32)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 p0 = (u64)0xd2511f53u * c[0], p1 = (u64)0xcd9e8d57u * c[2];
        c[0] = (u32)(p1 >> 32) ^ c[1] ^ k0;
        c[1] = (u32)p1;
        c[2] = (u32)(p0 >> 32) ^ c[3] ^ k1;
        c[3] = (u32)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

template <class T> __device__ __forceinline__ void dropout(const DropoutParams<T>& p) {
    const i64 row = blockIdx.x;
    const u32 position = p.position.get(row), stream = p.stream.get(row);
    const T* x = p.x + row * p.x_stride;
    T* y = p.y + row * p.y_stride;
    for (i64 quad = threadIdx.x; 4 * quad < p.columns; quad += THREADS) {
        u32 words[4] = {(u32)quad, position, stream, 0};
        philox(words, p.key);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const i64 at = 4 * quad + i;
            if (at >= p.columns) break;
            double kept = 0.0;
            if (words[i] >= p.threshold) kept = __dmul_rn(p.factor, to_f64(x[at]));
            const double before = p.accumulate ? to_f64(y[at]) : 0.0;
            y[at] = from_f64<T>(__dadd_rn(before, kept));
        }
    }
}

KERNEL(dropout_f32, (THREADS), DropoutParams<float>) { dropout(p); }
KERNEL(dropout_bf16, (THREADS), DropoutParams<bf16>) { dropout(p); }
KERNEL(dropout_f16, (THREADS), DropoutParams<f16>) { dropout(p); }
KERNEL(dropout_f64, (THREADS), DropoutParams<double>) { dropout(p); }
