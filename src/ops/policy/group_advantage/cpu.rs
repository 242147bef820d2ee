//! Group advantages on the CPU: one group per item, statistics in f64 about the smallest reward.

use crate::alloc::{self, Gather, Grow};
use crate::check::Check;
use crate::device::parallel;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::group_advantage::{
    GroupAdvantage, GroupBaseline, GroupScale, GroupSettings, GroupStats, OnSingle,
};
use crate::ops::policy::moments_cpu::Moments;
use crate::view::View;

/// Rough scalar operations per sample.
const WORK: usize = 16;

pub(crate) fn group_advantage<R: Real>(a: GroupAdvantage<'_, R>) -> Result<()> {
    let check = Check("group_advantage");
    let reward: Vec<f64> = (0..a.reward.extent(0)).map(|i| a.reward.at(i).to_f64()).gathered();
    let groups = a.offsets.extent(0) - 1;
    let batch = Batch::of(&reward, &a.settings);
    let mean_size = reward.len() / groups.max(1) + 1;
    let results = parallel::map(groups, mean_size * WORK, |g| {
        let (start, end) = (a.offsets.at(g) as usize, a.offsets.at(g + 1) as usize);
        one_group(&reward[start..end], a.length.as_ref(), start, &a.settings, &batch)
    });
    let mut advantage = a.advantage;
    let values = || results.iter().flat_map(|(values, _)| values.iter().copied());
    check.in_range::<R>("advantage", values())?;
    values().enumerate().for_each(|(i, value)| advantage.set(i, R::from_f64(value)));
    if let Some(groups) = a.groups {
        groups.clear();
        groups.put_all(results.iter().map(|(_, stats)| *stats));
    }
    Ok(())
}

/// What groups share: the batch's divisor, 0 if all rewards are equal.
struct Batch {
    divisor: f64,
}

impl Batch {
    fn of(reward: &[f64], settings: &GroupSettings) -> Batch {
        let divisor = match settings.scale {
            GroupScale::BatchStd => {
                let moments = Moments::of(reward, settings.ddof);
                let divisor = settings.eps_form.divisor(moments.variance, settings.eps);
                if moments.equal { 0.0 } else { divisor }
            }
            GroupScale::NonzeroShare => {
                let scorable = reward.iter().filter(|r| !r.is_nan()).count();
                let nonzero = reward.iter().filter(|&&r| !r.is_nan() && r != 0.0).count();
                nonzero.max(1) as f64 / scorable.max(1) as f64
            }
            _ => 1.0,
        };
        Batch { divisor }
    }
}

fn one_group(
    reward: &[f64],
    length: Option<&View<'_, i64>>,
    start: usize,
    settings: &GroupSettings,
    batch: &Batch,
) -> (Vec<f64>, GroupStats) {
    let moments = Moments::of(reward, settings.ddof);
    let stats = GroupStats {
        size: reward.len(),
        scorable: moments.count,
        mean: moments.min + moments.rise,
        std: moments.variance.sqrt(),
        degenerate: moments.equal,
    };
    let raw = !settings.compares_in_group()
        || (moments.count == 1 && settings.on_single == OnSingle::Raw);
    let numerators = match (raw, moments.equal) {
        (true, _) => alloc::copied(reward),
        (false, true) => alloc::filled(0.0, reward.len()),
        (false, false) => differences(reward, length, start, settings.baseline, &moments),
    };
    let divisors = divisors(reward, settings, &moments, batch, raw);
    let finish = |i: usize| match (reward[i].is_nan(), divisors[i] == 0.0 || numerators[i] == 0.0) {
        (false, false) => numerators[i] / divisors[i],
        _ => 0.0,
    };
    ((0..reward.len()).map(finish).gathered(), stats)
}

