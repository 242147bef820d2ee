// Weights rho of tokens that another policy sampled: importance ratios, truncated or masked, and
// rejection of tokens or sequences that are too far off. The settings are `ops::OffPolicySettings`.
//
//     D_t = logp_old - logp_sampler, rho_t = bound(exp(D)) with D of the token or of its sequence
//
// | operand                | shape   | dtype    | layout                          |
// |------------------------|---------|----------|---------------------------------|
// | old_logp, sampler_logp | [N]     | f32, f64 | any stride                      |
// | mask                   | [N]     | u8       | any stride, may be absent       |
// | cu_seqlens             | [B + 1] | i64      | any stride; clamped to 0..=N    |
// | weight                 | [N]     | f32, f64 | any stride                      |
// | totals                 | [9]     | f64      | see `Total`                     |
//
// Mapping: one block per sequence, threads stride over its tokens. One launch; a second one of the
// same kernel where the weights are divided by their mean, which computes them again: their f64
// values are never stored.
// Traffic: two columns twice (the second time from cache), one written.
// Numerics: f64, rounded once. Sums are trees that depend on the sequence's length, the totals' on
// B.
#include "totals.cuh"
#include "offpolicy_weight.h"

static constexpr int WARPS = THREADS / WARP;

// What the sequence's tokens have in common.
struct Sequence {
    double sum, mean, measure;
};

template <class R> __device__ __forceinline__ double gap(const OffPolicyParams<R>& p, i64 t) {
    const double sampler = wide(p.sampler_logp, t);
    const double d = sampler != sampler ? 0.0 : wide(p.old_logp, t) - sampler;
    return clamp(d, -p.clamp, p.clamp);
}

__device__ __forceinline__ double measure(int by, double d) {
    // Not inf - inf: a NaN measure is an unknown one.
    return by == REJECT_BY_K1   ? -d
           : by == REJECT_BY_K2 ? 0.5 * d * d
           : d == INF_F64       ? d
                                : expm1(d) - d;
}

template <class R>
__device__ __forceinline__ Sequence survey(const OffPolicyParams<R>& p, const Span& own,
                                           double* warps) {
    double sum = 0.0, measures = 0.0, highest = -INF_F64, count = 0.0;
    for (i64 t = own.begin + threadIdx.x; t < own.end; t += THREADS) {
        if (p.mask.get_or(t, 1) == 0) continue;
        const double d = gap(p, t);
        sum += d;
        count += 1.0;
        if (p.rejects) {
            const double m = measure(p.reject_by, d);
            measures += m;
            highest = fmax(highest, m);
        }
    }
    sum = block_reduce<THREADS>(sum, 0.0, Sum(), warps);
    count = block_reduce<THREADS>(count, 0.0, Sum(), warps);
    measures = block_reduce<THREADS>(measures, 0.0, Sum(), warps);
    highest = block_reduce<THREADS>(highest, -INF_F64, Max(), warps);
    const double n = fmax(count, 1.0);
    const double whole = p.reject_level == REJECT_LEVEL_SEQUENCE_SUM    ? measures
                         : p.reject_level == REJECT_LEVEL_SEQUENCE_MEAN ? measures / n
                         : measures != measures                         ? measures
                                                                        : highest;
    return {sum, sum / n, whole};
}

// The weight of a token; its ratio before any bound in *raw.
template <class R>
__device__ __forceinline__ double weigh(const OffPolicyParams<R>& p, const Sequence& q, double d,
                                        double* raw) {
    const double level = p.level == LEVEL_TOKEN || p.bound == BOUND_SEQUENCE_MASK ? d
                         : p.level == LEVEL_SEQUENCE_SUM                          ? q.sum
                                                                                  : q.mean;
    const double ratio = *raw = exp(level);
    const double judged = p.bound == BOUND_SEQUENCE_MASK ? exp(q.mean) : ratio;
    double w = judged != judged ? judged : judged >= p.min && judged <= p.max ? ratio : 0.0;
    if (p.bound == BOUND_TRUNCATE) w = clamp(ratio, p.min, p.max);
    if (!p.rejects) return w;
    const double m = p.reject_level == REJECT_LEVEL_TOKEN ? measure(p.reject_by, d) : q.measure;
    return m != m ? m : m >= p.reject_lo && m <= p.reject_hi ? w : 0.0;
}

typedef Totals<TOTAL_MIN, TOTALS, THREADS> Statistics;

template <class R> __device__ __forceinline__ void offpolicy_weight(const OffPolicyParams<R>& p) {
    check_enum(p.level, LEVEL_SEQUENCE_MEAN);
    check_enum(p.bound, BOUND_SEQUENCE_MASK);
    check_enum(p.reject_by, REJECT_BY_K3);
    check_enum(p.reject_level, REJECT_LEVEL_SEQUENCE_MAX);
    __shared__ double warps[WARPS][TOTALS];
    const i64 b = blockIdx.x;
    const Span own = span(p.cu_seqlens, b, p.tokens);
    const Sequence q = survey(p, own, warps[0]);
    double divisor = 1.0;
    if (p.divides && p.totals[TOTAL_KEPT_SUM] != 0.0)
        divisor = p.totals[TOTAL_KEPT_SUM] / p.totals[TOTAL_KEPT];
    double sum[TOTALS];
    Statistics::clear(sum);
    for (i64 t = own.begin + threadIdx.x; t < own.end; t += THREADS) {
        if (p.mask.get_or(t, 1) == 0) {
            if (p.writes) p.weight.set(t, R(0));
            continue;
        }
        double raw;
        const double w = weigh(p, q, gap(p, t), &raw), sampler = wide(p.sampler_logp, t);
        if (p.writes) p.weight.set(t, from_f64<R>(p.divides ? w / divisor : w));
        sum[TOTAL_TOKENS] += 1.0;
        sum[TOTAL_DROPPED] += w == 0.0;
        sum[TOTAL_NAN] += sampler != sampler;
        sum[TOTAL_SUM] += raw;
        sum[TOTAL_SQUARES] += raw * raw;
        sum[TOTAL_KEPT] += w != 0.0;  // NaN is used, and makes the mean NaN
        sum[TOTAL_KEPT_SUM] += w;
        sum[TOTAL_MIN] = fmin(sum[TOTAL_MIN], raw);
        sum[TOTAL_MAX] = fmax(sum[TOTAL_MAX], raw);
    }
    if (p.divides) return;
    Statistics::combine(sum, p.partial + b * TOTALS, warps);
    if (!last_block(p.ticket, p.sequences)) return;
    Statistics::clear(sum);
    for (i64 i = threadIdx.x; i < p.sequences; i += THREADS) {
        const double* one = p.partial + i * TOTALS;
#pragma unroll
        for (int k = 0; k < TOTAL_MIN; ++k) sum[k] += one[k];
        sum[TOTAL_MIN] = fmin(sum[TOTAL_MIN], one[TOTAL_MIN]);
        sum[TOTAL_MAX] = fmax(sum[TOTAL_MAX], one[TOTAL_MAX]);
    }
    Statistics::combine(sum, p.totals, warps);
}

KERNEL(offpolicy_weight_f32, (THREADS), OffPolicyParams<float>) { offpolicy_weight(p); }
KERNEL(offpolicy_weight_f64, (THREADS), OffPolicyParams<double>) { offpolicy_weight(p); }
