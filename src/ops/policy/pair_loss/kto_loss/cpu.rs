//! The loss of KTO on the CPU.

use crate::alloc::Gather;
use crate::dtype::Real;
use crate::ops::policy::pair_loss::kto_loss::KtoLoss;
use crate::ops::policy::pair_loss::preference_loss::cpu::bell;
use crate::ops::policy::pair_loss::terms_cpu::{store_losses, weight_of};
use crate::ops::support::math::sigmoid;

pub(crate) fn kto_loss<R: Real>(a: KtoLoss<'_, R>) {
    let count = a.logp.extent(0);
    let mut dlogp = a.dlogp;
    let losses: Vec<f64> = (0..count)
        .map(|i| {
            let ratio = a.logp.at(i).to_f64() - a.reference.at(i).to_f64();
            let (sign, lambda) = match a.desirable.at(i) {
                0 => (-1.0, a.undesirable_weight),
                _ => (1.0, a.desirable_weight),
            };
            let z = sign * a.beta * (ratio - a.kl);
            let slope = -lambda * sign * a.beta * bell(z);
            dlogp.set(i, R::from_f64(weight_of(&a.weight, i, count) * slope));
            lambda * sigmoid(-z)
        })
        .gathered();
    store_losses(losses.into_iter(), &a.weight, a.loss, a.total);
}
