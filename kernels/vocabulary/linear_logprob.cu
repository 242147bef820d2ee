// dhidden[t] = dlogp[t]·score[t]: the backward pass of a frozen head whose score vectors
// ∂logp/∂hidden the forward pass kept.
//
// | operand        | shape  | dtype               | layout                          |
// |----------------|--------|---------------------|---------------------------------|
// | score, dhidden | [T, H] | f32, bf16, f16, f64 | rows contiguous, any row stride |
// | dlogp          | [T]    | f32                 | any stride                      |
//
// Mapping: one block per row. Traffic: 2·T·H elements, one product per element (f64, rounded once).
#include "common.cuh"
#include "linear_logprob.h"

template <class T> __device__ __forceinline__ void score_scale(const ScoreScaleParams<T>& p) {
    const i64 t = blockIdx.x;
    const double g = wide(p.dlogp, t);
    for (i64 j = threadIdx.x; j < p.columns; j += THREADS)
        p.dhidden[t * p.dhidden_stride + j] =
            from_f64<T>(g * to_f64(p.score[t * p.score_stride + j]));
}

KERNEL(score_scale_f32, (THREADS), ScoreScaleParams<float>) { score_scale(p); }
KERNEL(score_scale_bf16, (THREADS), ScoreScaleParams<bf16>) { score_scale(p); }
KERNEL(score_scale_f16, (THREADS), ScoreScaleParams<f16>) { score_scale(p); }
KERNEL(score_scale_f64, (THREADS), ScoreScaleParams<double>) { score_scale(p); }
