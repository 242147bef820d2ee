//! The truncated sum of the devices: alignment to the largest exponent, truncation, one addition.
//!
//! In units of the last kept bit, `2^(E-F)`, a term is its value times `2^(F-E)`: exact in f64,
//! and truncated there to an integer below `2^28`. Up to 33 such integers add exactly, so the
//! hardware's integer adder needs no integers here, and the loops over columns vectorize.

use super::numerics::{
    Float, Output, TileA, TileB, TileC, Truncation, f16_from_f64, f16_to_f32, power_of_two,
};

/// Exponent given to zero, below that of any product.
const ZERO_EXPONENT: i32 = -1000;

/// Exponent of a value in a format whose subnormals share `min_exponent`.
#[inline(always)]
fn exponent(x: f32, min_exponent: i32) -> i32 {
    let bits = x.to_bits() as i32;
    let field = (bits >> 23) & 0xff;
    if bits & 0x7fff_ffff == 0 { ZERO_EXPONENT } else { (field - 127).max(min_exponent) }
}

/// Truncates toward zero; the magnitude is below `2^52`.
#[inline(always)]
fn truncate(x: f64) -> f64 {
    const UNIT: f64 = (1_u64 << 52) as f64;
    let magnitude = x.abs();
    let nearest = (magnitude + UNIT) - UNIT;
    let truncated = if nearest > magnitude { nearest - 1.0 } else { nearest };
    truncated.copysign(x)
}

/// `c = c + a b` by truncated sums over blocks of k.
pub(super) fn accumulate<const K: usize>(
    truncation: &Truncation,
    a: &TileA<f32, K>,
    b: &TileB<f32, K>,
    c: &mut TileC<f32>,
) {
    let finite = a.as_flattened().iter().chain(b.as_flattened()).all(|x| x.is_finite());
    let exponents_of = |float: Float| move |x: f32| exponent(x, float.min_exponent());
    let a_exponents = a.map(|row| row.map(exponents_of(truncation.a)));
    let b_exponents = b.map(|row| row.map(exponents_of(truncation.b)));
    let wide_b: TileB<f64, K> = b.map(|row| row.map(f64::from));
    for m in 0..16 {
        for first in (0..K).step_by(truncation.block) {
            let before = c[m];
            let mut top = before.map(|x| exponent(x, truncation.output.min_exponent()));
            for k in first..first + truncation.block {
                for n in 0..8 {
                    top[n] = top[n].max(a_exponents[m][k] + b_exponents[k][n]);
                }
            }
            let units = top.map(|e| e.max(truncation.lowest_exponent) - truncation.fractional_bits);
            let scales = units.map(|unit| power_of_two(-unit));
            let mut sums: [f64; 8] =
                std::array::from_fn(|n| truncate(f64::from(before[n]) * scales[n]));
            for k in first..first + truncation.block {
                let left = f64::from(a[m][k]);
                for n in 0..8 {
                    sums[n] += truncate(left * wide_b[k][n] * scales[n]);
                }
            }
            for n in 0..8 {
                c[m][n] = truncation.output.round(sums[n] * power_of_two(units[n]));
                if !(finite && before[n].is_finite()) {
                    let naive = (first..first + truncation.block)
                        .fold(f64::from(before[n]), |sum, k| {
                            sum + f64::from(a[m][k]) * wide_b[k][n]
                        });
                    if !naive.is_finite() {
                        c[m][n] = naive as f32;
                    }
                }
            }
        }
    }
}

impl Output {
    /// Smallest exponent of the accumulators.
    const fn min_exponent(self) -> i32 {
        match self {
            Self::NearestF16 => -14,
            Self::TowardZero | Self::TowardZero13 => -126,
        }
    }

    /// A finite sum in the output format; a negative sum that vanishes gives `+0` too.
    fn round(self, sum: f64) -> f32 {
        let rounded = match self {
            Self::NearestF16 => f16_to_f32(f16_from_f64(sum)),
            Self::TowardZero => toward_zero(sum),
            Self::TowardZero13 => f32::from_bits(toward_zero(sum).to_bits() & !0x3ff),
        };
        rounded + 0.0
    }
}

/// Truncates to an f32; `2^128` and above is an infinity.
fn toward_zero(sum: f64) -> f32 {
    let nearest = sum as f32;
    if f64::from(nearest.abs()) > sum.abs() && sum.abs() < 2.0 * power_of_two(127) {
        f32::from_bits(nearest.to_bits() - 1)
    } else {
        nearest
    }
}
