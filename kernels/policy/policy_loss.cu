// loss = sum_i w_i sum_t L_t over packed sequences, its gradient by every log-prob, and statistics.
//
// L_t = token_weight·keep·rho·surrogate + beta·KL - c·entropy. The surrogates and where they were
// published are in `ops::Loss`; `policy_terms.cuh` holds their formulas.
//
// | operand                          | shape    | dtype    | layout                    |
// |----------------------------------|----------|----------|---------------------------|
// | logp, old, sampler, ref, ref2    | [N]      | f32, f64 | any stride                |
// | token_weight, is_weight, entropy | [N]      | f32, f64 | any stride                |
// | mask, class, selected            | [N]      | u8       | any stride                |
// | advantage                        | [B], [N] | f32, f64 | any stride                |
// | cu_seqlens                       | [B + 1]  | i64      | clamped to 0..=N          |
// | seq_weight                       | [B]      | f32, f64 | any stride                |
// | dlogp, dentropy, token_loss      | [N]      | f32, f64 | any stride                |
// | totals                           | [26]     | f64      | loss, then the statistics |
//
// Mapping: one block per sequence, threads stride over its tokens; one launch. The block that is
// done last adds the blocks' totals.
// Traffic: each given column once from memory, up to three times from cache; O(N) flops in f64.
//
//     pass 1   (sequence ratios, GMPO, VESPO, OPSM only)   n, sum of log-ratios, ...
//     pass 2   terms of every token: loss, statistics, sum of what flows through a shared ratio
//     pass 3   (sequence ratios only) gradients; token ratios write theirs in pass 2
//
// Numerics: f64 inside, rounded once; masked tokens are skipped, not multiplied by 0, and get an
// exact 0. Sums are a thread's tokens in order, then a butterfly, then the warps in order: a tree
// that depends on the sequence's length alone. The final sum depends on B alone.
// local memory: policy_loss_*: registers live across the call in an f64 division
#include "policy_terms.cuh"
#include "totals.cuh"

static constexpr int WARPS = THREADS / WARP;

// What the sequence's tokens have in common.
struct Sequence {
    i64 index, begin, end;
    double weight, count;
    double level;      // log-ratio of the sequence, if it has one
    double advantage;  // GMPO's mean
    double phi[2];     // VESPO's weights for A >= 0 and A < 0
    double
        opsm;  // what OPSM leaves of tokens of negative advantage: 1 or 0, or NaN where the gap is
};

// A token that carries loss.
struct Active {
    Token t;
    double raw, rho, weight, entropy;
    int klass;
    bool moves;
};

// False for a token that is masked or whose class has weight 0; nothing else of it is read then.
template <class R>
__device__ __forceinline__ bool load(const PolicyLossParams<R>& p, i64 sequence, i64 i,
                                     Active* out) {
    const PolicySettings& s = p.s;
    if (p.mask.get_or(i, 1) == 0) return false;
    const int klass = p.klass.get(i) & 7;
    if (s.class_weight[klass] == 0.0) return false;
    const double logp = wide(p.logp, i);
    const double old = wide_or(p.old_logp, i, logp), sampler = wide_or(p.sampler_logp, i, logp);
    const double base = s.class_self_ratio[klass] ? logp : s.sampler_denominator ? sampler : old;
    out->klass = klass;
    out->raw = logp - base;
    const double log_ratio = clamp(out->raw, -s.log_ratio_clamp, s.log_ratio_clamp);
    out->moves = log_ratio == out->raw;
    out->rho = wide_or(p.is_weight, i, 1.0);
    out->weight = wide_or(p.token_weight, i, 1.0);
    out->entropy = wide_or(p.entropy, i, 0.0);
    out->t.advantage = s.loss == LOSS_CROSS_ENTROPY
                           ? 1.0
                           : wide(p.advantage, p.advantage_per_token ? i : sequence);
    out->t.logp = logp;
    out->t.base = base;
    out->t.log_ratio = log_ratio;
    out->t.center = s.stale_center ? exp(old - sampler) : 1.0;
    out->t.selected = p.selected.get(i) != 0;
    return true;
}

