// Losses over the samples of a group: contrastive policy gradient (arXiv:2406.19185) and
// beta-smoothed marginal likelihood (arXiv:1704.07926); and the symmetric InfoNCE of a matrix of
// contexts and completions (arXiv:2404.14313).
//
//     copg       L = sum (R_b - mean)² / (beta·(K - 1)), R_b = R - beta·(logp - reference)
//     beta_mml   L = -(1/beta)·log sum exp(beta·logp)
//     info_nce   L = -(1/2n)·sum_i (log softmax_j S_ij + log softmax_j S_ji at j = i)
//
// | operand                 | shape   | dtype    | layout                               |
// |-------------------------|---------|----------|--------------------------------------|
// | logp, reference, reward | [B]     | f32, f64 | any stride; NaN reward abstains      |
// | offsets                 | [G + 1] | i64      | any stride; clamped to 0..=B         |
// | weight, loss            | [G]     | f32, f64 | any stride; weight 1/G if absent     |
// | d_logp                  | [B]     | f32, f64 | any stride                           |
// | total                   | [1]     | f64      | may be absent                        |
// | logp, d_logp (info_nce) | [n, n]  | f32, f64 | rows contiguous, any row stride      |
//
// Mapping: one warp per group, 4 groups per block, one launch. InfoNCE: one block per row and
// column for the normalizers, then one block per row for the gradient; two launches.
// Traffic: O(B); InfoNCE reads its matrix three times and writes it once.
// Numerics: f64, rounded once; sums in trees that depend on a group's size, the total's on G.
// local memory: beta_mml_*: registers live across the call in an f64 division
// local memory: info_nce_*: registers live across the call in an f64 division
#include "moments.cuh"
#include "terms.cuh"
#include "group_loss.h"

static constexpr int WARPS = THREADS / WARP;

template <class R>
__device__ __forceinline__ double copg_group(const GroupLossParams<R>& p, i64 g) {
    const Span own = span(p.offsets, g, p.samples);
    const auto regularized = [&](i64 i) {
        return wide(p.reward, own.begin + i) -
               p.beta * (wide(p.logp, own.begin + i) - wide_or(p.reference, own.begin + i, 0.0));
    };
    const i64 n = own.end - own.begin;
    const Moments m = moments(n, regularized, 1, WarpTeam());
    const double weight = p.terms.weigh(g), slope = -2.0 / (double)(m.count - 1);
    // A NaN reward abstains; a NaN log-prob does not.
    i64 lost = 0;
    for (i64 i = threadIdx.x % WARP; i < n; i += WARP)
        lost += is_nan(regularized(i)) && !is_nan(wide(p.reward, own.begin + i));
    const bool tainted = warp_reduce(lost, Sum()) > 0;
    for (i64 i = threadIdx.x % WARP; i < n; i += WARP) {
        const double x = regularized(i);
        const double d = tainted                ? NAN_F64
                         : is_nan(x) || m.equal ? 0.0
                                                : slope * (x - m.min - m.rise);
        p.d_logp.set(own.begin + i, from_f64<R>(weight * d));
    }
    return tainted ? NAN_F64 : m.variance / p.beta;
}

template <class R>
__device__ __forceinline__ double beta_mml_group(const GroupLossParams<R>& p, i64 g) {
    const Span own = span(p.offsets, g, p.samples);
    const i64 lane = threadIdx.x % WARP;
    if (own.begin == own.end) return 0.0;
    double top = -INF_F64, sum = 0.0;
    for (i64 i = own.begin + lane; i < own.end; i += WARP)
        top = fmax(top, p.beta * wide(p.logp, i));
    top = warp_reduce(top, Max());
    for (i64 i = own.begin + lane; i < own.end; i += WARP)
        sum += exp(p.beta * wide(p.logp, i) - top);
    sum = warp_reduce(sum, Sum());
    const double weight = p.terms.weigh(g);
    for (i64 i = own.begin + lane; i < own.end; i += WARP)
        p.d_logp.set(i, from_f64<R>(-weight * (exp(p.beta * wide(p.logp, i) - top) / sum)));
    return -(top + log(sum)) / p.beta;
}

