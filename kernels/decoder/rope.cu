// (x_i, x_{i+D/2}) <- (x_i·c - x_{i+D/2}·s, x_{i+D/2}·c + x_i·s) with c, s = cos, sin[positions[t],
// i]; queries and keys of a token in one launch, with its key and value into a cache.
//
// Rotary position embedding (arXiv:2104.09864, eq. 34) in the half-split layout of GPT-NeoX and
// Llama.
//
// | operand   | shape     | dtype               | layout                                     |
// |-----------|-----------|---------------------|--------------------------------------------|
// | x, q, k   | [T, H, D] | f32, bf16, f16, f64 | last dimension contiguous; in place        |
// | v         | [T, W]    | as q                | rows contiguous, W = Hkv·D                 |
// | keys, values | [S, W] | as q                | rows contiguous                            |
// | rows      | [T]       | i32                 | any stride; -1 stores nowhere              |
// | positions | [T]       | i32                 | any stride                                 |
// | cos, sin  | [P, D/2]  | f32                 | rows contiguous, any row stride            |
//
// Mapping: one block per token, a thread takes pieces of 16 bytes of both halves of a head, or a
// pair where heads do not lie in such pieces; the heads of a token share its row of the tables in
// L1.
// Traffic: 2·T·H·D elements, 3 flops per value (f64); with a cache 2·T·Hkv·D more for keys, and as
// many for values.
// Numerics: x·c -+ y·s in f64, one rounding: the bits of the CPU. A position outside the tables
// leaves the token as it is, a row outside the cache is not written (host memory is checked before
// the launch).
#include "pack.cuh"
#include "rope.h"

// What a token reads of the tables: nothing if it stands outside of them.
struct Angles {
    const float *cos, *sin;
    double sign;
    int half;
    __device__ __forceinline__ Angles(const RopeTables& t, i64 token)
        : cos(nullptr), sin(nullptr), sign(t.sign), half((int)t.half) {
        const i64 at = t.position.get(token);
        if (at < 0 || at >= t.positions) return;
        cos = t.cos + at * t.cos_stride, sin = t.sin + at * t.sin_stride;
    }
    template <class T> __device__ __forceinline__ void rotate(T& low, T& high, int i) const {
        const double x = to_f64(low), y = to_f64(high), c = cos[i], s = sign * sin[i];
        low = from_f64<T>(fma(x, c, -__dmul_rn(y, s)));
        high = from_f64<T>(fma(y, c, __dmul_rn(x, s)));
    }
};

// The heads of a token in place, and to `copy`, where they lie side by side, unless it is null.
template <class T>
__device__ __forceinline__ void rotate_heads(T* x, i64 stride, int heads, T* copy,
                                             const Angles& angles) {
    constexpr int N = Vec16<T>::N;
    const int half = angles.half;
    const bool rotates = angles.cos;
    if (!rotates && !copy) return;
    if (half % N == 0 && stride % N == 0 && aligned16(x) && aligned16(copy)) {
        const u32 pieces = half / N;
        for (u32 i = threadIdx.x; i < heads * pieces; i += THREADS) {
            const u32 head = i / pieces, at = i % pieces * N;
            T* from = x + head * stride + at;
            Vec16<T> low, high;
            low.raw = *(const uint4*)from, high.raw = *(const uint4*)(from + half);
            if (rotates) {
#pragma unroll
                for (int k = 0; k < N; ++k) angles.rotate(low.at[k], high.at[k], at + k);
                *(uint4*)from = words_of(low), *(uint4*)(from + half) = words_of(high);
            }
            if (!copy) continue;
            T* to = copy + head * 2 * half + at;
            *(uint4*)to = words_of(low), *(uint4*)(to + half) = words_of(high);
        }
        return;
    }
    for (u32 i = threadIdx.x; i < heads * (u32)half; i += THREADS) {
        const u32 head = i / half, at = i % half;
        T* from = x + head * stride + at;
        T low = from[0], high = from[half];
        if (rotates) {
            angles.rotate(low, high, at);
            from[0] = low, from[half] = high;
        }
        if (!copy) continue;
        T* to = copy + (i64)head * 2 * half + at;
        to[0] = low, to[half] = high;
    }
}

template <class T> __device__ __forceinline__ void copy_row(T* to, const T* from, int count) {
    constexpr int N = Vec16<T>::N;
    const int whole = aligned16(to) && aligned16(from) ? count / N * N : 0;
    for (int j = threadIdx.x * N; j < whole; j += THREADS * N)
        *(uint4*)(to + j) = *(const uint4*)(from + j);
    for (int j = whole + threadIdx.x; j < count; j += THREADS) to[j] = from[j];
}

template <class T> __device__ __forceinline__ void rope(const RopeParams<T>& p) {
    const i64 token = blockIdx.x;
    rotate_heads<T>(p.x + token * p.token_stride, p.head_stride, (int)p.heads, nullptr,
                    Angles(p.tables, token));
}

template <class T> __device__ __forceinline__ void rope_store(const RopeStoreParams<T>& p) {
    const i64 token = blockIdx.x, row = p.v ? p.row.get(token) : -1;
    const bool stores = row >= 0 && row < p.rows;
    const Angles angles(p.tables, token);
    rotate_heads<T>(p.q + token * p.q_token, p.q_head, (int)p.q_heads, nullptr, angles);
    rotate_heads<T>(p.k + token * p.k_token, p.k_head, (int)p.k_heads,
                    stores ? p.keys + row * p.keys_stride : nullptr, angles);
    if (stores)
        copy_row(p.values + row * p.values_stride, p.v + token * p.v_stride,
                 (int)p.k_heads * 2 * angles.half);
}

KERNEL(rope_f32, (THREADS), RopeParams<float>) { rope(p); }
KERNEL(rope_bf16, (THREADS), RopeParams<bf16>) { rope(p); }
KERNEL(rope_f16, (THREADS), RopeParams<f16>) { rope(p); }
KERNEL(rope_f64, (THREADS), RopeParams<double>) { rope(p); }
KERNEL(rope_store_f32, (THREADS), RopeStoreParams<float>) { rope_store(p); }
KERNEL(rope_store_bf16, (THREADS), RopeStoreParams<bf16>) { rope_store(p); }
KERNEL(rope_store_f16, (THREADS), RopeStoreParams<f16>) { rope_store(p); }
KERNEL(rope_store_f64, (THREADS), RopeStoreParams<double>) { rope_store(p); }
