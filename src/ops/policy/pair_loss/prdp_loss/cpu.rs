//! PRDP: sums per sequence, then the pairs, then one pass that puts the gradient on tokens.

use crate::alloc::{self, Gather};
use crate::device::parallel;
use crate::dtype::Real;
use crate::ops::policy::pair_loss::prdp_loss::PrdpLoss;
use crate::ops::policy::pair_loss::terms_cpu::{store_losses, weight_of};
use crate::ops::policy::tokens::cpu::tokens;
use crate::ops::policy::tokens::is_action;

/// Rough scalar operations per token.
const WORK: usize = 8;

/// What the pairs make of one sequence: the slope that reaches all its steps and the one that
/// reaches the steps inside the bound.
#[derive(Clone, Copy, Default)]
struct Slopes {
    all: f64,
    inside: f64,
}

pub(crate) fn prdp_loss<R: Real>(a: PrdpLoss<'_, R>) {
    let sequences = a.cu_seqlens.extent(0) - 1;
    let mean_length = a.logp.extent(0) / sequences.max(1) + 1;
    let sums = parallel::map(sequences, mean_length * WORK, |i| {
        let mut sums = (0.0, 0.0);
        for t in tokens(&a.cu_seqlens, i).filter(|&t| is_action(&a.mask, t)) {
            let (logp, old) = (a.logp.at(t).to_f64(), a.old.at(t).to_f64());
            let reference = a.reference.at(t).to_f64();
            // Inside the bound log π itself, so that the two sums then agree to the bit.
            let step = logp - old;
            let bounded = if step.abs() <= a.clip { logp } else { old + a.clip.copysign(step) };
            sums = (sums.0 + (logp - reference), sums.1 + (bounded - reference));
        }
        sums
    });
    let pairs = a.pairs.extent(0);
    let mut slopes = alloc::filled(Slopes::default(), sequences);
    let losses: Vec<f64> = (0..pairs)
        .map(|p| {
            let (i, j) = (a.pairs.row(p)[0] as usize, a.pairs.row(p)[1] as usize);
            let target = (a.reward.at(i).to_f64() - a.reward.at(j).to_f64()) / a.beta;
            let free = sums[i].0 - sums[j].0 - target;
            let bounded = sums[i].1 - sums[j].1 - target;
            let weight = 2.0 * weight_of(&a.weight, p, pairs);
            if free * free >= bounded * bounded {
                slopes[i].all += weight * free;
                slopes[j].all -= weight * free;
                return free * free;
            }
            slopes[i].inside += weight * bounded;
            slopes[j].inside -= weight * bounded;
            bounded * bounded
        })
        .gathered();
    let mut dlogp = a.dlogp;
    for (i, slopes) in slopes.iter().enumerate() {
        for t in tokens(&a.cu_seqlens, i) {
            let mut slope = 0.0;
            if is_action(&a.mask, t) {
                let inside = (a.logp.at(t).to_f64() - a.old.at(t).to_f64()).abs() <= a.clip;
                slope = slopes.all + if inside { slopes.inside } else { 0.0 };
            }
            dlogp.set(t, R::from_f64(slope));
        }
    }
    store_losses(losses.into_iter(), &a.weight, a.loss, a.total);
}
