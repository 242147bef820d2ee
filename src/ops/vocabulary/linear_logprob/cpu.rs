//! Score vectors times the gradient of their log-probs on the CPU.

use crate::dtype::Float;
use crate::ops::vocabulary::linear_logprob::ScoreScale;

pub(crate) fn score_scale<T: Float>(a: ScoreScale<'_, T>) {
    for (t, out) in a.dhidden.into_rows().into_iter().enumerate() {
        let g = a.dlogp.at(t) as f64;
        out.iter_mut().zip(a.score.row(t)).for_each(|(o, s)| *o = T::from_f64(g * s.to_f64()));
    }
}
