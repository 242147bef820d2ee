//! The surrogates and the KL estimators, one token at a time: a value, and its derivative split
//! into the part that flows through the ratio and the part that flows through ℓ itself. The split
//! is what lets one formula serve token ratios and sequence ratios.

use crate::ops::policy::policy_loss::{Kl, KlEstimator, KlGradient, KlWeight, Loss};
use crate::ops::support::math::{at_most, sigmoid, within};

/// A value with its derivatives.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Term {
    pub value: f64,
    /// ∂value/∂(log ratio).
    pub by_ratio: f64,
    /// ∂value/∂ℓ at a fixed ratio.
    pub by_logp: f64,
}

/// Which bound took the gradient away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Clipped {
    #[default]
    No,
    Low,
    High,
    Dual,
}

/// What a surrogate sees of a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub advantage: f64,
    /// ℓ.
    pub logp: f64,
    /// ℓ of the ratio's denominator.
    pub base: f64,
    /// Log-ratio at the settings' level, clamped.
    pub log_ratio: f64,
    /// exp of it.
    pub ratio: f64,
    /// Center of the clip interval.
    pub center: f64,
    /// VESPO's log φ for A >= 0 and A < 0.
    pub log_phi: (f64, f64),
    /// KL-Cov's mark.
    pub selected: bool,
}

#[inline]
pub(super) fn surrogate(loss: &Loss, t: &Token) -> (Term, Clipped) {
    let (a, r) = (t.advantage, t.ratio);
    let plain =
        |value: f64, by_ratio: f64, by_logp: f64| (Term { value, by_ratio, by_logp }, Clipped::No);
    match *loss {
        Loss::CrossEntropy => plain(-t.logp, 0.0, poisoned(-1.0, t.logp)),
        Loss::Reinforce => plain(-a * t.logp, 0.0, poisoned(-a, t.logp)),
        Loss::PpoClip { lo, hi, dual } => {
            ppo(a, r, t.center + (lo - 1.0), t.center + (hi - 1.0), dual)
        }
        Loss::Cispo { lo, hi } => {
            let w = within(r, lo, hi);
            let clipped = if r > hi && a > 0.0 {
                Clipped::High
            } else if r < lo && a < 0.0 {
                Clipped::Low
            } else {
                Clipped::No
            };
            (Term { value: -w * a * t.logp, by_ratio: 0.0, by_logp: -w * a }, clipped)
        }
        Loss::Sapo { tau_pos, tau_neg } => {
            let tau = if a > 0.0 { tau_pos } else { tau_neg };
            let s = sigmoid(tau * (r - 1.0));
            plain(-a * 4.0 / tau * s, -4.0 * s * (1.0 - s) * r * a, 0.0)
        }
        Loss::Vespo { .. } => {
            let phi = if a >= 0.0 { t.log_phi.0 } else { t.log_phi.1 }.exp();
            // As published, a weight that overflows counts 0; NaN stays NaN.
            let phi = if phi == f64::INFINITY { 0.0 } else { phi };
            plain(-phi * a * t.logp, 0.0, poisoned(-phi * a, t.logp))
        }
        // The sequence pass sets `ratio` to the clipped geometric mean.
        Loss::Gmpo { .. } => plain(-r * a, -r * a, 0.0),
        Loss::Dro { beta } => {
            let d = t.log_ratio;
            plain(-(a * t.logp - 0.5 * beta * d * d), beta * d, -a)
        }
        Loss::DppoTv { lo, hi, cap } => trust_region(a, r, t.logp, cap, tv_keeps(t, lo, hi)),
        Loss::DppoKl { lo, hi, cap } => trust_region(a, r, t.logp, cap, kl_keeps(t, lo, hi)),
        Loss::Prime { lo, hi, kappa } => {
            let (keep, d) = (tv_keeps(t, lo, hi) as u8 as f64, t.log_ratio);
            plain(-keep * a * r + kappa * d * d, -keep * a * r + 2.0 * kappa * d, 0.0)
        }
        Loss::KlCov { kappa } => {
            let d = if t.selected { t.log_ratio } else { 0.0 };
            let slope = if d == 0.0 { 0.0 } else { kappa * d.signum() };
            plain(-r * a + kappa * d.abs(), -r * a + slope, 0.0)
        }
    }
}

/// A constant slope, or NaN where what it belongs to is NaN: such a token must not move the model.
fn poisoned(slope: f64, by: f64) -> f64 {
    if by.is_nan() { by } else { slope }
}

