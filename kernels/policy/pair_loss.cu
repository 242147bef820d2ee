// Losses on a chosen and a rejected sequence, KTO's on single ones, and PRDP's on pairs of packed
// sequences with a proximal bound on every step.
//
// The formulas and their papers are in `ops::PreferenceKind`, `ops::KtoLoss` and `ops::PrdpLoss`.
//
// | operand               | shape        | dtype    | layout                              |
// |-----------------------|--------------|----------|-------------------------------------|
// | log-probs, references | [P], [T]     | f32, f64 | any stride                          |
// | rewards, gradients    | [P], [T]     | f32, f64 | any stride                          |
// | lengths, cu_seqlens   | [P], [B + 1] | i64      | any stride                          |
// | desirable, mask       | [B], [T]     | u8       | any stride                          |
// | pairs                 | [P, 2]       | i64      | any row stride; NaN if out of range |
// | weight, loss, total   | [P], [1]     | R, f64   | see `terms.cuh`                     |
//
// Mapping: preference and KTO one thread per term, one launch. PRDP: one block per sequence for the
// sums, the last of which turns pairs into losses; then one block per sequence gathers the slopes
// of its pairs and puts them on its tokens; two launches.
// Traffic: O(P) elements; PRDP reads O(T + B·P).
// Numerics: f64, rounded once; no atomics on floats: a sequence gathers from its pairs in a tree
// that depends on P, instead of pairs scattering to sequences.
#include "terms.cuh"
#include "pair_loss.h"

// ---- preference ---------------------------------------------------------------------------------

// A value and its derivatives by the chosen and the rejected score.
struct PairTerm {
    double value, chosen, rejected;
};

struct Jet {
    double value, slope;
};

static constexpr double EXPONENT_CAP = 80.0;
static constexpr double CERTAIN = -1e-7;

__device__ __forceinline__ Jet score_of(int kind, double alpha, double a) {
    if (kind == SCORE_REVERSE_KL) return {a, 1.0};
    if (kind == SCORE_JENSEN_SHANNON) return {0.6931471805599453 + log_sigmoid(a), sigmoid(-a)};
    const double power = alpha - 1.0, exponent = power * a;
    if (power == 0.0) return {a, 1.0};
    if (exponent > EXPONENT_CAP) return {expm1(EXPONENT_CAP) / power, 0.0};
    return {expm1(exponent) / power, exp(exponent)};
}

__device__ __forceinline__ Jet odds(double x) {
    const double capped = at_most(x, CERTAIN), rest = -expm1(capped);
    return {capped - log(rest), x > CERTAIN ? 0.0 : 1.0 / rest};
}

__device__ __forceinline__ Jet robust(double d, double e) {
    const double value = e * log_sigmoid(-d) - (1.0 - e) * log_sigmoid(d),
                 slope = -(1.0 - e) * sigmoid(-d) - e * sigmoid(d);
    return {value / (1.0 - 2.0 * e), slope / (1.0 - 2.0 * e)};
}

__device__ __forceinline__ Jet exo(double d, double e) {
    const double up = sigmoid(d), down = sigmoid(-d), keep = log1p(-e), flip = log(e);
    return {up * (log_sigmoid(d) - keep) + down * (log_sigmoid(-d) - flip),
            up * down * (d - keep + flip)};
}

__device__ __forceinline__ Jet discopop(double d, double temperature) {
    const double keep = sigmoid(-d / temperature), mix = sigmoid(d / temperature);
    // m·e^-d through the logarithm: e^-d alone overflows where m vanishes faster.
    const double mixed = exp(log_sigmoid(d / temperature) - d),
                 moved = keep * (mixed + mix * log_sigmoid(d)) / temperature;
    return {mixed - keep * log_sigmoid(d), moved - mixed - keep * sigmoid(-d)};
}

// Losses of the margin d alone.
__device__ __forceinline__ Jet of_margin(Kind kind, double d, double x, double y) {
    if (kind == KIND_ROBUST) return robust(d, x);
    if (kind == KIND_EXO) return exo(d, x);
    if (kind == KIND_DISCOPOP) return discopop(d, x);
    if (kind == KIND_HINGE)
        return {at_least(1.0 - d, 0.0), d != d ? d : 1.0 - d > 0.0 ? -1.0 : 0.0};
    const double z = d - y;  // KIND_SIGMOID
    return {-(1.0 - x) * log_sigmoid(z) - x * log_sigmoid(-z),
            x * sigmoid(z) - (1.0 - x) * sigmoid(-z)};
}

