//! The arithmetic of attention: dot products, softmax and weighted sums in lanes, with one fixed
//! order each.

use super::Rows;
use crate::cpu::math::{dispatch_simd, exp, exp_f32};
use crate::dtype::Float;

/// Lanes of a partial sum: lane `i` of a dot product holds the elements `d` with d mod 16 = i.
pub(super) const LANES: usize = 16;
/// Rows summed before they join a total; bounds the rounding error of long sums.
pub(super) const BLOCK: usize = 64;
/// Rows whose dot products are formed together.
const GROUP: usize = 8;

/// The type sums are kept in.
pub(super) trait Lane: Float {
    const ZERO: Self;
    /// Below every score.
    const LOWEST: Self;
    fn of<T: Float>(x: T) -> Self;
    /// self · b + c, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn larger(self, b: Self) -> Self;
    fn exp(self) -> Self;
}

macro_rules! lane {
    ($t:ty, $of:ident, $exp:path) => {
        impl Lane for $t {
            const ZERO: $t = 0.0;
            const LOWEST: $t = <$t>::NEG_INFINITY;
            #[inline(always)]
            fn of<T: Float>(x: T) -> $t {
                x.$of()
            }
            #[inline(always)]
            fn fma(self, b: $t, c: $t) -> $t {
                self.mul_add(b, c)
            }
            #[inline(always)]
            fn add(self, b: $t) -> $t {
                self + b
            }
            #[inline(always)]
            fn sub(self, b: $t) -> $t {
                self - b
            }
            #[inline(always)]
            fn mul(self, b: $t) -> $t {
                self * b
            }
            #[inline(always)]
            fn larger(self, b: $t) -> $t {
                if self > b { self } else { b }
            }
            #[inline(always)]
            fn exp(self) -> $t {
                $exp(self)
            }
        }
    };
}
lane!(f32, to_f32, exp_f32);
lane!(f64, to_f64, exp);

dispatch_simd! {
    /// out[j] = x · rows[first + j].
    pub(super) fn dots<T: Float, A: Lane>(x: &[[A; LANES]], rows: Rows<'_, T>, first: usize, out: &mut [A]) = dots_body
}

#[inline(always)]
fn dots_body<T: Float, A: Lane>(x: &[[A; LANES]], rows: Rows<'_, T>, first: usize, out: &mut [A]) {
    for (group, out) in out.chunks_mut(GROUP).enumerate() {
        let (first, last) = (first + group * GROUP, out.len() - 1);
        let mut acc = [[A::ZERO; LANES]; GROUP];
        for (j, acc) in acc.iter_mut().enumerate() {
            let row = rows.row(first + j.min(last));
            for (x, row) in x.iter().zip(row) {
                for l in 0..LANES {
                    acc[l] = x[l].fma(A::of(row[l]), acc[l]);
                }
            }
        }
        let sums: [A; GROUP] = std::array::from_fn(|j| fold(acc[j]));
        out.copy_from_slice(&sums[..out.len()]);
    }
}

/// Sum of the lanes: halves onto each other, four times.
#[inline(always)]
fn fold<A: Lane>(x: [A; LANES]) -> A {
    let x: [A; 8] = std::array::from_fn(|i| x[i].add(x[i + 8]));
    let x: [A; 4] = std::array::from_fn(|i| x[i].add(x[i + 4]));
    x[0].add(x[2]).add(x[1].add(x[3]))
}

dispatch_simd! {
    /// total += Σ_j weights[j · step] · rows[first + j] for `n` rows, in blocks; a block is the sum
    /// of its even and its odd rows.
    pub(super) fn combine<T: Float, A: Lane>(weights: &[A], step: usize, rows: Rows<'_, T>, first: usize, n: usize, total: &mut [[A; LANES]]) = combine_body
}

#[inline(always)]
fn combine_body<T: Float, A: Lane>(
    weights: &[A],
    step: usize,
    rows: Rows<'_, T>,
    first: usize,
    n: usize,
    total: &mut [[A; LANES]],
) {
    for start in (0..n).step_by(BLOCK) {
        let end = n.min(start + BLOCK);
        for (c, total) in total.iter_mut().enumerate() {
            let mut acc = [[A::ZERO; LANES]; 2];
            for j in start..end {
                let (w, row) = (weights[j * step], &rows.row(first + j)[c]);
                let acc = &mut acc[j % 2];
                for l in 0..LANES {
                    acc[l] = w.fma(A::of(row[l]), acc[l]);
                }
            }
            for l in 0..LANES {
                total[l] = total[l].add(acc[0][l].add(acc[1][l]));
            }
        }
    }
}

dispatch_simd! {
    /// s ← exp(scale·s − m) with m the largest scaled score; returns m and the sum of s, the sum
    /// in f64 with key j in lane j mod 16.
    pub(super) fn softmax<A: Lane>(scores: &mut [A], scale: A) -> (A, f64) = softmax_body
}

#[inline(always)]
fn softmax_body<A: Lane>(scores: &mut [A], scale: A) -> (A, f64) {
    let mut largest = A::LOWEST;
    for s in scores.iter_mut() {
        *s = s.mul(scale);
        largest = s.larger(largest);
    }
    let mut sums = [0f64; LANES];
    for chunk in scores.chunks_mut(LANES) {
        for (s, sum) in chunk.iter_mut().zip(&mut sums) {
            *s = s.sub(largest).exp();
            *sum += s.to_f64();
        }
    }
    (largest, fold(sums))
}

dispatch_simd! {
    /// Given unnormalised probabilities p with inverse sum `inverse` and dp: p ← p·inverse and
    /// dp ← scale·p·(dp − Σ p·dp).
    pub(super) fn softmax_bwd<A: Lane>(p: &mut [A], dp: &mut [A], inverse: f64, scale: A) = softmax_bwd_body
}

#[inline(always)]
fn softmax_bwd_body<A: Lane>(p: &mut [A], dp: &mut [A], inverse: f64, scale: A) {
    let mut sums = [0f64; LANES];
    for (p, dp) in p.chunks_mut(LANES).zip(dp.chunks(LANES)) {
        for ((p, dp), sum) in p.iter_mut().zip(dp).zip(&mut sums) {
            *p = A::from_f64(p.to_f64() * inverse);
            *sum = p.to_f64().mul_add(dp.to_f64(), *sum);
        }
    }
    let delta = fold(sums);
    for (p, dp) in p.iter().zip(dp) {
        *dp = A::from_f64(dp.to_f64() - delta).mul(*p).mul(scale);
    }
}

dispatch_simd! {
    /// The row `x` in lanes, zeros behind its end.
    pub(super) fn load<T: Float, A: Lane>(x: &[T], lanes: &mut [[A; LANES]]) = load_body
}

#[inline(always)]
fn load_body<T: Float, A: Lane>(x: &[T], lanes: &mut [[A; LANES]]) {
    for (x, lanes) in x.chunks(LANES).zip(lanes) {
        *lanes = [A::ZERO; LANES];
        lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane = A::of(*x));
    }
}

dispatch_simd! {
    /// row ← factor · total, rounded once.
    pub(super) fn store<T: Float, A: Lane>(total: &[[A; LANES]], factor: f64, row: &mut [T]) = store_body
}

#[inline(always)]
fn store_body<T: Float, A: Lane>(total: &[[A; LANES]], factor: f64, row: &mut [T]) {
    for (row, total) in row.chunks_mut(LANES).zip(total) {
        row.iter_mut().zip(total).for_each(|(x, t)| *x = T::from_f64(t.to_f64() * factor));
    }
}
