//! Contrastive policy gradient on the CPU, in f64.

use std::ops::Range;

use crate::alloc::Gather;
use crate::dtype::Real;
use crate::ops::policy::moments_cpu::Moments;
use crate::ops::policy::pair_loss::group::GroupLoss;
use crate::ops::policy::pair_loss::group_cpu::run;

pub(crate) fn copg_loss<R: Real>(a: GroupLoss<'_, R>) {
    run(a, group)
}

/// Loss and slopes of a group: centered sums.
fn group<R: Real>(a: &GroupLoss<'_, R>, samples: Range<usize>) -> (f64, Vec<f64>) {
    let regularized = samples.map(|i| {
        let reference = a.reference.as_ref().map_or(0.0, |r| r.at(i).to_f64());
        let reward = a.reward.as_ref().map_or(0.0, |r| r.at(i).to_f64());
        reward - a.beta * (a.logp.at(i).to_f64() - reference)
    });
    let values: Vec<f64> = regularized.gathered();
    let m = Moments::of(&values, 1);
    let slope = |value: &f64| match value.is_nan() || m.equal {
        true => 0.0,
        false => -2.0 / (m.count - 1) as f64 * (value - m.min - m.rise),
    };
    (m.variance / a.beta, values.iter().map(slope).gathered())
}
