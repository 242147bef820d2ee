//! Losses over groups on the CPU, in f64.

use std::ops::Range;

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Real;
use crate::ops::policy::pair_loss::group::GroupLoss;
use crate::ops::policy::pair_loss::terms_cpu::{store_losses, weight_of};
use crate::ops::policy::tokens::cpu::tokens;
use crate::ops::support::math::exp;

/// Rough scalar operations per sample.
pub(super) const WORK: usize = 16;

/// Computes loss and slopes of every group with `one_group`, then stores slopes, losses and total.
pub(super) fn run<R: Real>(
    a: GroupLoss<'_, R>,
    one_group: impl Fn(&GroupLoss<'_, R>, Range<usize>) -> (f64, Vec<f64>) + Sync + Send,
) {
    let groups = a.offsets.extent(0) - 1;
    let mean_size = a.offsets.at(groups) as usize / groups.max(1) + 1;
    let terms = parallel::map(groups, mean_size * WORK, |g| one_group(&a, tokens(&a.offsets, g)));
    let mut dlogp = a.dlogp;
    for (g, (_, slopes)) in terms.iter().enumerate() {
        let weight = weight_of(&a.weight, g, terms.len());
        for (i, slope) in tokens(&a.offsets, g).zip(slopes) {
            dlogp.set(i, R::from_f64(weight * slope));
        }
    }
    store_losses(terms.iter().map(|term| term.0), &a.weight, a.loss, a.total);
}

/// log Σ e^x and the softmax of a vector that is not empty.
pub(super) fn softmax(x: &[f64]) -> (f64, Vec<f64>) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = x.iter().map(|x| exp(x - max)).gathered();
    let sum: f64 = powers.iter().sum();
    (max + sum.ln(), powers.into_iter().map(|p| p / sum).gathered())
}
