//! Rows of logits on the CPU. All statistics of a row come from one function, [`row_stats`], so
//! that every op that reports a token's log-prob reports the same bits.

use crate::alloc::{self, Gather};
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::vocabulary::logprob::{IGNORE, LogProb, LogProbBwd, LogProbFused};
use crate::ops::vocabulary::row_cpu::{RowGradient, row_gradient};
pub(crate) use crate::ops::vocabulary::row_cpu::{RowStats, Sums, dz_dx, row_stats, transformed};

/// Rough scalar operations per logit.
pub(crate) const WORK: usize = 24;

pub(crate) fn logprob<T: Float>(mut a: LogProb<'_, T>) {
    let (rows, vocab) = (a.logits.extent(0), a.vocab as usize);
    let all = a.entropy.is_some() || a.log_sum_sq.is_some();
    let wanted = if all { Sums::All } else { Sums::One };
    let stats = parallel::map(rows, vocab * WORK, |t| {
        let target = a.targets.at(t);
        (target != IGNORE).then(|| {
            let row = &a.logits.row(t)[..vocab];
            let z = transformed(row[target as usize].to_f64(), &a.transform);
            (row_stats(row, &a.transform, wanted), z)
        })
    });
    for (t, stats) in stats.iter().enumerate() {
        let put = |out: &mut Option<crate::view::ViewMut<'_, f32>>,
                   value: &dyn Fn(&RowStats) -> f64| {
            if let Some(out) = out {
                out.set(t, stats.as_ref().map_or(0.0, |(s, _)| value(s) as f32));
            }
        };
        put(&mut a.lse, &RowStats::lse);
        put(&mut a.entropy, &RowStats::entropy);
        put(&mut a.log_sum_sq, &|s| s.squares.ln() - 2.0 * s.log_sum());
        a.logp.set(t, stats.as_ref().map_or(0.0, |(s, z)| s.logp(*z) as f32));
        if let Some(top1) = &mut a.top1 {
            let target = a.targets.at(t);
            let first_max = |row: &[T]| {
                // −∞ is a token that cannot occur, also where the scale is negative.
                let scale = a.transform.scale.signum();
                let order = |x: T| match x.to_f64() {
                    f64::NEG_INFINITY => f64::NEG_INFINITY,
                    x => scale * x,
                };
                let best = order(row[target as usize]);
                let beaten = |x: &T, i: usize| {
                    order(*x) > best || (order(*x) == best && (i as i32) < target)
                };
                !row.iter().enumerate().any(|(i, x)| beaten(x, i))
            };
            let is_top = target != IGNORE && first_max(&a.logits.row(t)[..vocab]);
            top1.set(t, is_top as u8);
        }
    }
}

pub(crate) fn logprob_bwd<T: Float>(a: LogProbBwd<'_, T>) {
    let vocab = a.vocab as usize;
    let (logits, targets, t) = (a.logits, a.targets, a.transform);
    let at = |v: &Option<crate::view::View<'_, f32>>, i| v.as_ref().map_or(0.0, |v| v.at(i) as f64);
    parallel::for_each(a.dlogits.into_rows(), 2 * vocab * WORK, |i, out| {
        let target = targets.at(i);
        out[vocab..].fill(T::from_f32(0.0));
        if target == IGNORE {
            out.fill(T::from_f32(0.0));
            return;
        }
        let gradient = RowGradient {
            dlogp: a.dlogp.at(i) as f64,
            dentropy: at(&a.dentropy, i),
            dlse: at(&a.dlse, i),
        };
        let row = &logits.row(i)[..vocab];
        let stats = row_stats(row, &t, gradient.sums());
        row_gradient(row, &stats, target as usize, &t, gradient, &mut out[..vocab]);
    });
}

pub(crate) fn logprob_fused<T: Float>(mut a: LogProbFused<'_, T>) {
    let (vocab, t, targets) = (a.vocab as usize, a.transform, a.targets);
    let rows = a.logits.into_rows();
    let mut done = alloc::filled((0.0, 0.0), rows.len());
    let items = rows.into_iter().zip(&mut done).gathered();
    parallel::for_each(items, 2 * vocab * WORK, |i, (row, done)| {
        let target = targets.at(i);
        if target == IGNORE {
            row.fill(T::from_f32(0.0));
            return;
        }
        let held = alloc::copied(&row[..vocab]);
        let g = RowGradient { dlogp: a.dlogp.at(i) as f64, ..RowGradient::default() };
        let wanted = if a.entropy.is_some() { Sums::All } else { g.sums() };
        let stats = row_stats(&held, &t, wanted);
        let z = transformed(held[target as usize].to_f64(), &t);
        row[vocab..].fill(T::from_f32(0.0));
        row_gradient(&held, &stats, target as usize, &t, g, &mut row[..vocab]);
        *done = (stats.logp(z), stats.entropy());
    });
    for (i, (logp, entropy)) in done.into_iter().enumerate() {
        a.logp.set(i, logp as f32);
        if let Some(out) = &mut a.entropy {
            out.set(i, entropy as f32);
        }
    }
}
