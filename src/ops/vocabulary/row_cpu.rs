//! Statistics and gradient of one row of logits.
//!
//! A row is read in blocks of 16 columns; lane j sums columns j, 16 + j, 32 + j, ... in f64 and the
//! lanes are folded by a fixed tree: the order depends on V alone.
//!
//! Three things keep the loops in vector registers. Each kind of transform has a function of its own, so that
//! the hot ones hold no call of `tanh`. Exponentials are taken of numbers that are not positive, 256 at a time.
//! Sums that were not requested are left out; the other operations stay the same, and so do their bits.

use crate::dtype::{DType, Float};
use crate::ops::support::math;
use crate::ops::support::math::{EXPS, Exps};
use crate::ops::support::prefetch::fetch;
use crate::ops::vocabulary::logprob::LogitTransform;

const LANES: usize = 16;

/// Which sums of a row are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sums {
    /// Σ exp(z − m) alone; the others are returned as 0.
    One,
    /// All of them.
    All,
}

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
    if t.softcap.is_finite() { Capped::z(x, t) } else { Linear::z(x, t) }
}

/// ∂z/∂x at one stored logit.
#[inline(always)]
pub(crate) fn dz_dx(x: f64, t: &LogitTransform) -> f64 {
    if t.softcap.is_finite() { Capped::dz_dx(x, t) } else { Linear::dz_dx(x, t) }
}

/// z as a function of a stored logit, one type per kind so that hot loops hold only what they need.
trait Transform {
    /// True if z is the logit.
    const PLAIN: bool = false;
    fn z(x: f64, t: &LogitTransform) -> f64;
    fn dz_dx(x: f64, t: &LogitTransform) -> f64;
}

/// z = x: scale and temperature are 1, which multiply and divide exactly.
struct Plain;
/// No softcap.
struct Linear;
/// With a softcap.
struct Capped;

impl Transform for Plain {
    const PLAIN: bool = true;
    #[inline(always)]
    fn z(x: f64, _: &LogitTransform) -> f64 {
        x
    }
    #[inline(always)]
    fn dz_dx(_: f64, _: &LogitTransform) -> f64 {
        1.0
    }
}

impl Transform for Linear {
    #[inline(always)]
    fn z(x: f64, t: &LogitTransform) -> f64 {
        let z = x * t.scale / t.temperature;
        if x == f64::NEG_INFINITY { x } else { z }
    }
    #[inline(always)]
    fn dz_dx(_: f64, t: &LogitTransform) -> f64 {
        t.scale / t.temperature
    }
}

impl Transform for Capped {
    #[inline(always)]
    fn z(x: f64, t: &LogitTransform) -> f64 {
        let z = t.softcap * (x * t.scale / t.softcap).tanh() / t.temperature;
        if x == f64::NEG_INFINITY { x } else { z }
    }
    #[inline(always)]
    fn dz_dx(x: f64, t: &LogitTransform) -> f64 {
        let tanh = (x * t.scale / t.softcap).tanh();
        t.scale / t.temperature * (1.0 - tanh * tanh)
    }
}

/// Calls `$f` with the transform's kind as its first argument.
macro_rules! by_transform {
    ($t:expr, $f:ident($($arg:expr),*)) => {
        if $t.softcap.is_finite() {
            $f(Capped, $($arg),*)
        } else if $t.scale == 1.0 && $t.temperature == 1.0 {
            $f(Plain, $($arg),*)
        } else {
            $f(Linear, $($arg),*)
        }
    };
}

/// Statistics of a row. NaN and +∞ logits make the sums NaN.
pub(crate) fn row_stats<T: Float>(row: &[T], t: &LogitTransform, wanted: Sums) -> RowStats {
    match wanted {
        Sums::All => by_transform!(t, all_sums(row, t)),
        Sums::One => by_transform!(t, one_sum(row, t)),
    }
}

math::dispatch_simd! {
    fn all_sums<K: Transform, T: Float>(kind: K, row: &[T], t: &LogitTransform) -> RowStats = all_sums_body
}
math::dispatch_simd! {
    fn one_sum<K: Transform, T: Float>(kind: K, row: &[T], t: &LogitTransform) -> RowStats = one_sum_body
}

// Plain loops: a closure around a hot loop is a function of its own, and would be compiled without
// the vector units that the function around it was dispatched to.

