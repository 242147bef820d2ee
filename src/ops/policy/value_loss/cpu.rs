//! The critic's loss on the CPU, in f64 in token order.

use crate::dtype::Real;
use crate::ops::policy::value_loss::ValueLoss;

pub(crate) fn value_loss<R: Real>(mut a: ValueLoss<'_, R>) {
    let mut total = 0.0;
    for t in 0..a.value.extent(0) {
        if a.mask.as_ref().is_some_and(|m| m.at(t) == 0) {
            a.dvalue.set(t, R::from_f64(0.0));
            continue;
        }
        let (v, target) = (a.value.at(t).to_f64(), a.returns.at(t).to_f64());
        let error = v - target;
        let clipped = a.old_value.as_ref().map_or(error, |old| {
            let old = old.at(t).to_f64();
            old + (v - old).clamp(-a.clip, a.clip) - target
        });
        // Inside the window both errors are equal, and the gradient is the free one. NaN is in both.
        let (worst, slope) = match clipped * clipped {
            square if square.is_nan() => (square, square),
            square if square > error * error => (square, 0.0),
            _ => (error * error, error),
        };
        total += 0.5 * worst;
        a.dvalue.set(t, R::from_f64(a.weight * slope));
    }
    *a.loss = a.weight * total;
}