// GMPO's log-ratio: cut on the pessimistic side.
__device__ __forceinline__ double gmpo_cut(const PolicySettings& s, const Active& a) {
    const double d = a.t.log_ratio;
    return a.t.advantage > 0.0   ? at_most(d, s.x[1])
           : a.t.advantage < 0.0 ? at_least(d, -s.x[0])
           : d != d              ? d
                                 : 0.0;
}

static constexpr double LOG_TINY = -18.420680743952367;  // log 1e-8, where VESPO cuts small ratios

// Pass 1: fills `q` with what the settings need of the whole sequence.
template <class R>
__device__ __forceinline__ void survey(const PolicyLossParams<R>& p, Sequence& q, double* shared) {
    const PolicySettings& s = p.s;
    const Column<const R>& sampler = p.sampler_logp.at ? p.sampler_logp : p.old_logp;
    double count = 0.0, ratios = 0.0, advantages = 0.0, vespo = 0.0, gap = 0.0;
    for (i64 i = q.begin + threadIdx.x; i < q.end; i += THREADS) {
        Active a;
        if (!load<R>(p, q.index, i, &a)) continue;
        count += 1.0;
        ratios += s.loss == LOSS_GMPO ? gmpo_cut(s, a) : a.t.log_ratio;
        advantages += a.t.advantage;
        if (s.loss == LOSS_VESPO)
            vespo += clamp(a.raw, -20.0, 20.0) + clamp(log(a.rho), LOG_TINY, 20.0);
        if (sampler.at) gap += wide(sampler, i) - a.t.logp;
    }
    q.count = block_reduce<THREADS>(count, 0.0, Sum(), shared);
    if (q.count == 0.0) return;
    ratios = block_reduce<THREADS>(ratios, 0.0, Sum(), shared);
    q.advantage = block_reduce<THREADS>(advantages, 0.0, Sum(), shared) / q.count;
    const bool mean = s.loss == LOSS_GMPO || s.ratio != RATIO_LEVEL_SEQUENCE_SUM;
    q.level = mean ? ratios / q.count : ratios;
    if (s.loss == LOSS_VESPO) {
        const double log_w =
            clamp(block_reduce<THREADS>(vespo, 0.0, Sum(), shared), LOG_TINY, 20.0);
        for (int k = 0; k < 2; ++k) {
            const double phi =
                exp(s.x[2 * k + 1] + s.x[2 * k] * log_w - s.x[2 * k + 1] * exp(log_w));
            // As published, a weight that overflows counts 0; NaN stays NaN.
            q.phi[k] = phi == INF_F64 ? 0.0 : phi;
        }
    }
    gap = block_reduce<THREADS>(gap, 0.0, Sum(), shared);
    const double mean_gap = gap / q.count;
    if (s.opsm != INF_F64 && sampler.at)
        q.opsm = mean_gap != mean_gap ? mean_gap : mean_gap <= s.opsm ? 1.0 : 0.0;
}

// Brings a token's log-ratio to the level of the settings.
__device__ __forceinline__ void set_ratio(const PolicySettings& s, const Sequence& q, Active& a) {
    if (s.loss == LOSS_GMPO) {
        a.moves = a.moves && gmpo_cut(s, a) == a.t.log_ratio;
        a.t.log_ratio = q.level;
        a.t.advantage = q.advantage;
    } else if (s.ratio != RATIO_LEVEL_TOKEN) {
        const double bounded = at_most(q.level, s.seq_log_ratio_max);
        a.moves = a.moves && bounded == q.level;
        a.t.log_ratio = bounded;
    }
    a.t.ratio = exp(a.t.log_ratio);
    if (s.loss == LOSS_VESPO) {
        a.t.phi = a.t.advantage < 0.0 ? q.phi[1] : q.phi[0];
        a.rho = 1.0;  // rho is inside phi already
    }
}

__device__ __forceinline__ double times(double x, double scale) {
    return scale == 0.0 ? 0.0 : x * scale;
}