#[inline(always)]
fn all_sums_body<K: Transform, T: Float>(_: K, row: &[T], t: &LogitTransform) -> RowStats {
    let (max, shift) = top::<K, T>(row, t);
    let (mut sum, mut weighted, mut squares) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let mut terms = Terms::new();
    for part in row.chunks(EXPS) {
        prefetch_next(part, row.len());
        terms.set::<K, T>(part, t, shift);
        for (d, (poly, two_to_k)) in terms.d.as_chunks::<LANES>().0.iter().zip(terms.lanes()) {
            for j in 0..LANES {
                let (d, e) = (d[j], poly[j] * two_to_k[j]);
                sum[j] += e;
                // 0·(−∞) is a token that cannot occur: it adds nothing.
                weighted[j] += if e == 0.0 { 0.0 } else { d * e };
                squares[j] += e * e;
            }
        }
    }
    RowStats { max, sum: fold(sum), weighted: fold(weighted), squares: fold(squares) }
}

#[inline(always)]
fn one_sum_body<K: Transform, T: Float>(_: K, row: &[T], t: &LogitTransform) -> RowStats {
    let (max, shift) = top::<K, T>(row, t);
    let (mut sum, mut terms) = ([0.0; LANES], Terms::new());
    for part in row.chunks(EXPS) {
        prefetch_next(part, row.len());
        terms.set::<K, T>(part, t, shift);
        for (poly, two_to_k) in terms.lanes() {
            for j in 0..LANES {
                sum[j] += poly[j] * two_to_k[j];
            }
        }
    }
    RowStats { max, sum: fold(sum), weighted: 0.0, squares: 0.0 }
}

/// exp(z − m) of every column of a row none of whose z is above m.
pub(crate) fn weights<T: Float>(row: &[T], t: &LogitTransform, max: f64, out: &mut [f64]) {
    by_transform!(t, each_weight(row, t, max, out));
}

math::dispatch_simd! {
    fn each_weight<K: Transform, T: Float>(kind: K, row: &[T], t: &LogitTransform, max: f64, out: &mut [f64]) = each_weight_body
}

#[inline(always)]
fn each_weight_body<K: Transform, T: Float>(
    _: K,
    row: &[T],
    t: &LogitTransform,
    max: f64,
    out: &mut [f64],
) {
    let mut terms = Terms::new();
    for (part, out) in row.chunks(EXPS).zip(out.chunks_mut(EXPS)) {
        terms.set::<K, T>(part, t, max);
        for ((out, poly), two_to_k) in
            out.iter_mut().zip(&terms.exps.poly).zip(&terms.exps.two_to_k)
        {
            *out = poly * two_to_k;
        }
    }
}

/// d = z − m and exp(d) of up to [`EXPS`] columns; behind the row's end −∞ and 0.
#[repr(align(64))]
struct Terms {
    d: [f64; EXPS],
    exps: Exps,
}

impl Terms {
    #[inline(always)]
    fn new() -> Terms {
        Terms { d: [f64::NEG_INFINITY; EXPS], exps: Exps::new() }
    }

    #[inline(always)]
    fn set<K: Transform, T: Float>(&mut self, row: &[T], t: &LogitTransform, shift: f64) {
        for (d, x) in self.d.iter_mut().zip(row) {
            *d = K::z(x.to_f64(), t) - shift;
        }
        self.d[row.len()..].fill(f64::NEG_INFINITY);
        self.exps.set(&self.d);
    }

    /// The factors of exp(d), 16 columns at a time.
    #[inline(always)]
    fn lanes(&self) -> impl Iterator<Item = (&[f64; LANES], &[f64; LANES])> {
        self.exps.poly.as_chunks().0.iter().zip(self.exps.two_to_k.as_chunks().0)
    }
}

/// Fetches what lies a row behind `part`, the next row's logits: their first reader, the maximum, has
/// little to do but to wait for memory, and the exponentials little to fetch.
#[inline(always)]
fn prefetch_next<T>(part: &[T], columns: usize) {
    fetch(part.as_ptr().wrapping_add(columns), size_of_val(part));
}

/// The largest z, and what is subtracted from every z.
#[inline(always)]
fn top<K: Transform, T: Float>(row: &[T], t: &LogitTransform) -> (f64, f64) {
    let top =
        if K::PLAIN && T::DTYPE != DType::F64 { top_f32(row) } else { top_f64::<K, T>(row, t) };
    // A row of −∞ has no maximum; any finite number keeps exp(−∞ − m) = 0.
    (top, if top == f64::NEG_INFINITY { 0.0 } else { top })
}

