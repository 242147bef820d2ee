//! Rows of logits on the CPU. All statistics of a row come from one function, [`row_stats`], so
//! that every op that reports a token's log-prob reports the same bits.
//!
//! A row is read in blocks of 16 columns; lane j sums columns j, 16 + j, 32 + j, ... in f64 and the
//! lanes are folded by a fixed tree: the order depends on V alone.

use rayon::prelude::*;

use crate::cpu::{math, par};
use crate::dtype::Float;
use crate::ops::logprob::{IGNORE, LogProb, LogProbBwd, LogProbFused, LogitTransform};

const LANES: usize = 16;

/// Rough scalar operations per logit.
pub(crate) const WORK: usize = 24;

/// Sums over a row, relative to its maximum m.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowStats {
    /// m = max z.
    pub max: f64,
    /// Σ exp(z − m).
    pub sum: f64,
    /// Σ (z − m)·exp(z − m).
    pub weighted: f64,
    /// Σ exp(2(z − m)).
    pub squares: f64,
}

impl RowStats {
    pub fn log_sum(&self) -> f64 {
        self.sum.ln()
    }

    /// log Σ exp(z).
    pub fn lse(&self) -> f64 {
        if self.is_empty() { f64::NEG_INFINITY } else { self.max + self.log_sum() }
    }

    /// z − lse for one logit.
    pub fn logp(&self, z: f64) -> f64 {
        if z == f64::NEG_INFINITY && !self.sum.is_nan() {
            return f64::NEG_INFINITY;
        }
        (z - self.max) - self.log_sum()
    }

    /// −Σ p·log p = log Σ exp(z − m) − mean(z − m).
    pub fn entropy(&self) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let h = self.log_sum() - self.weighted / self.sum;
        if h < 0.0 { 0.0 } else { h }
    }

    /// True if no token can occur.
    pub fn is_empty(&self) -> bool {
        self.max == f64::NEG_INFINITY && self.sum == 0.0
    }
}

/// z of one stored logit. −∞ marks a token that cannot occur and stays −∞ under every transform,
/// also where a softcap would make it finite.
#[inline(always)]
pub(crate) fn transformed(x: f64, t: &LogitTransform) -> f64 {
    if x == f64::NEG_INFINITY {
        return x;
    }
    let z = x * t.scale;
    let z = if t.softcap.is_finite() { t.softcap * (z / t.softcap).tanh() } else { z };
    z / t.temperature
}

/// ∂z/∂x at one stored logit.
#[inline(always)]
pub(crate) fn slope(x: f64, t: &LogitTransform) -> f64 {
    let tanh = if t.softcap.is_finite() { (x * t.scale / t.softcap).tanh() } else { 0.0 };
    t.scale / t.temperature * (1.0 - tanh * tanh)
}

math::dispatch_simd! {
    /// Statistics of a row. NaN and +∞ logits make the sums NaN.
    pub(crate) fn row_stats<T: Float>(row: &[T], t: &LogitTransform) -> RowStats = row_stats_body
}

#[inline(always)]
fn row_stats_body<T: Float>(row: &[T], t: &LogitTransform) -> RowStats {
    // Plain loops: a closure around a hot loop is a function of its own, and would be compiled
    // without the vector units that this one was dispatched to.
    let mut wide = [f64::NEG_INFINITY; LANES];
    let mut max = [f64::NEG_INFINITY; LANES];
    for start in (0..row.len()).step_by(LANES) {
        load(row, start, &mut wide);
        for j in 0..LANES {
            let z = transformed(wide[j], t);
            max[j] = if z > max[j] { z } else { max[j] };
        }
    }
    let mut top = f64::NEG_INFINITY;
    for m in max {
        top = if m > top { m } else { top };
    }
    // A row of −∞ has no maximum to subtract; any finite number keeps exp(−∞ − m) = 0.
    let shift = if top == f64::NEG_INFINITY { 0.0 } else { top };
    let (mut sum, mut weighted, mut squares) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for start in (0..row.len()).step_by(LANES) {
        load(row, start, &mut wide);
        for j in 0..LANES {
            let d = transformed(wide[j], t) - shift;
            let e = math::exp(d);
            sum[j] += e;
            // 0·(−∞) is a token that cannot occur: it adds nothing.
            weighted[j] += if e == 0.0 { 0.0 } else { d * e };
            squares[j] += e * e;
        }
    }
    RowStats { max: top, sum: fold(sum), weighted: fold(weighted), squares: fold(squares) }
}

