// Packed per-token values to one value per sequence, and the way back.
//
//     y_i = sum_t x_t      over the tokens of sequence i that the mask keeps; or mean, max, min
//     y_t = x_i            on those tokens, or x_i / count_i; 0 on the others     (seq_broadcast)
//
// | operand    | shape      | dtype    | layout                            |
// |------------|------------|----------|-----------------------------------|
// | x          | [T] or [B] | f32, f64 | any stride                        |
// | mask       | [T]        | u8       | any stride, may be absent         |
// | cu_seqlens | [B + 1]    | i64      | any stride; clamped to 0..=T      |
// | y          | [B] or [T] | f32, f64 | any stride                        |
// | count      | [B]        | i64      | any stride, may be absent         |
//
// Mapping: one block per sequence, threads stride over its tokens; one launch.
// Traffic: T elements and T mask bytes once (seq_broadcast reads the mask twice), B outputs.
// Numerics: f64, rounded once; a thread's tokens in order, then a butterfly, then the warps by
// another: the tree depends on the sequence's length alone. max and min keep a NaN.
#include "common.cuh"
#include "seq_reduce.h"

// fmax and fmin drop a NaN; here it stays.
struct Fold {
    int reduction;
    __device__ __forceinline__ double operator()(double a, double b) const {
        if (reduction <= REDUCTION_MEAN) return a + b;
        if (a != a || b != b) return NAN_F64;
        return reduction == REDUCTION_MAX ? fmax(a, b) : fmin(a, b);
    }
};

template <class R> __device__ __forceinline__ void seq_reduce(const SeqReduceParams<R>& p) {
    check_enum(p.reduction, REDUCTION_MIN);
    __shared__ double values[THREADS / WARP];
    __shared__ i64 counts[THREADS / WARP];
    const i64 b = blockIdx.x;
    const Span own = span(p.cu_seqlens, b, p.tokens);
    const Fold fold = {p.reduction};
    const double neutral = p.reduction == REDUCTION_MAX   ? -INF_F64
                           : p.reduction == REDUCTION_MIN ? INF_F64
                                                          : 0.0;
    double value = neutral;
    i64 count = 0;
    for (i64 t = own.begin + threadIdx.x; t < own.end; t += THREADS) {
        if (p.mask.get_or(t, 1) == 0) continue;
        value = fold(value, wide(p.x, t));
        ++count;
    }
    value = block_reduce<THREADS>(value, neutral, fold, values);
    count = block_reduce<THREADS>(count, (i64)0, Sum(), counts);
    if (threadIdx.x != 0) return;
    if (p.reduction == REDUCTION_MEAN && count > 0) value /= (double)count;
    p.y.set(b, from_f64<R>(value));
    p.count.set(b, count);
}

template <class R> __device__ __forceinline__ void seq_broadcast(const SeqReduceParams<R>& p) {
    __shared__ i64 counts[THREADS / WARP];
    const i64 b = blockIdx.x;
    const Span own = span(p.cu_seqlens, b, p.tokens);
    i64 count = 0;
    for (i64 t = own.begin + threadIdx.x; t < own.end; t += THREADS)
        count += p.mask.get_or(t, 1) != 0;
    count = block_reduce<THREADS>(count, (i64)0, Sum(), counts);
    const double x = wide(p.x, b), value = p.mean ? x / (double)(count > 1 ? count : 1) : x;
    for (i64 t = own.begin + threadIdx.x; t < own.end; t += THREADS)
        p.y.set(t, from_f64<R>(p.mask.get_or(t, 1) != 0 ? value : 0.0));
}

KERNEL(seq_reduce_f32, (THREADS), SeqReduceParams<float>) { seq_reduce(p); }
KERNEL(seq_reduce_f64, (THREADS), SeqReduceParams<double>) { seq_reduce(p); }
KERNEL(seq_broadcast_f32, (THREADS), SeqReduceParams<float>) { seq_broadcast(p); }
KERNEL(seq_broadcast_f64, (THREADS), SeqReduceParams<double>) { seq_broadcast(p); }
