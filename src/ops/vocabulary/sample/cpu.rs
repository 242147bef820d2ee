//! Sampling on the CPU: the row statistics of [`crate::ops::vocabulary::logprob::cpu`], then a walk over the kept
//! tokens in id order.

use crate::alloc::{self, Gather, Grow};
use crate::device::parallel;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::math;
use crate::ops::vocabulary::logprob::LogitTransform;
use crate::ops::vocabulary::logprob::cpu::{Sums, WORK, row_stats, transformed};
use crate::ops::vocabulary::row_cpu::weights;
use crate::ops::vocabulary::sample::{Sample, check_drawn};

/// What was drawn from a row.
struct Drawn {
    token: usize,
    logp: f64,
    logp_kept: f64,
    kept_mass: f64,
    entropy: f64,
}

pub(crate) fn sample<T: Float>(mut a: Sample<'_, T>) -> Result<()> {
    let vocab = a.vocab as usize;
    let drawn = parallel::map(a.logits.extent(0), vocab * WORK, |t| draw(&a, t, vocab));
    check_drawn(drawn.iter().position(Option::is_none))?;
    for (t, drawn) in drawn.into_iter().flatten().enumerate() {
        a.token.set(t, drawn.token as i32);
        a.logp.set(t, drawn.logp as f32);
        if let Some(out) = &mut a.logp_kept {
            out.set(t, drawn.logp_kept as f32);
        }
        if let Some(out) = &mut a.kept_mass {
            out.set(t, drawn.kept_mass as f32);
        }
        if let Some(out) = &mut a.entropy {
            out.set(t, drawn.entropy as f32);
        }
    }
    Ok(())
}

fn draw<T: Float>(a: &Sample<'_, T>, t: usize, vocab: usize) -> Option<Drawn> {
    let row = &a.logits.row(t)[..vocab];
    let sums = if a.entropy.is_some() { Sums::All } else { Sums::One };
    let stats = row_stats(row, &a.transform, sums);
    if !stats.max.is_finite() || !stats.sum.is_finite() {
        return None;
    }
    let z = |v: usize| transformed(row[v].to_f64(), &a.transform);
    let top = || (0..vocab).find(|&v| z(v) == stats.max);
    let filtered = (a.top_k > 0 && (a.top_k as usize) < vocab) || a.top_p < 1.0 || a.min_p > 0.0;
    let (drawn, mass) = if filtered {
        let mut of = alloc::filled(0.0, vocab);
        weights(row, &a.transform, stats.max, &mut of);
        let kept = kept_tokens(a, &of, &z);
        let mass = kept.iter().map(|&v| of[v]).sum();
        let at = invert(kept.iter().map(|&v| of[v]), a.uniform.at(t) * mass);
        (at.map(|at| kept[at]), mass)
    } else {
        from_row(row, &a.transform, stats.max, a.uniform.at(t))
    };
    let token = if a.greedy { top()? } else { drawn? };
    Some(Drawn {
        token,
        logp: stats.logp(z(token)),
        logp_kept: (z(token) - stats.max) - mass.ln(),
        kept_mass: mass / stats.sum,
        entropy: stats.entropy(),
    })
}

/// Columns whose weights are computed together.
const BLOCK: usize = 1024;

/// A draw from all tokens, and their mass. The running sum is kept at the end of each block, so only the block in which
/// it passes the share `uniform` is computed twice.
fn from_row<T: Float>(
    row: &[T],
    t: &LogitTransform,
    max: f64,
    uniform: f64,
) -> (Option<usize>, f64) {
    let (mut block, mut ends) = ([0.0; BLOCK], alloc::room(row.len().div_ceil(BLOCK)));
    let mut mass = 0.0;
    for part in row.chunks(BLOCK) {
        weights(part, t, max, &mut block);
        block[..part.len()].iter().for_each(|w| mass += w);
        ends.put(mass);
    }
    let share = uniform * mass;
    let passed = ends.partition_point(|&end| end <= share);
    let Some(part) = row.chunks(BLOCK).nth(passed) else {
        // Rounding left none: the last one that is possible.
        return (row.iter().rposition(|x| math::exp(transformed(x.to_f64(), t) - max) > 0.0), mass);
    };
    weights(part, t, max, &mut block);
    let mut below = if passed == 0 { 0.0 } else { ends[passed - 1] };
    let at = block[..part.len()].iter().position(|w| {
        below += w;
        below > share
    });
    (at.map(|at| passed * BLOCK + at), mass)
}

/// Where the running sum of weights passes `mass`; the last possible one if rounding leaves none.
fn invert(weights: impl Iterator<Item = f64>, mass: f64) -> Option<usize> {
    let (mut below, mut last) = (0.0, None);
    for (at, w) in weights.enumerate().filter(|&(_, w)| w > 0.0) {
        below += w;
        last = Some(at);
        if below > mass {
            break;
        }
    }
    last
}

/// Ids that pass top-k, then top-p, then min-p, in ascending order.
fn kept_tokens<T: Float>(
    a: &Sample<'_, T>,
    weights: &[f64],
    z: &impl Fn(usize) -> f64,
) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..weights.len()).filter(|&v| weights[v] > 0.0).sifted();
    let likelier = |&i: &usize, &j: &usize| z(j).total_cmp(&z(i)).then(i.cmp(&j));
    let k = a.top_k as usize;
    if k > 0 && k < kept.len() {
        kept.select_nth_unstable_by(k - 1, likelier);
        kept.truncate(k);
    }
    if a.top_p < 1.0 {
        kept.sort_unstable_by(likelier);
        let goal = a.top_p * kept.iter().map(|&v| weights[v]).sum::<f64>();
        let mut mass = 0.0;
        let enough = kept.iter().position(|&v| {
            mass += weights[v];
            mass >= goal
        });
        kept.truncate(enough.map_or(kept.len(), |i| i + 1));
    }
    if a.min_p > 0.0 {
        kept.retain(|&v| weights[v] >= a.min_p);
    }
    kept.sort_unstable();
    kept
}