/// 16 columns from `start` in f64, behind the row's end −∞.
#[inline(always)]
fn load<T: Float>(row: &[T], start: usize, wide: &mut [f64; LANES]) {
    match row.get(start..start + LANES) {
        Some(block) => {
            for j in 0..LANES {
                wide[j] = block[j].to_f64();
            }
        }
        None => {
            *wide = [f64::NEG_INFINITY; LANES];
            for j in start..row.len() {
                wide[j - start] = row[j].to_f64();
            }
        }
    }
}

#[inline(always)]
fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
        width /= 2;
    }
    lanes[0]
}

pub(crate) fn logprob<T: Float>(mut a: LogProb<'_, T>) {
    let (rows, vocab) = (a.logits.extent(0), a.vocab as usize);
    let stats = par::map(rows, vocab * WORK, |t| {
        let target = a.targets.at(t);
        (target != IGNORE).then(|| {
            let row = &a.logits.row(t)[..vocab];
            let z = transformed(row[target as usize].to_f64(), &a.transform);
            (row_stats(row, &a.transform), z)
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
    par::for_each(a.dlogits.into_rows(), 2 * vocab * WORK, |i, out| {
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
        row_gradient(&logits.row(i)[..vocab], target as usize, &t, gradient, &mut out[..vocab]);
    });
}

pub(crate) fn logprob_fused<T: Float>(mut a: LogProbFused<'_, T>) {
    let (vocab, t, targets) = (a.vocab as usize, a.transform, a.targets);
    let done: Vec<(f64, f64)> = a
        .logits
        .into_rows()
        .into_par_iter()
        .enumerate()
        .map(|(i, row)| {
            let target = targets.at(i);
            if target == IGNORE {
                row.fill(T::from_f32(0.0));
                return (0.0, 0.0);
            }
            let held = row[..vocab].to_vec();
            let stats = row_stats(&held, &t);
            let z = transformed(held[target as usize].to_f64(), &t);
            let g = RowGradient { dlogp: a.dlogp.at(i) as f64, ..RowGradient::default() };
            row[vocab..].fill(T::from_f32(0.0));
            row_gradient(&held, target as usize, &t, g, &mut row[..vocab]);
            (stats.logp(z), stats.entropy())
        })
        .collect();
    for (i, (logp, entropy)) in done.into_iter().enumerate() {
        a.logp.set(i, logp as f32);
        if let Some(out) = &mut a.entropy {
            out.set(i, entropy as f32);
        }
    }
}

/// Upstream gradients of one row's outputs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowGradient {
    pub dlogp: f64,
    pub dentropy: f64,
    pub dlse: f64,
}

math::dispatch_simd! {
    /// Gradient of a row's logits.
    pub(crate) fn row_gradient<T: Float>(
        row: &[T], target: usize, t: &LogitTransform, g: RowGradient, out: &mut [T],
    ) = row_gradient_body
}

#[inline(always)]
fn row_gradient_body<T: Float>(
    row: &[T],
    target: usize,
    t: &LogitTransform,
    g: RowGradient,
    out: &mut [T],
) {
    let stats = row_stats_body(row, t);
    let shift = if stats.max == f64::NEG_INFINITY { 0.0 } else { stats.max };
    let scale = if stats.is_empty() { 0.0 } else { 1.0 / stats.sum };
    // With d = z − m: b + c·d multiplies q; E − z = mean(d) − d.
    let c = -g.dentropy;
    let b = g.dlse - g.dlogp + g.dentropy * stats.weighted * scale;
    for i in 0..row.len() {
        let x = row[i].to_f64();
        let d = transformed(x, t) - shift;
        let q = math::exp(d) * scale;
        let dz = if q == 0.0 { 0.0 } else { q * c.mul_add(d, b) };
        out[i] = T::from_f64(dz * slope(x, t));
    }
    // The target's own logit: a + q·(b + c·d) in one expression, so that p → 1 does not cancel
    // after a rounding to T.
    let x = row[target].to_f64();
    let d = transformed(x, t) - shift;
    let q = math::exp(d) * scale;
    let dz = g.dlogp + if q == 0.0 { 0.0 } else { q * c.mul_add(d, b) };
    out[target] = T::from_f64(dz * slope(x, t));
}