#[inline(always)]
fn top_f64<K: Transform, T: Float>(row: &[T], t: &LogitTransform) -> f64 {
    let mut max = [f64::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for j in 0..LANES {
            let z = K::z(block[j].to_f64(), t);
            max[j] = if z > max[j] { z } else { max[j] };
        }
    }
    for (x, max) in rest.iter().zip(&mut max) {
        let z = K::z(x.to_f64(), t);
        *max = if z > *max { z } else { *max };
    }
    let mut top = f64::NEG_INFINITY;
    for m in max {
        top = if m > top { m } else { top };
    }
    top
}

/// Maximum of a row of untransformed logits that f32 holds exactly.
#[inline(always)]
fn top_f32<T: Float>(row: &[T]) -> f64 {
    let mut max = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for j in 0..LANES {
            let z = block[j].to_f32();
            max[j] = if z > max[j] { z } else { max[j] };
        }
    }
    for (x, max) in rest.iter().zip(&mut max) {
        let z = x.to_f32();
        *max = if z > *max { z } else { *max };
    }
    let mut top = f32::NEG_INFINITY;
    for m in max {
        top = if m > top { m } else { top };
    }
    top as f64
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

/// Upstream gradients of one row's outputs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowGradient {
    pub dlogp: f64,
    pub dentropy: f64,
    pub dlse: f64,
}

impl RowGradient {
    /// The sums that [`row_gradient`] reads. Without a gradient of the entropy its mean is multiplied
    /// by 0, which matters only where it is added to another 0.
    pub fn sums(&self) -> Sums {
        let alone = self.dentropy == 0.0 && self.dlse - self.dlogp != 0.0;
        if alone { Sums::One } else { Sums::All }
    }
}

/// What turns a logit into its gradient: with d = z − m and q = exp(d)·scale, q·(b + c·d).
#[derive(Clone, Copy)]
struct Line {
    shift: f64,
    scale: f64,
    b: f64,
    c: f64,
}

/// Gradient of a row's logits, whose statistics hold the sums that `g` asks for.
pub(crate) fn row_gradient<T: Float>(
    row: &[T],
    stats: &RowStats,
    target: usize,
    t: &LogitTransform,
    g: RowGradient,
    out: &mut [T],
) {
    let shift = if stats.max == f64::NEG_INFINITY { 0.0 } else { stats.max };
    let scale = if stats.is_empty() { 0.0 } else { 1.0 / stats.sum };
    // E − z = mean(d) − d.
    let b = g.dlse - g.dlogp + g.dentropy * stats.weighted * scale;
    let line = Line { shift, scale, b, c: -g.dentropy };
    by_transform!(t, gradients(row, t, line, out));
    // The target's own logit: a + q·(b + c·d) in one expression, so that p → 1 does not cancel
    // after a rounding to T.
    let x = row[target].to_f64();
    let d = transformed(x, t) - shift;
    let q = math::exp(d) * scale;
    let dz = g.dlogp + if q == 0.0 { 0.0 } else { q * line.c.mul_add(d, b) };
    out[target] = T::from_f64(dz * dz_dx(x, t));
}

math::dispatch_simd! {
    fn gradients<K: Transform, T: Float>(
        kind: K, row: &[T], t: &LogitTransform, line: Line, out: &mut [T],
    ) = gradients_body
}

#[inline(always)]
fn gradients_body<K: Transform, T: Float>(
    _: K,
    row: &[T],
    t: &LogitTransform,
    line: Line,
    out: &mut [T],
) {
    let mut terms = Terms::new();
    for (row, out) in row.chunks(EXPS).zip(out.chunks_mut(EXPS)) {
        terms.set::<K, T>(row, t, line.shift);
        for (j, (out, x)) in out.iter_mut().zip(row).enumerate() {
            let e = terms.exps.poly[j] * terms.exps.two_to_k[j];
            let q = e * line.scale;
            let dz = if q == 0.0 { 0.0 } else { q * line.c.mul_add(terms.d[j], line.b) };
            *out = T::from_f64(dz * K::dz_dx(x.to_f64(), t));
        }
    }
}
