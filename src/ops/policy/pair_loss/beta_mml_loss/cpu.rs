//! β-smoothed marginal likelihood on the CPU, in f64.

use std::ops::Range;

use crate::alloc::Gather;
use crate::dtype::Real;
use crate::ops::policy::pair_loss::group::GroupLoss;
use crate::ops::policy::pair_loss::group_cpu::{run, softmax};

pub(crate) fn beta_mml_loss<R: Real>(a: GroupLoss<'_, R>) {
    run(a, group)
}

/// Loss and slopes of a group: a max-subtracted soft maximum.
fn group<R: Real>(a: &GroupLoss<'_, R>, samples: Range<usize>) -> (f64, Vec<f64>) {
    let scaled: Vec<f64> = samples.map(|i| a.beta * a.logp.at(i).to_f64()).gathered();
    if scaled.is_empty() {
        return (0.0, scaled);
    }
    let (lse, probability) = softmax(&scaled);
    (-lse / a.beta, probability.into_iter().map(|p| -p).gathered())
}
