//! Elements as lanes. A row of one operand times a row of the other is [`LANES`] chains of fused
//! multiply-adds, the chain of lane `l` over the steps l, 16 + l, 32 + l, ..., and then one tree: lanes 8
//! apart are added, then 4, 2 and 1 apart. A row that ends within 16 steps is continued with zeros.
//!
//! Both operands are read as they lie in memory, a vector of neighboring steps at a time: nothing is
//! transposed. The vector width, the height of a tile and the blocking over steps change which lanes are
//! computed side by side, never a bit of any of them.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::tile::Accumulator;
#[cfg(target_arch = "x86_64")]
use crate::dtype::DType;
use crate::dtype::Float;
use crate::ops::support::math::dispatch_simd;

/// Chains of an element: one vector of 512 bits, two of 256.
pub(crate) const LANES: usize = 16;
/// Rows of the right operand that are taken side by side.
pub(crate) const COLUMNS: usize = 6;
/// Most rows of the left operand that are taken side by side. 4 x 6 accumulators of 512 bits leave 8
/// registers for the operands; with 256 bits it is 2 x 6 half elements at a time.
pub(crate) const HEIGHT: usize = 4;

/// Columns whose lanes and trees stay in registers together: 4 x 4 elements are the 16 of a tree of vectors.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const QUAD: usize = 4;

/// Stretches of rows, all equally many whole vectors of [`LANES`] steps long, and the lanes of their products.
pub(crate) struct Stretch<'s, A> {
    /// 1 to [`HEIGHT`] rows of the left operand, from the first step of the first one on.
    pub x: &'s [A],
    /// How many.
    pub height: usize,
    /// Steps from one of them to the next.
    pub apart: usize,
    /// Rows of the right operand.
    pub w: [&'s [A]; COLUMNS],
    /// Element (i, j) is lanes `(i · pitch + j) · LANES ..`.
    pub lanes: &'s mut [A],
    /// Elements from one row of lanes to the next.
    pub pitch: usize,
    /// True if the chains begin here: the lanes hold nothing yet.
    pub fresh: bool,
}

impl<'s, A> Stretch<'s, A> {
    /// One row whose chains go on.
    pub(crate) fn one(x: &'s [A], w: [&'s [A]; COLUMNS], lanes: &'s mut [A]) -> Stretch<'s, A> {
        Stretch { x, height: 1, apart: 0, w, lanes, pitch: COLUMNS, fresh: false }
    }

    /// Steps, after a look at all lengths.
    fn steps(&self) -> usize {
        let steps = self.w[0].len();
        assert!(steps.is_multiple_of(LANES) && self.w.iter().all(|w| w.len() == steps));
        assert!((1..=HEIGHT).contains(&self.height));
        assert!(self.x.len() >= (self.height - 1) * self.apart + steps);
        assert!(self.lanes.len() >= ((self.height - 1) * self.pitch + COLUMNS) * LANES);
        steps
    }
}

/// `lanes[i][j][l] = fma(x[i][step], w[j][step], lanes[i][j][l])` for all steps with l = step mod 16, in order.
pub(crate) fn carry<A: Accumulator>(stretch: Stretch<'_, A>) {
    let steps = stretch.steps();
    #[cfg(target_arch = "x86_64")]
    match x86::vectors() {
        // SAFETY: the features were detected, the lengths compared.
        Some(512) => return unsafe { x86::carry_512(stretch, steps) },
        // SAFETY: as above.
        Some(_) => return unsafe { x86::carry_256(stretch, steps) },
        None => {}
    }
    carry_each(stretch, steps);
}

/// A segment of the sums of a tile: rows of both operands, whole vectors of [`LANES`] steps long.
pub(crate) struct Pair<'s, A> {
    /// Rows of the left operand, from the first step of the first one on.
    pub x: &'s [A],
    /// Steps from one of them to the next.
    pub apart: usize,
    /// Rows of the right operand, one after another.
    pub w: &'s [A],
    /// Steps of a row.
    pub steps: usize,
}

