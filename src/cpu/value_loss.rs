//! The critic's loss on the CPU, in f64 in token order.

use crate::dtype::Real;
use crate::ops::value_loss::ValueLoss;

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
        let free = error * error >= clipped * clipped;
        total += 0.5 * (error * error).max(clipped * clipped);
        // Inside the window both errors are equal, and so `free`.
        let slope = if free { error } else { 0.0 };
        a.dvalue.set(t, R::from_f64(a.weight * slope));
    }
    *a.loss = a.weight * total;
}
