//! Sampling on the CPU: the row statistics of [`crate::ops::vocabulary::logprob::cpu`], then a walk over the kept
//! tokens in id order.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::math;
use crate::ops::vocabulary::logprob::cpu::{RowStats, Sums, WORK, row_stats, transformed};
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
    let weight = |v: usize| math::exp(z(v) - stats.max);
    let filtered = (a.top_k > 0 && (a.top_k as usize) < vocab) || a.top_p < 1.0 || a.min_p > 0.0;
    let kept =
        if filtered { kept_tokens(a, &stats, vocab, &z, &weight) } else { (0..vocab).gathered() };
    let mass: f64 = kept.iter().map(|&v| weight(v)).sum();
    let token = match a.greedy {
        true => (0..vocab).find(|&v| z(v) == stats.max)?,
        false => invert(&kept, a.uniform.at(t) * mass, &weight)?,
    };
    Some(Drawn {
        token,
        logp: stats.logp(z(token)),
        logp_kept: (z(token) - stats.max) - mass.ln(),
        kept_mass: mass / stats.sum,
        entropy: stats.entropy(),
    })
}

/// First kept token whose cumulative weight exceeds `mass`; the last possible one if rounding
/// leaves none.
fn invert(kept: &[usize], mass: f64, weight: &impl Fn(usize) -> f64) -> Option<usize> {
    let (mut below, mut last) = (0.0, None);
    for &v in kept {
        let w = weight(v);
        if w > 0.0 {
            below += w;
            last = Some(v);
            if below > mass {
                break;
            }
        }
    }
    last
}

/// Ids that pass top-k, then top-p, then min-p, in ascending order.
fn kept_tokens<T: Float>(
    a: &Sample<'_, T>,
    stats: &RowStats,
    vocab: usize,
    z: &impl Fn(usize) -> f64,
    weight: &impl Fn(usize) -> f64,
) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..vocab).filter(|&v| weight(v) > 0.0).sifted();
    let likelier = |&i: &usize, &j: &usize| z(j).total_cmp(&z(i)).then(i.cmp(&j));
    let k = a.top_k as usize;
    if k > 0 && k < kept.len() {
        kept.select_nth_unstable_by(k - 1, likelier);
        kept.truncate(k);
    }
    if a.top_p < 1.0 {
        kept.sort_unstable_by(likelier);
        let goal = a.top_p * kept.iter().map(|&v| weight(v)).sum::<f64>();
        let mut mass = 0.0;
        let enough = kept.iter().position(|&v| {
            mass += weight(v);
            mass >= goal
        });
        kept.truncate(enough.map_or(kept.len(), |i| i + 1));
    }
    if a.min_p > 0.0 {
        kept.retain(|&v| math::exp(z(v) - stats.max) >= a.min_p);
    }
    kept.sort_unstable();
    kept
}