// Terms of one token with all its weights: value without, derivatives with class and sequence
// weight.
template <class R>
__device__ __forceinline__ Term terms(const PolicyLossParams<R>& p, const Sequence& q,
                                      const Active& a, i64 i, bool* dropped) {
    const PolicySettings& s = p.s;
    Term term = surrogate(s, a.t), kl = {0.0, 0.0, 0.0, CLIPPED_NO};
    const double share = a.t.advantage < 0.0 ? q.opsm : 1.0;
    *dropped = share == 0.0;
    const double keep = times(a.rho * a.weight, share);
    if (s.kl) {
        const double second = wide_or(p.ref2_logp, i, 0.0);
        kl = penalty(s, a.t, wide(p.ref_logp, i), p.ref2_logp.at ? &second : nullptr);
    }
    const double klass = s.class_weight[a.klass], w = q.weight * klass;
    const double value = times(term.value, keep) + kl.value - times(a.entropy, s.entropy_coef);
    return {klass * value, w * (times(term.by_ratio, keep) + kl.by_ratio),
            w * (times(term.by_logp, keep) + kl.by_logp), term.clipped};
}

__device__ __forceinline__ void count_token(const PolicySettings& s, const Active& a, int clipped,
                                            bool dropped, double* sum) {
    sum[TOTAL_TOKENS] += 1.0;
    sum[TOTAL_CLIP_LO] += clipped == CLIPPED_LOW;
    sum[TOTAL_CLIP_HI] += clipped == CLIPPED_HIGH;
    sum[TOTAL_DUAL] += clipped == CLIPPED_DUAL;
    sum[TOTAL_OPSM] += dropped;
    sum[TOTAL_RATIO] += a.t.ratio;
    sum[TOTAL_RATIO2] += a.t.ratio * a.t.ratio;
    sum[TOTAL_ENTROPY] += a.entropy;
    sum[TOTAL_MIN_RATIO] = fmin(sum[TOTAL_MIN_RATIO], a.t.ratio);
    sum[TOTAL_MAX_RATIO] = fmax(sum[TOTAL_MAX_RATIO], a.t.ratio);
    sum[TOTAL_MAX_LOG_RATIO] = fmax(sum[TOTAL_MAX_LOG_RATIO], fabs(a.raw));
}

typedef Totals<TOTAL_MIN_RATIO, TOTALS, THREADS> Statistics;

// Adds a token's loss and gradient to the statistics and writes the gradient.
template <class R>
__device__ __forceinline__ void finish(const PolicyLossParams<R>& p, const Sequence& q,
                                       const Active& a, i64 i, double value, double gradient,
                                       double* sum) {
#pragma unroll
    for (int k = 0; k < 8; ++k) sum[TOTAL_GRAD2 + k] += a.klass == k ? gradient * gradient : 0.0;
    sum[TOTAL_NONFINITE] += !(value - value == 0.0 && gradient - gradient == 0.0);
    p.dlogp.set(i, from_f64<R>(gradient));
    p.dentropy.set(i, from_f64<R>(-q.weight * p.s.entropy_coef));
}