/// Forms the sums of a tile from the first step of the first segment to the tree: `(pairs, height, columns, (sums,
/// pitch))` with 1 to [`HEIGHT`] rows and whole [`QUAD`]s of columns. Sums of a row begin `pitch` after those of
/// the one before.
pub(crate) type Finish<A> = fn(&[Pair<'_, A>], usize, usize, (&mut [A], usize));

/// Sums whose lanes never leave the 32 registers of 512 bits, if the machine has them.
pub(crate) fn in_registers() -> Option<Finish<f32>> {
    #[cfg(target_arch = "x86_64")]
    if x86::vectors() == Some(512) {
        return Some(|pairs, height, columns, (sums, pitch)| {
            assert!((1..=HEIGHT).contains(&height) && columns.is_multiple_of(QUAD));
            assert!(sums.len() >= (height - 1) * pitch + columns);
            for pair in pairs {
                assert!(pair.steps.is_multiple_of(LANES) && pair.w.len() >= columns * pair.steps);
                assert!(pair.x.len() >= (height - 1) * pair.apart + pair.steps);
            }
            for column in (0..columns).step_by(QUAD) {
                let sums = sums[column..].as_mut_ptr();
                // SAFETY: the features were detected, the lengths compared.
                unsafe { x86::finish_512(pairs, height, column, sums, pitch) };
            }
        });
    }
    None
}

/// [`carry`] in portable code, row by row.
fn carry_each<A: Accumulator>(stretch: Stretch<'_, A>, steps: usize) {
    for i in 0..stretch.height {
        let x = stretch.x[i * stretch.apart..][..steps].as_chunks::<LANES>().0;
        let lanes = &mut stretch.lanes[i * stretch.pitch * LANES..][..COLUMNS * LANES];
        if stretch.fresh {
            lanes.fill(A::ZERO);
        }
        for (w, lanes) in stretch.w.iter().zip(lanes.as_chunks_mut::<LANES>().0) {
            let mut c = *lanes;
            for (x, w) in x.iter().zip(w.as_chunks::<LANES>().0) {
                for l in 0..LANES {
                    c[l] = x[l].fma(w[l], c[l]);
                }
            }
            *lanes = c;
        }
    }
}

/// Carries one row of lanes, [`COLUMNS`] elements, through rows of 16-bit numbers as they lie in memory. Returns
/// false, and does nothing, where the machine has no vectors for that or the types are others.
pub(crate) fn carry_narrow<T: Float, A: Accumulator>(
    x: &[A],
    w: [&[T]; COLUMNS],
    lanes: &mut [A],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if A::DTYPE == DType::F32 && matches!(T::DTYPE, DType::Bf16 | DType::F16) {
        assert!(x.len().is_multiple_of(LANES) && w.iter().all(|w| w.len() == x.len()));
        assert!(lanes.len() >= COLUMNS * LANES);
        let (x, lanes) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(lanes));
        let w = w.map(|w| w.as_ptr().cast::<u16>());
        // SAFETY: the features were detected, the lengths compared.
        unsafe {
            match (x86::vectors(), T::DTYPE) {
                (Some(512), DType::Bf16) => x86::carry_bf16_512(x, w, lanes),
                (Some(512), _) => x86::carry_f16_512(x, w, lanes),
                (Some(_), DType::Bf16) => x86::carry_bf16_256(x, w, lanes),
                (Some(_), _) => x86::carry_f16_256(x, w, lanes),
                (None, _) => return false,
            }
        }
        return true;
    }
    let _ = (x, w, lanes);
    false
}

/// The tree over an element's lanes.
#[inline(always)]
fn tree<A: Accumulator>(lanes: &[A; LANES]) -> A {
    let mut sums = *lanes;
    for apart in [8, 4, 2, 1] {
        for l in 0..apart {
            sums[l] = sums[l].plus(sums[l + apart]);
        }
    }
    sums[0]
}

dispatch_simd!(
    /// `sums[i]` is the tree over lanes `16 · i ..`.
    pub(crate) fn sum_each<A: Accumulator>(lanes: &[A], sums: &mut [A]) = sum_each_body
);

#[inline(always)]
fn sum_each_body<A: Accumulator>(lanes: &[A], sums: &mut [A]) {
    for (lanes, sum) in lanes.as_chunks::<LANES>().0.iter().zip(sums) {
        *sum = tree(lanes);
    }
}

/// [`sum_each`] for f32, many elements at a time where the machine has vectors.
pub(crate) fn sum_f32(lanes: &[f32], sums: &mut [f32]) {
    assert!(lanes.len() == LANES * sums.len());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the features were detected; there are lanes for every sum.
    let done = unsafe {
        match x86::vectors() {
            Some(512) => x86::sum_512(lanes, sums),
            Some(_) => x86::sum_256(lanes, sums),
            None => 0,
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    sum_each(&lanes[LANES * done..], &mut sums[done..]);
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Vector;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{bf16, f16};

    fn value(i: usize) -> f64 {
        ((i * 7919) % 2003) as f64 / 1001.0 - 1.0
    }

    /// Every height and length with every kind of vectors, to the last bit of the portable code.
    fn every_path_carries<A: Accumulator>() {
        let numbers = |n: usize, k: usize| -> Vec<A> {
            (0..n).map(|i| A::from_f64(value(i * 31 + k))).collect()
        };
        for (height, steps) in [(1, 0), (1, 16), (1, 80), (2, 48), (3, 32), (4, 16), (4, 512)] {
            let apart = steps + height % 2;
            let (x, w) = (numbers(height * apart, 5), numbers(COLUMNS * steps, 77));
            let w = std::array::from_fn(|j| &w[j * steps..][..steps]);
            for (pitch, fresh) in [(COLUMNS, true), (COLUMNS, false), (2 * COLUMNS + 1, false)] {
                let start = numbers(height * pitch * LANES, 9);
                let run = |by: &dyn Fn(Stretch<'_, A>)| {
                    let mut lanes = start.clone();
                    by(Stretch { x: &x, height, apart, w, lanes: &mut lanes, pitch, fresh });
                    lanes
                };
                let want = run(&|stretch| carry_each(stretch, steps));
                assert!(run(&carry) == want, "{height} {steps} {pitch} {fresh}");
                #[cfg(target_arch = "x86_64")]
                if x86::vectors().is_some() {
                    // SAFETY: the features were detected, the lengths are right.
                    let got = run(&|stretch| unsafe { x86::carry_256(stretch, steps) });
                    assert!(got == want, "{height} {steps} {pitch} {fresh}");
                }
            }
        }
    }

    #[test]
    fn every_path_carries_the_same_chains() {
        every_path_carries::<f32>();
        every_path_carries::<f64>();
    }

    #[test]
    fn every_path_adds_the_same_tree() {
        for count in [0, 1, 7, 8, 15, 16, 17, 31, 100] {
            let lanes: Vec<f32> = (0..LANES * count).map(|i| value(i * 3 + 1) as f32).collect();
            let mut want = vec![0f32; count];
            for (lanes, sum) in lanes.as_chunks::<LANES>().0.iter().zip(&mut want) {
                let [a, b, c, d] = [0, 2, 1, 3]
                    .map(|l| (lanes[l] + lanes[l + 8]) + (lanes[l + 4] + lanes[l + 12]));
                *sum = (a + b) + (c + d);
            }
            let mut got = vec![0f32; count];
            sum_f32(&lanes, &mut got);
            assert_eq!(got, want);
            #[cfg(target_arch = "x86_64")]
            if x86::vectors().is_some() {
                // SAFETY: the features were detected; there are lanes for every sum.
                let done = unsafe { x86::sum_256(&lanes, &mut got) };
                assert_eq!((done, &got[..done]), (count / 8 * 8, &want[..done]));
            }
        }
    }

    /// Sums that never left the registers, beside chains in memory and their trees.
    #[test]
    fn sums_in_registers_have_the_same_bits() {
        let Some(finish) = in_registers() else { return };
        const COUNT: usize = 2 * QUAD;
        let numbers =
            |n: usize, k: usize| (0..n).map(|i| value(i * 31 + k) as f32).collect::<Vec<_>>();
        for (height, lengths) in
            [(1, &[16][..]), (2, &[96, 16]), (3, &[640, 0, 32]), (4, &[]), (4, &[48])]
        {
            let stored: Vec<_> = (lengths.iter())
                .map(|&n| (numbers(height * (n + 16), n), numbers(COUNT * n, n + 5), n))
                .collect();
            let pairs: Vec<_> =
                (stored.iter()).map(|(x, w, n)| Pair { x, apart: n + 16, w, steps: *n }).collect();
            let pitch = COUNT + 3;
            let mut got = vec![7.0; height * pitch];
            finish(&pairs, height, COUNT, (&mut got, pitch));
            for (i, row) in got.chunks_exact(pitch).enumerate() {
                for (j, &sum) in row[..COUNT].iter().enumerate() {
                    let mut lanes = [0.0; LANES];
                    for &Pair { x, apart, w, steps } in &pairs {
                        for step in 0..steps {
                            let (x, w) = (x[i * apart + step], w[j * steps + step]);
                            lanes[step % LANES] = x.mul_add(w, lanes[step % LANES]);
                        }
                    }
                    assert_eq!(sum, tree(&lanes), "{height} {lengths:?} {i} {j}");
                }
                assert_eq!(row[COUNT..], [7.0; 3]);
            }
        }
    }

    /// Rows of 16-bit numbers as they lie, beside their values in f32.
    fn narrow_rows_carry<T: Float>() {
        for steps in [0, 16, 112] {
            let x: Vec<f32> = (0..steps).map(|i| value(i * 31 + 5) as f32).collect();
            let w: Vec<T> = (0..COLUMNS * steps).map(|i| T::from_f64(value(i + 3))).collect();
            let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
            let start: Vec<f32> = (0..COLUMNS * LANES).map(|i| value(i * 7) as f32).collect();
            let (mut want, mut got) = (start.clone(), start.clone());
            let rows = std::array::from_fn(|j| &wide[j * steps..][..steps]);
            carry_each(Stretch::one(&x, rows, &mut want), steps);
            let rows = std::array::from_fn(|j| &w[j * steps..][..steps]);
            let carried = carry_narrow(&x, rows, &mut got);
            assert!(if carried { got == want } else { got == start });
            #[cfg(target_arch = "x86_64")]
            if x86::vectors().is_some() {
                assert!(carried);
                let (mut got, rows) = (start, rows.map(|w| w.as_ptr().cast()));
                // SAFETY: the features were detected; rows and lanes are as long as they should be.
                unsafe {
                    match T::DTYPE {
                        DType::Bf16 => x86::carry_bf16_256(&x, rows, &mut got),
                        _ => x86::carry_f16_256(&x, rows, &mut got),
                    }
                }
                assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn rows_of_16_bits_give_the_bits_of_their_values() {
        narrow_rows_carry::<bf16>();
        narrow_rows_carry::<f16>();
    }
}
