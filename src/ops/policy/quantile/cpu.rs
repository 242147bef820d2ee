//! Quantiles on the CPU: selection in f64 over a copy of the values; one scope per item.

use std::ops::Range;

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Real;
use crate::ops::policy::quantile::{
    Quantile, QuantileMethod, QuantileScope, TopFraction, is_ranked,
};
use crate::ops::policy::tokens::cpu::tokens;
use crate::ops::policy::tokens::is_action;

/// Rough scalar operations per token.
const WORK: usize = 16;

pub(crate) fn quantile<R: Real>(a: Quantile<'_, R>) {
    let scopes = ranges(&a.scope, a.x.extent(0));
    let mut y = a.y;
    let results = parallel::map(scopes.len(), mean_length(a.x.extent(0), &scopes) * WORK, |i| {
        let used = scopes[i].clone().filter(|&t| is_action(&a.mask, t));
        let values = used.map(|t| a.x.at(t).to_f64()).filter(|x| !x.is_nan()).sifted();
        select(values, a.q, a.method)
    });
    results.iter().enumerate().for_each(|(i, &value)| y.set(i, R::from_f64(value)));
}

pub(crate) fn top_fraction<R: Real>(a: TopFraction<'_, R>) {
    let scopes = ranges(&a.scope, a.x.extent(0));
    let thresholds = parallel::map(scopes.len(), mean_length(a.x.extent(0), &scopes) * WORK, |i| {
        let ranked = scopes[i].clone().filter(|&t| is_ranked(&a.class, t));
        let values = ranked.map(|t| a.x.at(t).to_f64()).sifted();
        select(values, 1.0 - a.fraction, QuantileMethod::Linear)
    });
    let others = a.class.is_some_and(|c| c.others);
    let (mut keep, mut out) = (a.keep, a.threshold);
    for (i, scope) in scopes.iter().enumerate() {
        for t in scope.clone() {
            let top = a.fraction > 0.0 && a.x.at(t).to_f64() >= thresholds[i];
            keep.set(t, if is_ranked(&a.class, t) { top } else { others } as u8);
        }
        if let Some(out) = &mut out {
            out.set(i, R::from_f64(thresholds[i]));
        }
    }
}

fn ranges(scope: &QuantileScope<'_>, count: usize) -> Vec<Range<usize>> {
    match scope {
        QuantileScope::All => std::iter::once(0..count).gathered(),
        QuantileScope::PerSequence(offsets) => {
            (0..offsets.extent(0) - 1).map(|i| tokens(offsets, i)).gathered()
        }
    }
}

fn mean_length(count: usize, scopes: &[Range<usize>]) -> usize {
    count / scopes.len().max(1) + 1
}

/// The value at rank q·(n − 1) of `values`, which hold no NaN.
fn select(mut values: Vec<f64>, q: f64, method: QuantileMethod) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let exact = q * (values.len() - 1) as f64;
    // A share such as 0.8 is no binary fraction: a rank that misses an integer by rounding is that
    // integer, or the top fraction would lose the element that stands there.
    let snap = (exact - exact.round()).abs() <= 4.0 * f64::EPSILON * exact;
    let rank = if snap { exact.round() } else { exact };
    let floor = rank as usize;
    let (_, &mut lower, above) = values.select_nth_unstable_by(floor, f64::total_cmp);
    let between = rank - floor as f64;
    if between == 0.0 || above.is_empty() {
        return lower;
    }
    let upper = above.iter().copied().fold(f64::INFINITY, f64::min);
    match method {
        QuantileMethod::Lower => lower,
        QuantileMethod::Higher => upper,
        QuantileMethod::Linear if lower == upper => lower,
        // This form has no ∞ − ∞ unless the two ends are −∞ and ∞; rounding cannot leave the ends.
        QuantileMethod::Linear => (lower * (1.0 - between) + upper * between).clamp(lower, upper),
    }
}
