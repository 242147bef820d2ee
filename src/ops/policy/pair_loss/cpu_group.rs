//! Losses over groups and over a matrix: centred sums and max-subtracted soft maxima.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Real;
use crate::ops::policy::group_advantage::cpu::Moments;
use crate::ops::policy::pair_loss::cpu::{store_losses, weight_of};
use crate::ops::policy::pair_loss::{BetaMmlLoss, CopgLoss, InfoNceLoss};
use crate::ops::policy::seq_reduce::cpu::tokens;
use crate::ops::support::math::exp;
use crate::view::{View, ViewMut};

/// Rough scalar operations per sample.
const WORK: usize = 16;

pub(crate) fn copg_loss<R: Real>(a: CopgLoss<'_, R>) {
    let terms = per_group(&a.offsets, |range| {
        let regularised = range.map(|i| {
            let reference = a.reference.as_ref().map_or(0.0, |r| r.at(i).to_f64());
            a.reward.at(i).to_f64() - a.beta * (a.logp.at(i).to_f64() - reference)
        });
        let values: Vec<f64> = regularised.gathered();
        let m = Moments::of(&values, 1);
        let slope = |value: &f64| match value.is_nan() || m.equal {
            true => 0.0,
            false => -2.0 / (m.count - 1) as f64 * (value - m.min - m.rise),
        };
        (m.variance / a.beta, values.iter().map(slope).gathered())
    });
    store(&terms, &a.offsets, &a.weight, a.d_logp);
    store_losses(terms.iter().map(|term| term.0), &a.weight, a.loss, a.total);
}

pub(crate) fn beta_mml_loss<R: Real>(a: BetaMmlLoss<'_, R>) {
    let terms = per_group(&a.offsets, |range| {
        let scaled: Vec<f64> = range.map(|i| a.beta * a.logp.at(i).to_f64()).gathered();
        if scaled.is_empty() {
            return (0.0, scaled);
        }
        let (lse, share) = softmax(&scaled);
        (-lse / a.beta, share.into_iter().map(|p| -p).gathered())
    });
    store(&terms, &a.offsets, &a.weight, a.d_logp);
    store_losses(terms.iter().map(|term| term.0), &a.weight, a.loss, a.total);
}

/// Loss and slopes of every group.
fn per_group(
    offsets: &View<'_, i64>,
    body: impl Fn(std::ops::Range<usize>) -> (f64, Vec<f64>) + Sync + Send,
) -> Vec<(f64, Vec<f64>)> {
    let groups = offsets.extent(0) - 1;
    let mean_size = offsets.at(groups) as usize / groups.max(1) + 1;
    parallel::map(groups, mean_size * WORK, |g| body(tokens(offsets, g)))
}

fn store<R: Real>(
    terms: &[(f64, Vec<f64>)],
    offsets: &View<'_, i64>,
    weight: &Option<View<'_, R>>,
    mut d_logp: ViewMut<'_, R>,
) {
    for (g, (_, slopes)) in terms.iter().enumerate() {
        let weight = weight_of(weight, g, terms.len());
        for (i, slope) in tokens(offsets, g).zip(slopes) {
            d_logp.set(i, R::from_f64(weight * slope));
        }
    }
}

/// log Σ e^x and the softmax of a vector that is not empty.
fn softmax(x: &[f64]) -> (f64, Vec<f64>) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = x.iter().map(|x| exp(x - max)).gathered();
    let sum: f64 = powers.iter().sum();
    (max + sum.ln(), powers.into_iter().map(|p| p / sum).gathered())
}

pub(crate) fn info_nce_loss<R: Real>(a: InfoNceLoss<'_, R>) {
    let n = a.logp.extent(0);
    let length = |j: usize| a.length.as_ref().map_or(1.0, |l| l.at(j) as f64);
    let share: Vec<f64> =
        (0..n).map(|j| if length(j) > 0.0 { 1.0 / length(j) } else { 0.0 }).gathered();
    let score = |i: usize, j: usize| a.logp.row(i)[j].to_f64() * share[j];
    let rows = parallel::map(n, n * WORK, |i| softmax(&(0..n).map(|j| score(i, j)).gathered()));
    let cols = parallel::map(n, n * WORK, |j| softmax(&(0..n).map(|i| score(i, j)).gathered()));
    let scale = 0.5 / n.max(1) as f64;
    let mut sum = 0.0;
    for i in 0..n {
        sum += (rows[i].0 - score(i, i)) + (cols[i].0 - score(i, i));
    }
    parallel::for_each(a.d_logp.into_rows(), n * 4, |i, out| {
        for (j, out) in out.iter_mut().enumerate() {
            let target = if i == j { 2.0 } else { 0.0 };
            let slope = (rows[i].1[j] + cols[j].1[i] - target) * scale;
            *out = R::from_f64(slope * share[j]);
        }
    });
    let mut loss = a.loss;
    loss.set(0, R::from_f64(sum * scale));
}
