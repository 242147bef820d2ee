// The surrogates and the KL estimators of policy_loss, one token at a time: a value, and its
// derivative split into the part that flows through the ratio and the part that flows through logp
// itself. The split is what lets one formula serve token ratios and sequence ratios.
#pragma once

#include "terms.cuh"
#include "policy_loss.h"

enum Clipped { CLIPPED_NO, CLIPPED_LOW, CLIPPED_HIGH, CLIPPED_DUAL };

struct Term {
    double value, by_ratio, by_logp;
    int clipped;
};

struct Token {
    double advantage, logp, base, log_ratio, ratio, center;
    double phi;  // VESPO's weight
    bool selected;
};

// A constant slope, or NaN where what it belongs to is NaN: such a token must not move the model.
__device__ __forceinline__ double poisoned(double slope, double by) {
    return by != by ? by : slope;
}

__device__ __forceinline__ double sign(double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x; }

// -min(min(r, dual)·A, clip(r)·A). The gradient is -r·A where neither bound holds it: for A > 0 up
// to hi, for A < 0 down to lo and up to dual.
__device__ __forceinline__ Term ppo(double a, double r, double lo, double hi, double dual) {
    const int clipped = a > 0.0 && r > hi     ? CLIPPED_HIGH
                        : a < 0.0 && r < lo   ? CLIPPED_LOW
                        : a < 0.0 && r > dual ? CLIPPED_DUAL
                                              : CLIPPED_NO;
    // `bounded` alone may be NaN, where the center is; comparisons with a NaN bound bound nothing.
    const double free = at_most(r, dual) * a, bounded = (lo != lo ? lo : clamp(r, lo, hi)) * a;
    const double value = -(bounded != bounded ? bounded : at_most(free, bounded));
    return {value, clipped == CLIPPED_NO ? poisoned(-r * a, value) : 0.0, 0.0, clipped};
}

// pi - pi_base stays within bounds on the side the advantage pushes to.
__device__ __forceinline__ bool tv_keeps(const Token& t, double lo, double hi) {
    const double rise = exp(t.logp) - exp(t.base);
    return t.advantage > 0.0 ? rise <= hi : rise >= -lo;
}

// The same with KL(Bernoulli(pi_base) || Bernoulli(pi)).
__device__ __forceinline__ bool kl_keeps(const Token& t, double lo, double hi) {
    const double eps = 1e-8, p = exp(t.logp), q = exp(t.base);
    const double kl = q * (t.base - t.logp) + (1.0 - q) * log((1.0 - q + eps) / (1.0 - p + eps));
    return t.advantage > 0.0 ? kl <= hi || p <= q : kl <= lo || p >= q;
}

__device__ __forceinline__ Term trust_region(double a, double r, double logp, double cap,
                                             bool keep) {
    // Whether NaN is inside the region is unknown, so NaN is what becomes of it.
    if (!keep && r == r && a == a) return {0.0, 0.0, 0.0, a > 0.0 ? CLIPPED_HIGH : CLIPPED_LOW};
    const double w = at_most(r, cap);
    return {-a * w * logp, 0.0, -a * w, CLIPPED_NO};
}

