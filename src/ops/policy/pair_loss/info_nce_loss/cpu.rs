//! Contrast between contexts and completions on the CPU: max-subtracted soft maxima, in f64.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Real;
use crate::ops::policy::pair_loss::group_cpu::{WORK, softmax};
use crate::ops::policy::pair_loss::info_nce_loss::InfoNceLoss;

pub(crate) fn info_nce_loss<R: Real>(a: InfoNceLoss<'_, R>) {
    let n = a.logp.extent(0);
    let length = |j: usize| a.length.as_ref().map_or(1.0, |l| l.at(j) as f64);
    let inverse_length: Vec<f64> =
        (0..n).map(|j| if length(j) > 0.0 { 1.0 / length(j) } else { 0.0 }).gathered();
    let score = |i: usize, j: usize| a.logp.row(i)[j].to_f64() * inverse_length[j];
    let rows = parallel::map(n, n * WORK, |i| softmax(&(0..n).map(|j| score(i, j)).gathered()));
    let cols = parallel::map(n, n * WORK, |j| softmax(&(0..n).map(|i| score(i, j)).gathered()));
    let scale = 0.5 / n.max(1) as f64;
    let mut sum = 0.0;
    for i in 0..n {
        sum += (rows[i].0 - score(i, i)) + (cols[i].0 - score(i, i));
    }
    parallel::for_each(a.dlogp.into_rows(), n * 4, |i, out| {
        for (j, out) in out.iter_mut().enumerate() {
            let target = if i == j { 2.0 } else { 0.0 };
            let slope = (rows[i].1[j] + cols[j].1[i] - target) * scale;
            *out = R::from_f64(slope * inverse_length[j]);
        }
    });
    let mut loss = a.loss;
    loss.set(0, R::from_f64(sum * scale));
}