/// R − baseline, written so that a shift of all rewards cancels before anything is rounded.
fn differences(
    reward: &[f64],
    length: Option<&View<'_, i64>>,
    start: usize,
    baseline: GroupBaseline,
    m: &Moments,
) -> Vec<f64> {
    let n = m.count as f64;
    let centered = |factor: f64| reward.iter().map(|r| (r - m.min - m.rise) * factor).gathered();
    match baseline {
        GroupBaseline::None => alloc::copied(reward),
        GroupBaseline::Mean => centered(1.0),
        GroupBaseline::LeaveOneOut => centered(n / (n - 1.0)),
        GroupBaseline::LengthWeighted => {
            let len = |i: usize| length.map_or(0.0, |l| l.at(start + i) as f64);
            let scorable = || (0..reward.len()).filter(|&i| !reward[i].is_nan());
            let total: f64 = scorable().map(len).sum();
            let rise: f64 = scorable().map(|i| len(i) * (reward[i] - m.min)).sum::<f64>() / total;
            // Without a token there is nothing to weigh and nothing to train on.
            let weigh = |r: &f64| if total > 0.0 { r - m.min - rise } else { 0.0 };
            reward.iter().map(weigh).gathered()
        }
        GroupBaseline::Max2 => {
            let above = |best: Option<usize>, i: usize| match best {
                Some(b) if reward[b] >= reward[i] => Some(b),
                _ => Some(i),
            };
            let scorable = || (0..reward.len()).filter(|&i| !reward[i].is_nan());
            let best = scorable().fold(None, above);
            let second = scorable().filter(|&i| Some(i) != best).fold(None, above);
            let mut values = alloc::filled(0.0, reward.len());
            if let (Some(b), Some(s)) = (best, second) {
                values[b] = reward[b] - reward[s];
            }
            values
        }
    }
}

/// What each difference is divided by; 0 stands for "the advantage is 0".
fn divisors(
    reward: &[f64],
    settings: &GroupSettings,
    m: &Moments,
    batch: &Batch,
    raw: bool,
) -> Vec<f64> {
    let guard = |variance: f64| settings.eps_form.divisor(variance, settings.eps);
    let same = |divisor: f64| alloc::filled(divisor, reward.len());
    match settings.scale {
        GroupScale::None => same(1.0),
        GroupScale::BatchStd | GroupScale::NonzeroShare => same(batch.divisor),
        GroupScale::GroupStd if raw => same(guard(1.0)),
        GroupScale::LooStd if raw => same(1.0),
        GroupScale::GroupStd => same(guard(m.variance)),
        GroupScale::LooStd => {
            let guard_or_one = |variance: f64| if variance > 0.0 { guard(variance) } else { 1.0 };
            loo_variances(reward, m, settings.ddof).into_iter().map(guard_or_one).gathered()
        }
    }
}

/// Variance of the others for every sample, by merging the running moments (count, mean, squares
/// about it) before and after it (Chan, Golub & LeVeque 1983): no cancellation, and 0 exactly
/// where the others are equal.
fn loo_variances(reward: &[f64], m: &Moments, ddof: u8) -> Vec<f64> {
    type Running = (f64, f64, f64);
    let push = |(n, mean, squares): Running, r: f64| {
        let delta = r - m.min - mean;
        let moved = mean + delta / (n + 1.0);
        (n + 1.0, moved, squares + delta * (r - m.min - moved))
    };
    let merge = |(na, ma, sa): Running, (nb, mb, sb): Running| {
        let n = na + nb;
        let spread = if na * nb > 0.0 { (mb - ma) * (mb - ma) * na * nb / n } else { 0.0 };
        (n, sa + sb + spread)
    };
    let step = |state: Running, r: f64| if r.is_nan() { state } else { push(state, r) };
    let mut after = alloc::filled((0.0, 0.0, 0.0), reward.len() + 1);
    for i in (0..reward.len()).rev() {
        after[i] = step(after[i + 1], reward[i]);
    }
    let mut before = (0.0, 0.0, 0.0);
    let mut variances = alloc::room(reward.len());
    for (i, &r) in reward.iter().enumerate() {
        let (n, squares) = merge(before, after[i + 1]);
        let free = n - ddof as f64;
        variances.put(if free > 0.0 { squares / free } else { 0.0 });
        before = step(before, r);
    }
    variances
}
