//! The arithmetic of attention: dot products, softmax and weighted sums in lanes, with one fixed
//! order each.

use super::cpu::Rows;
use crate::dtype::Float;
use crate::ops::support::math::{exp, exp_f32};

/// Lanes of a partial sum: lane `i` of a dot product holds the elements `d` with d mod 16 = i.
pub(super) const LANES: usize = 16;
/// Rows summed before they join a total; bounds the rounding error of long sums.
pub(super) const BLOCK: usize = 64;
/// Rows whose dot products are formed together.
pub(super) const GROUP: usize = 8;

/// The type sums are kept in.
pub(super) trait Accumulator: Float {
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
    /// [`fold`] of each of four.
    #[inline(always)]
    fn fold4(x: [[Self; LANES]; 4]) -> [Self; 4] {
        x.map(fold)
    }
}

macro_rules! lane {
    ($t:ty, $of:ident, $exp:path $(, $fold4:path)?) => {
        impl Accumulator for $t {
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
            $(
                #[cfg(target_arch = "x86_64")]
                #[inline(always)]
                fn fold4(x: [[Self; LANES]; 4]) -> [Self; 4] {
                    $fold4(x)
                }
            )?
        }
    };
}
lane!(f32, to_f32, exp_f32, fold4_sse);
lane!(f64, to_f64, exp);

/// Sum of the lanes: halves onto each other, four times.
#[inline(always)]
fn fold<A: Accumulator>(x: [A; LANES]) -> A {
    let x: [A; 4] = std::array::from_fn(|i| x[i].add(x[i + 8]).add(x[i + 4].add(x[i + 12])));
    x[0].add(x[2]).add(x[1].add(x[3]))
}

/// [`fold`] of four at a time, the same additions. LLVM 21 builds the transposition from blends
/// and gathers (107 ns for 24 rows of 16); written out it takes 58 ns. SSE2 belongs to the target.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fold4_sse(x: [[f32; LANES]; 4]) -> [f32; 4] {
    use std::arch::x86_64::*;
    // SAFETY: the intrinsics need SSE only, which every x86_64 machine has; the transmutes are
    // between arrays of 16 or 4 floats and vectors of 4.
    unsafe {
        let v: [[__m128; 4]; 4] = std::mem::transmute(x);
        let mut quads = [_mm_setzero_ps(); 4];
        for j in 0..4 {
            quads[j] = _mm_add_ps(_mm_add_ps(v[j][0], v[j][2]), _mm_add_ps(v[j][1], v[j][3]));
        }
        let [a, b, c, d] = quads;
        let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        std::mem::transmute(_mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)))
    }
}

#[inline(always)]
fn fma<T: Float, A: Accumulator>(a: &[A; LANES], b: &[T; LANES], c: [A; LANES]) -> [A; LANES] {
    let mut r = c;
    for l in 0..LANES {
        r[l] = a[l].fma(A::of(b[l]), c[l]);
    }
    r
}

/// out[j] = x · rows[first + j] for `n` rows; `out` is whole groups, what lies behind `n` in the
/// last is unspecified.
#[inline(always)]
pub(super) fn dots<T: Float, A: Accumulator>(
    x: &[[A; LANES]],
    rows: Rows<'_, T>,
    first: usize,
    n: usize,
    out: &mut [A],
) {
    assert!(n > 0 && first + n <= rows.len && x.len() == rows.chunks);
    let (groups, _) = out.as_chunks_mut::<GROUP>();
    for (group, out) in groups.iter_mut().take(n.div_ceil(GROUP)).enumerate() {
        let start = first + group * GROUP;
        let last = first + n - 1;
        let mut acc = [[A::ZERO; LANES]; GROUP];
        for (c, x) in x.iter().enumerate() {
            for (j, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the row is at most `last` and c is one of its chunks; checked above.
                let [row] = unsafe { rows.chunks_at((start + j).min(last), c) };
                *acc = fma(x, row, *acc);
            }
        }
        let [a, b, c, d, e, f, g, h] = acc;
        out[..4].copy_from_slice(&A::fold4([a, b, c, d]));
        out[4..].copy_from_slice(&A::fold4([e, f, g, h]));
    }
}

/// total += Σ_j weights[j · step] · rows[first + j] for `n` rows, in blocks; a block is the sum of
/// its even and its odd rows.
#[inline(always)]
pub(super) fn combine<T: Float, A: Accumulator>(
    weights: &[A],
    step: usize,
    rows: Rows<'_, T>,
    first: usize,
    n: usize,
    total: &mut [[A; LANES]],
) {
    assert_eq!(total.len(), rows.chunks);
    for start in (0..n).step_by(BLOCK) {
        let weights = (&weights[start * step..], step);
        let range = (first + start, BLOCK.min(n - start));
        let (fours, rest) = total.as_chunks_mut::<4>();
        let mut c = 0;
        for four in fours {
            combine_chunks(weights, rows, range, c, four);
            c += 4;
        }
        for one in rest.as_chunks_mut::<1>().0 {
            combine_chunks(weights, rows, range, c, one);
            c += 1;
        }
    }
}