template <class R, class Group>
__device__ __forceinline__ void per_group(const GroupLossParams<R>& p, const Group& group) {
    const i64 g = (i64)blockIdx.x * WARPS + threadIdx.x / WARP;
    double share = 0.0;
    if (g < p.terms.count) {
        const double loss = group(p, g);
        if (threadIdx.x % WARP == 0) {
            p.terms.loss.set(g, from_f64<R>(loss));
            share = p.terms.weigh(g) * loss;
        }
    }
    p.terms.template finish<THREADS>(share);
}

template <class R> __device__ __forceinline__ void copg(const GroupLossParams<R>& p) {
    per_group(p, [](const GroupLossParams<R>& p, i64 g) { return copg_group(p, g); });
}
template <class R> __device__ __forceinline__ void beta_mml(const GroupLossParams<R>& p) {
    per_group(p, [](const GroupLossParams<R>& p, i64 g) { return beta_mml_group(p, g); });
}

// 1 / tokens of a completion; 0 for an empty one.
template <class R> __device__ __forceinline__ double share_of(const InfoNceParams<R>& p, i64 j) {
    const i64 n = p.length.get_or(j, 1);
    return n > 0 ? 1.0 / (double)n : 0.0;
}

template <class R>
__device__ __forceinline__ double score(const InfoNceParams<R>& p, i64 i, i64 j) {
    return to_f64(p.logp[i * p.row_stride + j]) * share_of(p, j);
}

// log sum exp of value(0) .. value(n - 1) over the block.
template <class Value>
__device__ __forceinline__ double block_lse(i64 n, const Value& value, double* warps) {
    double top = -INF_F64, sum = 0.0;
    for (i64 j = threadIdx.x; j < n; j += THREADS) top = fmax(top, value(j));
    top = block_reduce<THREADS>(top, -INF_F64, Max(), warps);
    for (i64 j = threadIdx.x; j < n; j += THREADS) sum += exp(value(j) - top);
    return top + log(block_reduce<THREADS>(sum, 0.0, Sum(), warps));
}

template <class R> __device__ __forceinline__ void info_nce(const InfoNceParams<R>& p) {
    __shared__ double warps[WARPS];
    const i64 i = blockIdx.x;
    const double row = block_lse(p.n, [&](i64 j) { return score(p, i, j); }, warps);
    const double col = block_lse(p.n, [&](i64 j) { return score(p, j, i); }, warps);
    double share = 0.0;
    if (threadIdx.x == 0) {
        p.row_lse[i] = row;
        p.col_lse[i] = col;
        share = ((row - score(p, i, i)) + (col - score(p, i, i))) * (0.5 / (double)p.n);
    }
    p.terms.template finish<THREADS>(share);
}

template <class R> __device__ __forceinline__ void info_nce_grad(const InfoNceParams<R>& p) {
    const i64 i = blockIdx.x;
    const double scale = 0.5 / (double)p.n;
    for (i64 j = threadIdx.x; j < p.n; j += THREADS) {
        const double s = score(p, i, j), target = i == j ? 2.0 : 0.0;
        const double slope = (exp(s - p.row_lse[i]) + exp(s - p.col_lse[j]) - target) * scale;
        p.d_logp[i * p.d_row_stride + j] = from_f64<R>(slope * share_of(p, j));
    }
    if (i == 0 && threadIdx.x == 0) p.terms.loss.set(0, from_f64<R>(*p.terms.total));
}

KERNEL(copg_f32, (THREADS), GroupLossParams<float>) { copg(p); }
KERNEL(copg_f64, (THREADS), GroupLossParams<double>) { copg(p); }
KERNEL(beta_mml_f32, (THREADS), GroupLossParams<float>) { beta_mml(p); }
KERNEL(beta_mml_f64, (THREADS), GroupLossParams<double>) { beta_mml(p); }
KERNEL(info_nce_f32, (THREADS), InfoNceParams<float>) { info_nce(p); }
KERNEL(info_nce_f64, (THREADS), InfoNceParams<double>) { info_nce(p); }
KERNEL(info_nce_grad_f32, (THREADS), InfoNceParams<float>) { info_nce_grad(p); }
KERNEL(info_nce_grad_f64, (THREADS), InfoNceParams<double>) { info_nce_grad(p); }
