//! Preference losses: value and slopes of each published form, then the chain to log-probs.

use crate::alloc::{self, Grow};
use crate::dtype::Real;
use crate::ops::policy::pair_loss::preference_loss::{
    Pair, PreferenceKind, PreferenceLoss, PreferenceScore,
};
use crate::ops::policy::pair_loss::terms_cpu::{store_losses, weight_of};
use crate::ops::support::math::{exp, sigmoid};
use crate::view::View;

/// Largest exponent of a score.
const EXPONENT_CAP: f64 = 80.0;
/// Largest mean log-prob whose odds are taken.
const CERTAIN: f64 = -1e-7;

/// A value and its derivative.
type ValueAndSlope = (f64, f64);

pub(crate) fn preference_loss<R: Real>(a: PreferenceLoss<'_, R>) {
    let pairs = a.logp.chosen.extent(0);
    let (mut dlogp, mut reward) = (a.dlogp, a.reward);
    let mut losses = alloc::room(pairs);
    for p in 0..pairs {
        let (reference, length) = (a.reference.as_ref(), a.length.as_ref());
        let w =
            Scored::at(p, &a.logp.chosen, reference.map(|r| &r.chosen), length.map(|l| &l.chosen));
        let l = Scored::at(
            p,
            &a.logp.rejected,
            reference.map(|r| &r.rejected),
            length.map(|l| &l.rejected),
        );
        let ((score_w, slope_w), (score_l, slope_l)) =
            (score(a.score, w.ratio), score(a.score, l.ratio));
        let (value, slopes) = pair(a.kind, a.beta, score_w, score_l);
        losses.put(value - a.likelihood * w.logp);
        let weight = weight_of(&a.weight, p, pairs);
        let chosen = (slopes.chosen * slope_w - a.likelihood) * w.inverse_length;
        dlogp.chosen.set(p, R::from_f64(weight * chosen));
        dlogp.rejected.set(p, R::from_f64(weight * slopes.rejected * slope_l * l.inverse_length));
        if let Some(reward) = &mut reward {
            reward.chosen.set(p, R::from_f64(a.beta * score_w));
            reward.rejected.set(p, R::from_f64(a.beta * score_l));
        }
    }
    store_losses(losses.into_iter(), &a.weight, a.loss, a.total);
}

/// One sequence of a pair: log-prob and log-ratio, both times `inverse_length` (1 or 1 / length).
struct Scored {
    logp: f64,
    ratio: f64,
    inverse_length: f64,
}

impl Scored {
    fn at<R: Real>(
        p: usize,
        logp: &View<'_, R>,
        reference: Option<&View<'_, R>>,
        length: Option<&View<'_, i64>>,
    ) -> Scored {
        let inverse_length = match length.map(|l| l.at(p)) {
            None => 1.0,
            Some(0) => 0.0,
            Some(n) => 1.0 / n as f64,
        };
        let logp = logp.at(p).to_f64();
        let reference = reference.map_or(0.0, |r| r.at(p).to_f64());
        Scored {
            logp: logp * inverse_length,
            ratio: (logp - reference) * inverse_length,
            inverse_length,
        }
    }
}

/// Score of a log-ratio.
fn score(kind: PreferenceScore, a: f64) -> ValueAndSlope {
    let alpha = match kind {
        PreferenceScore::ReverseKl => return (a, 1.0),
        PreferenceScore::JensenShannon => {
            return (std::f64::consts::LN_2 + log_sigmoid(a), sigmoid(-a));
        }
        PreferenceScore::ForwardKl => 0.0,
        PreferenceScore::Alpha(alpha) => alpha,
    };
    let power = alpha - 1.0;
    let exponent = power * a;
    if power == 0.0 {
        (a, 1.0)
    } else if exponent > EXPONENT_CAP {
        (EXPONENT_CAP.exp_m1() / power, 0.0)
    } else {
        (exponent.exp_m1() / power, exp(exponent))
    }
}