template <class R>
__device__ __forceinline__ PairTerm pair_term(const PreferenceParams<R>& p, double w, double l) {
    const double beta = p.beta, r_w = beta * w, r_l = beta * l, half = 0.5 / beta;
    switch (p.kind) {
        case KIND_IPO: {
            const double gap = w - l - half;
            return {gap * gap, 2.0 * gap, -2.0 * gap};
        }
        case KIND_SPPO_HARD: {
            const double up = w - half, down = l + half;
            return {up * up + down * down, 2.0 * up, 2.0 * down};
        }
        case KIND_ORPO: {
            const Jet a = odds(w), b = odds(l);
            const double ratio = a.value - b.value, slope = -beta * sigmoid(-ratio);
            return {-beta * log_sigmoid(ratio), slope * a.slope, -slope * b.slope};
        }
        case KIND_NCA:
            return {-log_sigmoid(r_w) - 0.5 * log_sigmoid(-r_w) - 0.5 * log_sigmoid(-r_l),
                    beta * (0.5 * sigmoid(r_w) - sigmoid(-r_w)), beta * 0.5 * sigmoid(r_l)};
        case KIND_BCO: {
            const double up = r_w - p.x, down = r_l - p.x;
            return {-log_sigmoid(up) - log_sigmoid(-down), -beta * sigmoid(-up),
                    beta * sigmoid(down)};
        }
        case KIND_APO_ZERO:
            return {sigmoid(-r_w) + sigmoid(r_l), -beta * bell(r_w), beta * bell(r_l)};
        case KIND_APO_DOWN: {
            const double margin = r_w - r_l, slope = beta * bell(margin);
            return {sigmoid(r_w) + sigmoid(-margin), beta * bell(r_w) - slope, slope};
        }
        case KIND_SIGMOID:
        case KIND_HINGE:
        case KIND_ROBUST:
        case KIND_EXO:
        case KIND_DISCOPOP: {
            const Jet j = of_margin(p.kind, r_w - r_l, p.x, p.y);
            return {j.value, beta * j.slope, -beta * j.slope};
        }
    }
    // A loss without a formula above.
    ptx_trap();
    return {NAN_F64, NAN_F64, NAN_F64};
}

template <class R> __device__ __forceinline__ void preference(const PreferenceParams<R>& p) {
    check_enum(p.kind, KIND_ORPO);
    check_enum(p.score, SCORE_ALPHA);
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    double total = 0.0;
    if (i < p.terms.count) {
        double share[2], logp[2];
        Jet s[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const i64 n = p.length[k].get_or(i, 1);
            share[k] = n > 0 ? 1.0 / (double)n : 0.0;
            const double x = wide(p.logp[k], i);
            logp[k] = x * share[k];
            s[k] = score_of(p.score, p.alpha, (x - wide_or(p.reference[k], i, 0.0)) * share[k]);
            p.reward[k].set(i, from_f64<R>(p.beta * s[k].value));
        }
        const PairTerm t = pair_term(p, s[0].value, s[1].value);
        const double value = t.value - p.likelihood * logp[0], weight = p.terms.weigh(i);
        p.terms.loss.set(i, from_f64<R>(value));
        p.d_logp[0].set(i,
                        from_f64<R>(weight * ((t.chosen * s[0].slope - p.likelihood) * share[0])));
        p.d_logp[1].set(i, from_f64<R>(weight * t.rejected * s[1].slope * share[1]));
        total = weight * value;
    }
    p.terms.template finish<THREADS>(total);
}

// ---- KTO ----------------------------------------------------------------------------------------

template <class R> __device__ __forceinline__ void kto(const KtoParams<R>& p) {
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    double total = 0.0;
    if (i < p.terms.count) {
        const bool good = p.desirable.get(i) != 0;
        const double sign = good ? 1.0 : -1.0,
                     lambda = good ? p.desirable_weight : p.undesirable_weight;
        const double z = sign * p.beta * (wide(p.logp, i) - wide(p.reference, i) - p.kl);
        const double weight = p.terms.weigh(i), value = lambda * sigmoid(-z);
        p.terms.loss.set(i, from_f64<R>(value));
        p.d_logp.set(i, from_f64<R>(weight * (-lambda * sign * p.beta * bell(z))));
        total = weight * value;
    }
    p.terms.template finish<THREADS>(total);
}

// ---- PRDP ---------------------------------------------------------------------------------------

// A pair's distances from its target: free, and with every step inside the bound.
struct Gap {
    i64 i, j;
    double free, bounded;
    bool valid;
};

