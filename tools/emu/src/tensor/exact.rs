//! Sums of products with one rounding, most of them in plain f64.
//!
//! Products are exact in f64 (at most 22 significand bits). Their sum is not always, so three
//! tests of rising cost decide, and only the last computes more than one f64 addition per product:
//!
//! 1. *Whole tile.* If all terms are multiples of `2^L` and no partial sum reaches `2^(L+53)`,
//!    every f64 addition is exact. `L` and the bound follow from the smallest and largest exponents
//!    in A, B and C. Operands within a few powers of two of each other, the common case, end here.
//! 2. *One output, f32.* With `e` a bound of the rounding error of the f64 sum `s`, the result is
//!    certain if `s - e` and `s + e` round to the same f32.
//! 3. *One output.* The terms are added as a sum of non-overlapping f64 (Shewchuk 1997), which is
//!    then rounded to odd in f64: rounding that to f32 or f16 equals rounding the exact sum.

use super::numerics::{FloatAccumulator, TileA, TileB, TileC};

/// Where the last bits of the terms are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Formats {
    /// Fraction bits of `a` and of `b`, added.
    pub product_fraction: i32,
    pub accumulator: FloatAccumulator,
}

/// f64 values that round to the accumulator format as the exact sums do.
pub(super) fn sums<const K: usize>(
    a: &TileA<f32, K>,
    b: &TileB<f32, K>,
    c: &TileC<f32>,
    formats: Formats,
) -> TileC<f64> {
    let sums = plain_sums(a, b, c);
    if additions_are_exact(a, b, c, formats) {
        return sums;
    }
    certified_sums(a, b, c, sums, formats.accumulator)
}

/// `c + a b` in f64, k ascending.
fn plain_sums<const K: usize>(a: &TileA<f32, K>, b: &TileB<f32, K>, c: &TileC<f32>) -> TileC<f64> {
    let wide_b: TileB<f64, K> = b.map(|row| row.map(f64::from));
    let mut sums = c.map(|row| row.map(f64::from));
    for m in 0..16 {
        let mut row = sums[m];
        for k in 0..K {
            let left = f64::from(a[m][k]);
            for n in 0..8 {
                row[n] += left * wide_b[k][n];
            }
        }
        sums[m] = row;
    }
    sums
}

/// Smallest and largest exponent field of the non-zero values: `(255, 0)` when all are zero.
#[inline(always)]
fn exponent_fields(values: &[f32]) -> (i32, i32) {
    let (mut low, mut high) = (255_i32, 0_i32);
    for value in values {
        let bits = value.to_bits() as i32;
        let field = ((bits >> 23) & 0xff).max(1);
        let zero = bits & 0x7fff_ffff == 0;
        low = low.min(if zero { 255 } else { field });
        high = high.max(if zero { 0 } else { field });
    }
    (low, high)
}

/// Test 1: no f64 addition of this tile rounds, whatever the order.
fn additions_are_exact<const K: usize>(
    a: &TileA<f32, K>,
    b: &TileB<f32, K>,
    c: &TileC<f32>,
    formats: Formats,
) -> bool {
    let (a_low, a_high) = exponent_fields(a.as_flattened());
    let (b_low, b_high) = exponent_fields(b.as_flattened());
    let (c_low, c_high) = exponent_fields(c.as_flattened());
    if a_high == 255 || b_high == 255 || c_high == 255 {
        return false;
    }
    let (mut low, mut high) = (i32::MAX, i32::MIN);
    if a_high > 0 && b_high > 0 {
        low = a_low + b_low - 254 - formats.product_fraction;
        high = a_high + b_high - 254 + 2;
    }
    if c_high > 0 {
        let fraction = match formats.accumulator {
            FloatAccumulator::F32 => 23,
            FloatAccumulator::F16 => 10,
        };
        low = low.min(c_low - 127 - fraction);
        high = high.max(c_high - 127 + 1);
    }
    let carries = (usize::BITS - K.leading_zeros()) as i32;
    low == i32::MAX || high + carries - low <= 53
}

