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
// Mapping: a block a sequence, threads stride over its tokens. One launch; a second one of the same
// kernel where the weights are divided by their mean, which computes them again: their f64 values
// are never stored.
// Traffic: two columns twice (the second time from cache), one written.
// Numerics: f64, rounded once. Sums are trees that depend on the sequence's length, the totals' on
// B.
#include "common.cuh"

enum Level { LEVEL_TOKEN, LEVEL_SEQUENCE_SUM, LEVEL_SEQUENCE_MEAN };
enum Bound { BOUND_TRUNCATE, BOUND_MASK, BOUND_SEQUENCE_MASK };
enum RejectBy { REJECT_K1, REJECT_K2, REJECT_K3 };
enum RejectLevel { REJECT_TOKEN, REJECT_SEQUENCE_SUM, REJECT_SEQUENCE_MEAN, REJECT_SEQUENCE_MAX };

// Sums, then extremes. KEPT and KEPT_SUM are over weights above 0.
enum Total {
    T_TOKENS,
    T_DROPPED,
    T_NAN,
    T_SUM,
    T_SQUARES,
    T_KEPT,
    T_KEPT_SUM,
    T_SUMS,
    T_MIN = T_SUMS,
    T_MAX,
    TOTALS
};

template <class R> struct OffPolicyParams {
    Column<const R> old_logp, sampler_logp;
    Column<const u8> mask;
    Column<const i64> cu_seqlens;
    Column<R> weight;
    double *partial, *totals;
    u32* ticket;
    i64 tokens, sequences;
    double min, max, clamp, reject_lo, reject_hi;
    i32 level, bound, rejects, reject_by, reject_level;
    i32 writes;   // write the weights
    i32 divides;  // by the mean of the totals that an earlier launch left
    i32 unused;
};

static constexpr int THREADS = 128;
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
    return by == REJECT_K1 ? -d : by == REJECT_K2 ? 0.5 * d * d : d == INF_F64 ? d : expm1(d) - d;
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
    const double whole = p.reject_level == REJECT_SEQUENCE_SUM    ? measures
                         : p.reject_level == REJECT_SEQUENCE_MEAN ? measures / n
                         : measures != measures                   ? measures
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
    const double m = p.reject_level == REJECT_TOKEN ? measure(p.reject_by, d) : q.measure;
    return m != m ? m : m >= p.reject_lo && m <= p.reject_hi ? w : 0.0;
}

// Adds all threads' values into out[TOTALS].
__device__ __forceinline__ void combine(const double* mine, double* out, double (*shared)[TOTALS]) {
#pragma unroll
    for (int k = 0; k < TOTALS; ++k) {
        const double x = k < T_SUMS   ? warp_reduce(mine[k], Sum())
                         : k == T_MIN ? warp_reduce(mine[k], Min())
                                      : warp_reduce(mine[k], Max());
        if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP][k] = x;
    }
    __syncthreads();
    if (threadIdx.x < TOTALS) {
        double x = shared[0][threadIdx.x];
        for (int w = 1; w < WARPS; ++w) {
            const double y = shared[w][threadIdx.x];
            x = threadIdx.x < T_SUMS ? x + y : threadIdx.x == T_MIN ? fmin(x, y) : fmax(x, y);
        }
        out[threadIdx.x] = x;
    }
    __syncthreads();
}

__device__ __forceinline__ void clear(double* sum) {
#pragma unroll
    for (int k = 0; k < T_SUMS; ++k) sum[k] = 0.0;
    sum[T_MIN] = INF_F64;
    sum[T_MAX] = -INF_F64;
}

template <class R> __device__ __forceinline__ void offpolicy_weight(const OffPolicyParams<R>& p) {
    __shared__ double warps[WARPS][TOTALS];
    const i64 b = blockIdx.x;
    const Span own = span(p.cu_seqlens, b, p.tokens);
    const Sequence q = survey(p, own, warps[0]);
    double divisor = 1.0;
    if (p.divides && p.totals[T_KEPT_SUM] != 0.0) divisor = p.totals[T_KEPT_SUM] / p.totals[T_KEPT];
    double sum[TOTALS];
    clear(sum);
    for (i64 t = own.begin + threadIdx.x; t < own.end; t += THREADS) {
        if (p.mask.get_or(t, 1) == 0) {
            if (p.writes) p.weight.set(t, R(0));
            continue;
        }
        double raw;
        const double w = weigh(p, q, gap(p, t), &raw), sampler = wide(p.sampler_logp, t);
        if (p.writes) p.weight.set(t, from_f64<R>(p.divides ? w / divisor : w));
        sum[T_TOKENS] += 1.0;
        sum[T_DROPPED] += w == 0.0;
        sum[T_NAN] += sampler != sampler;
        sum[T_SUM] += raw;
        sum[T_SQUARES] += raw * raw;
        sum[T_KEPT] += w != 0.0;  // NaN is used, and makes the mean NaN
        sum[T_KEPT_SUM] += w;
        sum[T_MIN] = fmin(sum[T_MIN], raw);
        sum[T_MAX] = fmax(sum[T_MAX], raw);
    }
    if (p.divides) return;
    combine(sum, p.partial + b * TOTALS, warps);
    if (!last_block(p.ticket, p.sequences)) return;
    clear(sum);
    for (i64 i = threadIdx.x; i < p.sequences; i += THREADS) {
        const double* one = p.partial + i * TOTALS;
#pragma unroll
        for (int k = 0; k < T_SUMS; ++k) sum[k] += one[k];
        sum[T_MIN] = fmin(sum[T_MIN], one[T_MIN]);
        sum[T_MAX] = fmax(sum[T_MAX], one[T_MAX]);
    }
    combine(sum, p.totals, warps);
}

KERNEL(offpolicy_weight_f32, (THREADS), OffPolicyParams<float>) { offpolicy_weight(p); }
KERNEL(offpolicy_weight_f64, (THREADS), OffPolicyParams<double>) { offpolicy_weight(p); }
