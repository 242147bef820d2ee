//! Token-level advantages on the CPU: f64, sequential in a sequence, parallel over sequences.

use crate::alloc::{self, Gather, Grow};
use crate::check::Check;
use crate::device::parallel;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::gae::{
    DiscountedReturn, Gae, KlReward, MaskedReturn, RewardKl, Whiten, WhitenStats, is_action,
};
use crate::ops::policy::group_advantage::cpu::Moments;
use crate::view::{View, ViewMut};

/// Rough scalar operations per token.
const WORK: usize = 8;

pub(crate) fn gae<R: Real>(a: Gae<'_, R>) -> Result<()> {
    let check = Check("gae");
    let (gamma, decay) = (a.gamma, a.gamma * a.lambda);
    let advantage = per_sequence(&a.cu_seqlens, |i, start, out| {
        let mut next_value = a.bootstrap.as_ref().map_or(0.0, |b| b.at(i).to_f64());
        let mut running = 0.0;
        for (j, out) in out.iter_mut().enumerate().rev() {
            if !is_action(&a.mask, start + j) {
                continue;
            }
            let value = a.value.at(start + j).to_f64();
            let delta = a.reward.at(start + j).to_f64() + gamma * next_value - value;
            running = delta + decay * running;
            next_value = value;
            *out = running;
        }
    });
    check.in_range::<R>("advantage", advantage.iter().copied())?;
    if let Some(mut returns) = a.returns {
        let target = |t: usize| {
            let used = is_action(&a.mask, t);
            if used { advantage[t] + a.value.at(t).to_f64() } else { 0.0 }
        };
        check.in_range::<R>("returns", (0..advantage.len()).map(target))?;
        (0..advantage.len()).for_each(|t| returns.set(t, R::from_f64(target(t))));
    }
    store(a.advantage, &advantage);
    Ok(())
}

pub(crate) fn discounted_return<R: Real>(a: DiscountedReturn<'_, R>) -> Result<()> {
    let check = Check("discounted_return");
    let returns = per_sequence(&a.cu_seqlens, |i, start, out| {
        let baseline = a.baseline.as_ref().map_or(0.0, |b| b.at(i).to_f64());
        let mut running = 0.0;
        for (j, out) in out.iter_mut().enumerate().rev() {
            if is_action(&a.mask, start + j) {
                running = a.reward.at(start + j).to_f64() + a.gamma * running;
                *out = running - baseline;
            } else if a.masked == MaskedReturn::Reset {
                running = 0.0;
            }
        }
    });
    check.in_range::<R>("returns", returns.iter().copied())?;
    store(a.returns, &returns);
    Ok(())
}

pub(crate) fn whiten<R: Real>(a: Whiten<'_, R>) -> Result<()> {
    let check = Check("whiten");
    let s = a.settings;
    let used: Vec<usize> = (0..a.x.extent(0)).filter(|&t| is_action(&a.mask, t)).gathered();
    let values: Vec<f64> = used.iter().map(|&t| a.x.at(t).to_f64()).gathered();
    let m = Moments::of(&values, s.ddof);
    let (mean, variance) = padded_moments(&values, &m, s.ddof, s.count_eps);
    let divisor = s.eps_form.divisor(variance, s.eps);
    let whitened = |value: f64| {
        let centred = value - m.min - mean;
        let whitened = if m.equal || divisor == 0.0 { 0.0 } else { centred / divisor };
        whitened + if s.shift_mean { 0.0 } else { m.min + mean }
    };
    check.in_range::<R>("y", values.iter().map(|&value| whitened(value)))?;
    let mut y = a.y;
    y.fill(R::from_f64(0.0));
    used.iter().zip(&values).for_each(|(&t, &value)| y.set(t, R::from_f64(whitened(value))));
    if let Some(stats) = a.stats {
        *stats = WhitenStats { count: m.count, mean: m.min + mean, std: variance.sqrt() };
    }
    Ok(())
}

/// Mean above the smallest value and variance, with `count_eps` added to the count in both means:
/// a mean over `n + eps` also draws the mean itself towards 0 by `eps / (n + eps)`.
fn padded_moments(values: &[f64], m: &Moments, ddof: u8, count_eps: f64) -> (f64, f64) {
    if count_eps == 0.0 || m.equal {
        return (m.rise, m.variance);
    }
    let count = m.count as f64;
    let padded = count + count_eps;
    let mean = m.rise - (m.min + m.rise) * (count_eps / padded);
    let squares: f64 = values.iter().map(|v| (v - m.min - mean) * (v - m.min - mean)).sum();
    (mean, squares / padded * (count / (count - ddof as f64)))
}

pub(crate) fn kl_reward<R: Real>(a: KlReward<'_, R>) -> Result<()> {
    let check = Check("kl_reward");
    let reward = per_sequence(&a.cu_seqlens, |i, start, out| {
        let mut score = a.score.at(i).to_f64();
        for (j, out) in out.iter_mut().enumerate().rev() {
            let t = start + j;
            if is_action(&a.mask, t) {
                let d = a.logp.at(t).to_f64() - a.reference.at(t).to_f64();
                // An estimator may overflow; a penalty of weight 0 must not turn that into NaN.
                let penalise = a.beta > 0.0;
                let kl = if penalise { a.estimator.value(d.clamp(-a.clamp, a.clamp)) } else { 0.0 };
                *out = score - a.beta * kl;
                score = 0.0;
            }
        }
    });
    check.in_range::<R>("reward", reward.iter().copied())?;
    store(a.reward, &reward);
    Ok(())
}

impl RewardKl {
    fn value(self, d: f64) -> f64 {
        match self {
            RewardKl::K1 => d,
            RewardKl::K2 => 0.5 * d * d,
            RewardKl::K3 => (-d).exp_m1() + d,
            RewardKl::Abs => d.abs(),
        }
    }
}

/// `body(i, start, out)` for every sequence, `out` being its tokens of a vector of zeros.
fn per_sequence(
    cu_seqlens: &View<'_, i64>,
    body: impl Fn(usize, usize, &mut [f64]) + Sync + Send,
) -> Vec<f64> {
    let sequences = cu_seqlens.extent(0) - 1;
    let tokens = cu_seqlens.at(sequences) as usize;
    let mut values = alloc::filled(0.0, tokens);
    let (mut rest, mut parts) = (values.as_mut_slice(), alloc::room(sequences));
    for i in 0..sequences {
        let start = cu_seqlens.at(i) as usize;
        let (part, tail) = rest.split_at_mut(cu_seqlens.at(i + 1) as usize - start);
        parts.put((start, part));
        rest = tail;
    }
    let mean_length = tokens / sequences.max(1) + 1;
    parallel::for_each(parts, mean_length * WORK, |i, (start, part)| body(i, start, part));
    values
}

fn store<R: Real>(mut view: ViewMut<'_, R>, values: &[f64]) {
    values.iter().enumerate().for_each(|(t, &value)| view.set(t, R::from_f64(value)));
}