/// Loss of a pair of scores and its derivatives with respect to them.
fn pair(kind: PreferenceKind, beta: f64, w: f64, l: f64) -> (f64, Pair<f64>) {
    let (r_w, r_l) = (beta * w, beta * l);
    let half = 0.5 / beta;
    let of_margin = |(value, slope): ValueAndSlope| {
        (value, Pair { chosen: beta * slope, rejected: -beta * slope })
    };
    match kind {
        PreferenceKind::Ipo => {
            let gap = w - l - half;
            (gap * gap, Pair { chosen: 2.0 * gap, rejected: -2.0 * gap })
        }
        PreferenceKind::SppoHard => {
            let (up, down) = (w - half, l + half);
            (up * up + down * down, Pair { chosen: 2.0 * up, rejected: 2.0 * down })
        }
        PreferenceKind::Orpo => orpo(beta, w, l),
        PreferenceKind::Nca => {
            let value = -log_sigmoid(r_w) - 0.5 * log_sigmoid(-r_w) - 0.5 * log_sigmoid(-r_l);
            let chosen = beta * (0.5 * sigmoid(r_w) - sigmoid(-r_w));
            (value, Pair { chosen, rejected: beta * 0.5 * sigmoid(r_l) })
        }
        PreferenceKind::Bco { reference_point } => {
            let (up, down) = (r_w - reference_point, r_l - reference_point);
            let slopes = Pair { chosen: -beta * sigmoid(-up), rejected: beta * sigmoid(down) };
            (-log_sigmoid(up) - log_sigmoid(-down), slopes)
        }
        PreferenceKind::ApoZero => {
            let slopes = Pair { chosen: -beta * bell(r_w), rejected: beta * bell(r_l) };
            (sigmoid(-r_w) + sigmoid(r_l), slopes)
        }
        PreferenceKind::ApoDown => {
            let margin = r_w - r_l;
            let slope = beta * bell(margin);
            let slopes = Pair { chosen: beta * bell(r_w) - slope, rejected: slope };
            (sigmoid(r_w) + sigmoid(-margin), slopes)
        }
        PreferenceKind::Sigmoid { label_smoothing: e, margin } => {
            let z = r_w - r_l - margin;
            let value = -(1.0 - e) * log_sigmoid(z) - e * log_sigmoid(-z);
            of_margin((value, e * sigmoid(z) - (1.0 - e) * sigmoid(-z)))
        }
        PreferenceKind::Hinge => {
            let short = 1.0 - (r_w - r_l);
            of_margin((short.max(0.0), if short > 0.0 { -1.0 } else { 0.0 }))
        }
        PreferenceKind::Robust { label_smoothing } => of_margin(robust(r_w - r_l, label_smoothing)),
        PreferenceKind::Exo { label_smoothing } => of_margin(exo(r_w - r_l, label_smoothing)),
        PreferenceKind::Discopop { temperature } => of_margin(discopop(r_w - r_l, temperature)),
    }
}

fn robust(d: f64, e: f64) -> ValueAndSlope {
    let value = e * log_sigmoid(-d) - (1.0 - e) * log_sigmoid(d);
    let slope = -(1.0 - e) * sigmoid(-d) - e * sigmoid(d);
    (value / (1.0 - 2.0 * e), slope / (1.0 - 2.0 * e))
}

fn exo(d: f64, e: f64) -> ValueAndSlope {
    let (up, down) = (sigmoid(d), sigmoid(-d));
    let (log_keep, log_flip) = ((-e).ln_1p(), e.ln());
    let value = up * (log_sigmoid(d) - log_keep) + down * (log_sigmoid(-d) - log_flip);
    (value, up * down * (d - log_keep + log_flip))
}

fn discopop(d: f64, temperature: f64) -> ValueAndSlope {
    let (keep, mix) = (sigmoid(-d / temperature), sigmoid(d / temperature));
    // m·e^−Δ through the logarithm: e^−Δ alone overflows where m vanishes faster.
    let mixed = exp(log_sigmoid(d / temperature) - d);
    let value = mixed - keep * log_sigmoid(d);
    let moved = keep * (mixed + mix * log_sigmoid(d)) / temperature;
    (value, moved - mixed - keep * sigmoid(-d))
}

fn orpo(beta: f64, w: f64, l: f64) -> (f64, Pair<f64>) {
    let odds = |x: f64| -> ValueAndSlope {
        let capped = x.min(CERTAIN);
        let slope = if x > CERTAIN { 0.0 } else { -1.0 / capped.exp_m1() };
        (capped - (-capped.exp_m1()).ln(), slope)
    };
    let ((odds_w, slope_w), (odds_l, slope_l)) = (odds(w), odds(l));
    let ratio = odds_w - odds_l;
    let slope = -beta * sigmoid(-ratio);
    (-beta * log_sigmoid(ratio), Pair { chosen: slope * slope_w, rejected: -slope * slope_l })
}

/// log σ(x) without overflow or cancellation.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - exp(-x.abs()).ln_1p()
}

/// σ'(x) = σ(x)·σ(−x).
pub(in crate::ops::policy::pair_loss) fn bell(x: f64) -> f64 {
    sigmoid(x) * sigmoid(-x)
}