__device__ __forceinline__ Term surrogate(const PolicySettings& s, const Token& t) {
    const double a = t.advantage, r = t.ratio, d = t.log_ratio, *x = s.x;
    switch (s.loss) {
        case LOSS_CROSS_ENTROPY:
            return {-t.logp, 0.0, poisoned(-1.0, t.logp), CLIPPED_NO};
        case LOSS_REINFORCE:
            return {-a * t.logp, 0.0, poisoned(-a, t.logp), CLIPPED_NO};
        case LOSS_PPO_CLIP:
            return ppo(a, r, t.center + (x[0] - 1.0), t.center + (x[1] - 1.0), x[2]);
        case LOSS_CISPO: {
            const double w = clamp(r, x[0], x[1]);
            const int clipped = r > x[1] && a > 0.0   ? CLIPPED_HIGH
                                : r < x[0] && a < 0.0 ? CLIPPED_LOW
                                                      : CLIPPED_NO;
            return {-w * a * t.logp, 0.0, -w * a, clipped};
        }
        case LOSS_SAPO: {
            const double tau = a > 0.0 ? x[0] : x[1], g = sigmoid(tau * (r - 1.0));
            return {-a * 4.0 / tau * g, -4.0 * g * (1.0 - g) * r * a, 0.0, CLIPPED_NO};
        }
        case LOSS_VESPO:
            return {-t.phi * a * t.logp, 0.0, poisoned(-t.phi * a, t.logp), CLIPPED_NO};
        case LOSS_GMPO:
            return {-r * a, -r * a, 0.0, CLIPPED_NO};
        case LOSS_DRO:
            return {-(a * t.logp - 0.5 * x[0] * d * d), x[0] * d, -a, CLIPPED_NO};
        case LOSS_DPPO_TV:
            return trust_region(a, r, t.logp, x[2], tv_keeps(t, x[0], x[1]));
        case LOSS_DPPO_KL:
            return trust_region(a, r, t.logp, x[2], kl_keeps(t, x[0], x[1]));
        case LOSS_PRIME: {
            const double keep = tv_keeps(t, x[0], x[1]) ? 1.0 : 0.0;
            return {-keep * a * r + x[2] * d * d, -keep * a * r + 2.0 * x[2] * d, 0.0, CLIPPED_NO};
        }
        case LOSS_KL_COV: {
            const double e = t.selected ? d : 0.0;
            return {-r * a + x[0] * fabs(e), -r * a + (e == 0.0 ? 0.0 : x[0] * sign(e)), 0.0,
                    CLIPPED_NO};
        }
    }
    // A loss without a formula above.
    ptx_trap();
    return {NAN_F64, NAN_F64, NAN_F64, CLIPPED_NO};
}

// Estimator against one anchor, k = anchor - logp: value, and its derivative by logp in *slope.
__device__ __forceinline__ double estimate(const PolicySettings& s, double logp, double anchor,
                                           double* slope) {
    const double exact = anchor - logp, k = clamp(exact, -s.kl_clamp_in, s.kl_clamp_in);
    double value, by_logp;
    if (s.kl_estimator == KL_ESTIMATOR_K1) value = -k, by_logp = 1.0;
    else if (s.kl_estimator == KL_ESTIMATOR_K2) value = 0.5 * k * k, by_logp = -k;
    else if (s.kl_estimator == KL_ESTIMATOR_K3) by_logp = -expm1(k), value = -by_logp - k;
    else value = fabs(k), by_logp = k == 0.0 ? 0.0 : -sign(k);
    const double bounded = clamp(value, -s.kl_clamp_out, s.kl_clamp_out);
    if (s.kl_gradient == KL_GRADIENT_NONE) *slope = 0.0;
    else if (s.kl_gradient == KL_GRADIENT_K2) *slope = -exact;
    else if (exact != exact) *slope = exact;
    else *slope = k == exact && bounded == value ? by_logp : 0.0;
    return bounded;
}

// coef·weight·KL of one token; `second` is null or the second anchor.
__device__ __forceinline__ Term penalty(const PolicySettings& s, const Token& t, double anchor,
                                        const double* second) {
    double slope, value = estimate(s, t.logp, anchor, &slope);
    if (second && s.kl_mix < 1.0) {
        double slope2;
        const double value2 = estimate(s, t.logp, *second, &slope2);
        value = s.kl_mix * value + (1.0 - s.kl_mix) * value2;
        slope = s.kl_mix * slope + (1.0 - s.kl_mix) * slope2;
    }
    const double weight = s.kl_weight == KL_WEIGHT_ONE ? 1.0 : t.ratio;
    const double through = s.kl_weight == KL_WEIGHT_RATIO ? t.ratio * value : 0.0;
    return {s.kl_coef * weight * value, s.kl_coef * through, s.kl_coef * weight * slope,
            CLIPPED_NO};
}
