//! K log-probs per row on the CPU.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::support::math;
use crate::ops::vocabulary::gather_k::{GatherK, GatherKBwd};
use crate::ops::vocabulary::logprob::cpu::{RowStats, Sums, WORK, dz_dx, row_stats, transformed};
use crate::ops::vocabulary::logprob::{IGNORE, LogitTransform};

/// Statistics over the row's ids alone, in the order they are named.
fn kept_stats<T: Float>(row: &[T], ids: &[i32], t: &LogitTransform) -> RowStats {
    let kept: Vec<T> = ids.iter().filter(|&&id| id != IGNORE).map(|&id| row[id as usize]).sifted();
    row_stats(&kept, t, Sums::One)
}

pub(crate) fn gather_k<T: Float>(mut a: GatherK<'_, T>) {
    let vocab = a.vocab as usize;
    let full_wanted = !a.renormalize || a.mass.is_some();
    let stats = parallel::map(a.logits.extent(0), vocab * WORK, |t| {
        let row = &a.logits.row(t)[..vocab];
        let full = full_wanted.then(|| row_stats(row, &a.transform, Sums::One));
        let kept = (a.renormalize || a.mass.is_some())
            .then(|| kept_stats(row, a.ids.row(t), &a.transform));
        (full, kept)
    });
    for (t, (full, kept)) in stats.iter().enumerate() {
        let used = if a.renormalize { kept } else { full };
        let (ids, row) = (a.ids.row(t), a.logits.row(t));
        for (out, &id) in a.logp.row_mut(t).iter_mut().zip(ids) {
            let z = |id: i32| transformed(row[id as usize].to_f64(), &a.transform);
            *out = match used {
                Some(stats) if id != IGNORE => stats.logp(z(id)) as f32,
                _ => 0.0,
            };
        }
        if let (Some(mass), Some(full), Some(kept)) = (&mut a.mass, full, kept) {
            let share = if kept.is_empty() { 0.0 } else { math::exp(kept.lse() - full.lse()) };
            mass.set(t, if share > 1.0 { 1.0 } else { share } as f32);
        }
    }
}

pub(crate) fn gather_k_bwd<T: Float>(a: GatherKBwd<'_, T>) {
    let vocab = a.vocab as usize;
    let (logits, t) = (a.logits, a.transform);
    parallel::for_each(a.dlogits.into_rows(), 2 * vocab * WORK, |i, out| {
        let (row, ids, g) = (&logits.row(i)[..vocab], a.ids.row(i), a.dlogp.row(i));
        out.fill(T::from_f32(0.0));
        let named = || ids.iter().zip(g).filter(|(id, _)| **id != IGNORE);
        let total: f64 = named().map(|(_, &g)| g as f64).sum();
        let stats = match a.renormalize {
            true => kept_stats(row, ids, &t),
            false => row_stats(row, &t, Sums::One),
        };
        let q = |x: f64| match stats.is_empty() {
            true => 0.0,
            false => math::exp(transformed(x, &t) - stats.max) / stats.sum,
        };
        if !a.renormalize {
            for (out, x) in out.iter_mut().zip(row) {
                let x = x.to_f64();
                *out = T::from_f64(-q(x) * total * dz_dx(x, &t));
            }
        }
        for (&id, &g) in named() {
            let x = row[id as usize].to_f64();
            out[id as usize] = T::from_f64((g as f64 - q(x) * total) * dz_dx(x, &t));
        }
    });
}