/// −min(min(r, dual)·A, clip(r)·A). The gradient is −r·A where neither bound holds it: for A > 0
/// up to hi, for A < 0 down to lo and up to dual.
fn ppo(a: f64, r: f64, lo: f64, hi: f64, dual: f64) -> (Term, Clipped) {
    let clipped = if a > 0.0 && r > hi {
        Clipped::High
    } else if a < 0.0 && r < lo {
        Clipped::Low
    } else if a < 0.0 && r > dual {
        Clipped::Dual
    } else {
        Clipped::No
    };
    let (free, bounded) = (at_most(r, dual) * a, within(r, lo, hi) * a);
    // `bounded` alone may be NaN, where the center is.
    let value = -if bounded.is_nan() { bounded } else { at_most(free, bounded) };
    let by_ratio = if clipped == Clipped::No { poisoned(-r * a, value) } else { 0.0 };
    (Term { value, by_ratio, by_logp: 0.0 }, clipped)
}

fn trust_region(a: f64, r: f64, logp: f64, cap: f64, keep: bool) -> (Term, Clipped) {
    // Whether NaN is inside the region is unknown, so the term becomes NaN.
    if !keep && !r.is_nan() && !a.is_nan() {
        let side = if a > 0.0 { Clipped::High } else { Clipped::Low };
        return (Term::default(), side);
    }
    let w = at_most(r, cap);
    (Term { value: -a * w * logp, by_ratio: 0.0, by_logp: -a * w }, Clipped::No)
}

/// π − π_base stays within bounds on the side the advantage pushes to.
fn tv_keeps(t: &Token, lo: f64, hi: f64) -> bool {
    let rise = t.logp.exp() - t.base.exp();
    if t.advantage > 0.0 { rise <= hi } else { rise >= -lo }
}

/// KL(Bernoulli(π_base) ‖ Bernoulli(π)) stays within bounds on the side the advantage pushes to.
fn kl_keeps(t: &Token, lo: f64, hi: f64) -> bool {
    const EPS: f64 = 1e-8;
    let (p, q) = (t.logp.exp(), t.base.exp());
    let kl = q * (t.base - t.logp) + (1.0 - q) * ((1.0 - q + EPS) / (1.0 - p + EPS)).ln();
    if t.advantage > 0.0 { kl <= hi || p <= q } else { kl <= lo || p >= q }
}

/// Estimator against one anchor: value and ∂/∂ℓ, k = ℓ_ref − ℓ.
#[inline]
fn estimate(kl: &Kl, logp: f64, anchor: f64) -> (f64, f64) {
    let exact = anchor - logp;
    let k = within(exact, -kl.clamp_in, kl.clamp_in);
    let inside = k == exact;
    let (value, slope) = match kl.estimator {
        KlEstimator::K1 => (-k, 1.0),
        KlEstimator::K2 => (0.5 * k * k, -k),
        KlEstimator::K3 => {
            let rise = k.exp_m1();
            (rise - k, -rise)
        }
        KlEstimator::Abs => (k.abs(), if k == 0.0 { 0.0 } else { -k.signum() }),
    };
    let bounded = within(value, -kl.clamp_out, kl.clamp_out);
    let slope = match kl.gradient {
        KlGradient::None => 0.0,
        KlGradient::K2 => -exact,
        KlGradient::Same if exact.is_nan() => exact,
        KlGradient::Same if inside && bounded == value => slope,
        KlGradient::Same => 0.0,
    };
    (bounded, slope)
}

/// β·weight·KL of one token.
#[inline]
pub(super) fn penalty(kl: &Kl, logp: f64, anchor: f64, second: Option<f64>, ratio: f64) -> Term {
    let (mut value, mut slope) = estimate(kl, logp, anchor);
    if let Some(second) = second.filter(|_| kl.mix < 1.0) {
        let (v2, s2) = estimate(kl, logp, second);
        value = kl.mix * value + (1.0 - kl.mix) * v2;
        slope = kl.mix * slope + (1.0 - kl.mix) * s2;
    }
    let (weight, through) = match kl.weight {
        KlWeight::One => (1.0, 0.0),
        KlWeight::Ratio => (ratio, ratio * value),
        KlWeight::RatioDetached => (ratio, 0.0),
    };
    Term {
        value: kl.coef * weight * value,
        by_ratio: kl.coef * through,
        by_logp: kl.coef * weight * slope,
    }
}