/// The chunks `c..c + C` of one block.
#[inline(always)]
fn combine_chunks<T: Float, A: Accumulator, const C: usize>(
    (weights, step): (&[A], usize),
    rows: Rows<'_, T>,
    (first, n): (usize, usize),
    c: usize,
    total: &mut [[A; LANES]; C],
) {
    let mut even = [[A::ZERO; LANES]; C];
    let mut odd = even;
    assert!(n > 0 && (n - 1) * step < weights.len() && first + n <= rows.len);
    assert!(c + C <= rows.chunks);
    // SAFETY: j < n, so the row is one of `rows`, its chunks c..c + C exist, and the weight is
    // inside `weights`; all checked just above.
    let at = |j: usize| unsafe { (*weights.get_unchecked(j * step), rows.chunks_at(first + j, c)) };
    for j in 0..n / 2 {
        add_row(at(2 * j), &mut even);
        add_row(at(2 * j + 1), &mut odd);
    }
    if n % 2 == 1 {
        add_row(at(n - 1), &mut even);
    }
    for i in 0..C {
        for l in 0..LANES {
            total[i][l] = total[i][l].add(even[i][l].add(odd[i][l]));
        }
    }
}

/// acc += w · row.
#[inline(always)]
fn add_row<T: Float, A: Accumulator, const C: usize>(
    (w, row): (A, &[[T; LANES]; C]),
    acc: &mut [[A; LANES]; C],
) {
    for i in 0..C {
        acc[i] = fma(&[w; LANES], &row[i], acc[i]);
    }
}

/// The first `n` s ← exp(scale·s − m) with m the largest scaled score, the rest of the last lanes
/// 0; returns m and the sum, the sum in f64 with key j in lane j mod 16.
#[inline(always)]
pub(super) fn softmax<A: Accumulator>(scores: &mut [A], n: usize, scale: A) -> (A, f64) {
    // Elementwise passes run over flat slices, reductions over lanes: LLVM vectorizes each so.
    let scores = &mut scores[..n.next_multiple_of(LANES)];
    for s in scores.iter_mut() {
        *s = s.mul(scale);
    }
    scores[n..].fill(A::LOWEST);
    let mut lanes = [A::LOWEST; LANES];
    for s in scores.as_chunks::<LANES>().0 {
        for l in 0..LANES {
            lanes[l] = s[l].larger(lanes[l]);
        }
    }
    let mut largest = lanes[0];
    for lane in lanes {
        largest = lane.larger(largest);
    }
    for s in scores.iter_mut() {
        *s = s.sub(largest).exp();
    }
    let mut sums = [0f64; LANES];
    for s in scores.as_chunks::<LANES>().0 {
        for l in 0..LANES {
            sums[l] += s[l].to_f64();
        }
    }
    (largest, fold(sums))
}

/// Given unnormalized probabilities p with inverse sum `inverse` and dp: p ← p·inverse and
/// dp ← scale·p·(dp − Σ p·dp).
#[inline(always)]
pub(super) fn softmax_bwd<A: Accumulator>(
    p: &mut [A],
    dp: &mut [A],
    n: usize,
    inverse: f64,
    scale: A,
) {
    let whole = n.next_multiple_of(LANES);
    // What lies behind n is unspecified in dp and 0 in p: cleared, so that 0 · 0 is added.
    dp[n..whole].fill(A::ZERO);
    let (p, dp) = (&mut p[..whole], &mut dp[..whole]);
    for p in p.iter_mut() {
        *p = A::from_f64(p.to_f64() * inverse);
    }
    let mut sums = [0f64; LANES];
    for (p, dp) in p.as_chunks::<LANES>().0.iter().zip(dp.as_chunks::<LANES>().0) {
        for l in 0..LANES {
            sums[l] = p[l].to_f64().mul_add(dp[l].to_f64(), sums[l]);
        }
    }
    let delta = fold(sums);
    for (p, dp) in p.iter().zip(dp) {
        *dp = A::from_f64(dp.to_f64() - delta).mul(*p).mul(scale);
    }
}

/// The row `x` in lanes, zeros behind its end.
#[inline(always)]
pub(super) fn load<T: Float, A: Accumulator>(x: &[T], lanes: &mut [[A; LANES]]) {
    let (whole, rest) = x.as_chunks::<LANES>();
    for (x, lanes) in whole.iter().zip(&mut *lanes) {
        for l in 0..LANES {
            lanes[l] = A::of(x[l]);
        }
    }
    if !rest.is_empty() {
        let last = &mut lanes[whole.len()];
        *last = [A::ZERO; LANES];
        last.iter_mut().zip(rest).for_each(|(lane, x)| *lane = A::of(*x));
    }
}

/// row ← factor · total, rounded once.
#[inline(always)]
pub(super) fn store<T: Float, A: Accumulator>(total: &[[A; LANES]], factor: f64, row: &mut [T]) {
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for (row, total) in whole.iter_mut().zip(total) {
        for l in 0..LANES {
            row[l] = T::from_f64(total[l].to_f64() * factor);
        }
    }
    for (x, t) in rest.iter_mut().zip(total.last().into_iter().flatten()) {
        *x = T::from_f64(t.to_f64() * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector fold is the portable one bit for bit.
    #[test]
    fn folds_agree() {
        let mut rng = crate::rng::Rng::new(1, crate::rng::Purpose::User, [0; 3]);
        for _ in 0..1000 {
            let mut x = [[0f32; LANES]; 4];
            x.as_flattened_mut().iter_mut().for_each(|x| *x = rng.normal() as f32);
            let got = <f32 as Accumulator>::fold4(x);
            for j in 0..4 {
                assert_eq!(got[j].to_bits(), fold(x[j]).to_bits());
            }
        }
    }
}