/// Tests 2 and 3 for every output.
fn certified_sums<const K: usize>(
    a: &TileA<f32, K>,
    b: &TileB<f32, K>,
    c: &TileC<f32>,
    mut sums: TileC<f64>,
    accumulator: FloatAccumulator,
) -> TileC<f64> {
    let largest = |x: f32, y: f32| x.max(y.abs());
    let column_max: [f32; 8] =
        std::array::from_fn(|n| (0..K).fold(0.0, |acc, k| largest(acc, b[k][n])));
    for m in 0..16 {
        let row_max = a[m].iter().fold(0.0, |acc, &x| largest(acc, x));
        for n in 0..8 {
            let sum = sums[m][n];
            if !sum.is_finite() {
                continue;
            }
            // K additions, each off by at most 2^-53 of the sum of magnitudes; doubled for slack.
            let magnitude =
                f64::from(c[m][n].abs()) + K as f64 * f64::from(row_max) * f64::from(column_max[n]);
            let error = K as f64 * f64::EPSILON * magnitude;
            let (low, high) = ((sum - error) as f32, (sum + error) as f32);
            if accumulator == FloatAccumulator::F32 && low.to_bits() == high.to_bits() {
                continue;
            }
            let products = (0..K).map(|k| f64::from(a[m][k]) * f64::from(b[k][n]));
            sums[m][n] = sum_to_odd(products.chain([f64::from(c[m][n])]));
        }
    }
    sums
}

/// The exact sum of up to 64 finite terms, rounded to odd: truncated, and the last bit set if
/// anything was cut off.
fn sum_to_odd(terms: impl Iterator<Item = f64>) -> f64 {
    let mut parts = [0.0_f64; 64];
    let mut count = 0;
    for term in terms {
        let mut carry = term;
        let mut kept = 0;
        for i in 0..count {
            let (sum, error) = two_sum(carry, parts[i]);
            if error != 0.0 {
                parts[kept] = error;
                kept += 1;
            }
            carry = sum;
        }
        parts[kept] = carry;
        count = kept + 1;
    }
    let mut head = 0.0;
    let mut tail = 0.0;
    for &part in parts[..count].iter().rev() {
        (head, tail) = two_sum(head, part);
        if tail != 0.0 {
            break;
        }
    }
    if tail == 0.0 {
        return head;
    }
    // The parts below `tail` are too small to change its sign.
    let truncated = if (tail < 0.0) == (head < 0.0) { head.to_bits() } else { head.to_bits() - 1 };
    f64::from_bits(truncated | 1)
}

/// `a + b` rounded, and what the rounding left out, exactly (Knuth).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_rounded = sum - a;
    let a_rounded = sum - b_rounded;
    (sum, (a - a_rounded) + (b - b_rounded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_to_odd_keeps_what_f64_loses() {
        let tiny = 2.0_f64.powi(-200);
        assert_eq!(sum_to_odd([1.0, tiny, -1.0].into_iter()), tiny);
        assert_eq!(sum_to_odd([1.0, tiny].into_iter()).to_bits(), 1.0_f64.to_bits() | 1);
        assert_eq!(sum_to_odd([1.0, -tiny].into_iter()).to_bits(), 1.0_f64.to_bits() - 1);
        assert_eq!(sum_to_odd([2.0, -tiny, 3.0].into_iter()).to_bits(), 5.0_f64.to_bits() - 1);
        assert_eq!(sum_to_odd([-2.0, -tiny, -3.0].into_iter()).to_bits(), (-5.0_f64).to_bits() | 1);
        assert_eq!(sum_to_odd([1e30, 1.0, -1e30, -1.0].into_iter()), 0.0);
    }

    #[test]
    fn the_three_tests_agree_where_they_overlap() {
        // Bits of a linear congruential generator, exponents within 2^-3 .. 2^4.
        let mut state = 12345_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits((state & 0x807f_0000) | ((124 + ((state >> 8) & 7)) << 23))
        };
        for _ in 0..50 {
            let a: TileA<f32, 16> = std::array::from_fn(|_| std::array::from_fn(|_| next()));
            let b: TileB<f32, 16> = std::array::from_fn(|_| std::array::from_fn(|_| next()));
            let c: TileC<f32> = std::array::from_fn(|_| std::array::from_fn(|_| next()));
            let formats = Formats { product_fraction: 14, accumulator: FloatAccumulator::F32 };
            assert!(additions_are_exact(&a, &b, &c, formats));
            let plain = plain_sums(&a, &b, &c);
            let certified = certified_sums(&a, &b, &c, plain, FloatAccumulator::F16);
            assert_eq!(plain, certified);
        }
    }
}