template <class R>
__device__ __forceinline__ void one_sequence(const PolicyLossParams<R>& p, Sequence& q, double* sum,
                                             double* shared) {
    const PolicySettings& s = p.s;
    const bool shared_ratio = s.loss == LOSS_GMPO || s.ratio == RATIO_LEVEL_SEQUENCE_MEAN ||
                              s.ratio == RATIO_LEVEL_SEQUENCE_SUM;
    if (shared_ratio || s.ratio != RATIO_LEVEL_TOKEN || s.loss == LOSS_VESPO || s.opsm != INF_F64)
        survey<R>(p, q, shared);
    double flow = 0.0;
    for (i64 i = q.begin + threadIdx.x; i < q.end; i += THREADS) {
        Active a;
        if (!load<R>(p, q.index, i, &a)) {
            p.dlogp.set(i, from_f64<R>(0.0));
            p.dentropy.set(i, from_f64<R>(0.0));
            p.token_loss.set(i, from_f64<R>(0.0));
            continue;
        }
        set_ratio(s, q, a);
        bool dropped;
        const Term term = terms<R>(p, q, a, i, &dropped);
        count_token(s, a, term.clipped, dropped, sum);
        if (p.ref_logp.at) {
            const double k = wide(p.ref_logp, i) - a.t.logp;
            sum[TOTAL_KL1] += -k;
            sum[TOTAL_KL2] += 0.5 * k * k;
            sum[TOTAL_KL3] += expm1(k) - k;
        }
        sum[TOTAL_LOSS] += q.weight * term.value;
        p.token_loss.set(i, from_f64<R>(term.value));
        flow += term.by_ratio;
        if (!shared_ratio)
            finish<R>(p, q, a, i, term.value,
                      (a.moves ? term.by_ratio : 0.0 * term.by_ratio) + term.by_logp, sum);
    }
    if (!shared_ratio) return;
    flow = block_reduce<THREADS>(flow, 0.0, Sum(), shared);
    const double share =
        s.loss != LOSS_GMPO && s.ratio == RATIO_LEVEL_SEQUENCE_SUM ? flow : flow / q.count;
    for (i64 i = q.begin + threadIdx.x; i < q.end; i += THREADS) {
        Active a;
        if (!load<R>(p, q.index, i, &a)) continue;
        set_ratio(s, q, a);
        bool dropped;
        const Term term = terms<R>(p, q, a, i, &dropped);
        finish<R>(p, q, a, i, term.value, (a.moves ? share : 0.0 * share) + term.by_logp, sum);
    }
}

template <class R> __device__ __forceinline__ void policy_loss(const PolicyLossParams<R>& p) {
    check_enum(p.s.loss, LOSS_KL_COV);
    check_enum(p.s.ratio, RATIO_LEVEL_SEQUENCE_SUM);
    check_enum(p.s.kl_estimator, KL_ESTIMATOR_ABS);
    check_enum(p.s.kl_gradient, KL_GRADIENT_NONE);
    check_enum(p.s.kl_weight, KL_WEIGHT_RATIO_DETACHED);
    __shared__ double warps[WARPS][TOTALS];
    double sum[TOTALS];
    Statistics::clear(sum);
    const i64 b = blockIdx.x;
    const Span own = span(p.cu_seqlens, b, p.tokens);
    Sequence q = {b, own.begin, own.end, wide(p.seq_weight, b), 0.0, 0.0, 0.0, {0.0, 0.0}, 1.0};
    one_sequence<R>(p, q, sum, warps[0]);
    double* mine = p.partial + b * TOTALS;
    Statistics::combine(sum, mine, warps);
    // Threads below TOTALS wrote `mine`; the one that sees n_tokens says whether there were any.
    if (threadIdx.x == TOTAL_TOKENS) {
        const bool any = mine[TOTAL_TOKENS] > 0.0;
        mine[TOTAL_SEQUENCES] = any ? 1.0 : 0.0;
        mine[TOTAL_EMPTY] = any ? 0.0 : 1.0;
    }
    if (!last_block(p.ticket, p.sequences)) return;
    Statistics::clear(sum);
    for (i64 i = threadIdx.x; i < p.sequences; i += THREADS) {
        const double* one = p.partial + i * TOTALS;
#pragma unroll
        for (int k = 0; k < TOTAL_MIN_RATIO; ++k) sum[k] += one[k];
        sum[TOTAL_MIN_RATIO] = fmin(sum[TOTAL_MIN_RATIO], one[TOTAL_MIN_RATIO]);
        sum[TOTAL_MAX_RATIO] = fmax(sum[TOTAL_MAX_RATIO], one[TOTAL_MAX_RATIO]);
        sum[TOTAL_MAX_LOG_RATIO] = fmax(sum[TOTAL_MAX_LOG_RATIO], one[TOTAL_MAX_LOG_RATIO]);
    }
    Statistics::combine(sum, p.totals, warps);
}

KERNEL(policy_loss_f32, (THREADS), PolicyLossParams<float>) { policy_loss<float>(p); }
KERNEL(policy_loss_f64, (THREADS), PolicyLossParams<double>) { policy_loss<double>(p); }