template <class R> __device__ __forceinline__ Gap gap(const PrdpParams<R>& p, i64 pair) {
    const i64 i = p.pairs[pair * p.pair_stride], j = p.pairs[pair * p.pair_stride + 1];
    if (i < 0 || j < 0 || i >= p.sequences || j >= p.sequences || i == j)
        return {-1, -1, 0.0, 0.0, false};
    const double target = (wide(p.reward, i) - wide(p.reward, j)) / p.beta;
    return {i, j, p.free_sums[i] - p.free_sums[j] - target,
            p.bounded_sums[i] - p.bounded_sums[j] - target, true};
}

template <class R> __device__ __forceinline__ void prdp(const PrdpParams<R>& p) {
    __shared__ double warps[THREADS / WARP];
    const i64 b = blockIdx.x;
    const Span own = span(p.cu_seqlens, b, p.tokens);
    double free = 0.0, inside = 0.0;
    for (i64 t = own.begin + threadIdx.x; t < own.end; t += THREADS) {
        if (p.mask.get_or(t, 1) == 0) continue;
        const double logp = wide(p.logp, t), old = wide(p.old, t), reference = wide(p.reference, t),
                     step = logp - old;
        // Inside the bound logp itself, so that the two sums then agree to the bit.
        const double bounded = step != step           ? step
                               : fabs(step) <= p.clip ? logp
                                                      : old + copysign(p.clip, step);
        free += logp - reference;
        inside += bounded - reference;
    }
    free = block_reduce<THREADS>(free, 0.0, Sum(), warps);
    inside = block_reduce<THREADS>(inside, 0.0, Sum(), warps);
    if (threadIdx.x == 0) p.free_sums[b] = free, p.bounded_sums[b] = inside;
    if (!last_block(p.terms.ticket, p.sequences)) return;
    double total = 0.0;
    for (i64 k = threadIdx.x; k < p.terms.count; k += THREADS) {
        const Gap g = gap(p, k);
        // `bounded` is NaN wherever `free` is.
        const double square = g.bounded * g.bounded;
        const double loss =
            !g.valid || square != square ? NAN_F64 : at_least(g.free * g.free, square);
        p.terms.loss.set(k, from_f64<R>(loss));
        total += p.terms.weigh(k) * loss;
    }
    total = block_reduce<THREADS>(total, 0.0, Sum(), warps);
    if (threadIdx.x == 0 && p.terms.total) *p.terms.total = total;
}

template <class R> __device__ __forceinline__ void prdp_grad(const PrdpParams<R>& p) {
    __shared__ double warps[THREADS / WARP];
    const i64 b = blockIdx.x;
    double all = 0.0, inside = 0.0;
    for (i64 k = threadIdx.x; k < p.terms.count; k += THREADS) {
        const Gap g = gap(p, k);
        if (!g.valid || (g.i != b && g.j != b)) continue;
        const double weight = 2.0 * p.terms.weigh(k) * (g.i == b ? 1.0 : -1.0);
        if (g.bounded != g.bounded) all += g.bounded;
        else if (g.free * g.free >= g.bounded * g.bounded) all += weight * g.free;
        else inside += weight * g.bounded;
    }
    all = block_reduce<THREADS>(all, 0.0, Sum(), warps);
    inside = block_reduce<THREADS>(inside, 0.0, Sum(), warps);
    const Span own = span(p.cu_seqlens, b, p.tokens);
    for (i64 t = own.begin + threadIdx.x; t < own.end; t += THREADS) {
        double slope = 0.0;
        if (p.mask.get_or(t, 1) != 0) {
            const bool within = fabs(wide(p.logp, t) - wide(p.old, t)) <= p.clip;
            slope = all + (within ? inside : 0.0);
        }
        p.d_logp.set(t, from_f64<R>(slope));
    }
}

KERNEL(preference_f32, (THREADS), PreferenceParams<float>) { preference(p); }
KERNEL(preference_f64, (THREADS), PreferenceParams<double>) { preference(p); }
KERNEL(kto_f32, (THREADS), KtoParams<float>) { kto(p); }
KERNEL(kto_f64, (THREADS), KtoParams<double>) { kto(p); }
KERNEL(prdp_f32, (THREADS), PrdpParams<float>) { prdp(p); }
KERNEL(prdp_f64, (THREADS), PrdpParams<double>) { prdp(p); }
KERNEL(prdp_grad_f32, (THREADS), PrdpParams<float>) { prdp_grad(p); }
KERNEL(prdp_grad_f64, (THREADS), PrdpParams<double>) { prdp_grad(p); }
