//! Weights and totals of pair losses on the CPU, in f64: sums in index order, no hot loop.

use crate::dtype::Real;
use crate::view::{View, ViewMut};

/// Weight of term `i` of `terms`: the caller's, or the mean's.
pub(super) fn weight_of<R: Real>(weight: &Option<View<'_, R>>, i: usize, terms: usize) -> f64 {
    weight.as_ref().map_or(1.0 / terms as f64, |weight| weight.at(i).to_f64())
}

/// Writes the losses and their weighted total.
pub(super) fn store_losses<R: Real>(
    losses: impl Iterator<Item = f64>,
    weight: &Option<View<'_, R>>,
    mut loss: ViewMut<'_, R>,
    total: Option<ViewMut<'_, f64>>,
) {
    let (terms, mut sum) = (loss.extent(0), 0.0);
    for (i, value) in losses.enumerate() {
        loss.set(i, R::from_f64(value));
        sum += weight_of(weight, i, terms) * value;
    }
    if let Some(mut total) = total {
        total.set(0, sum);
    }
}
