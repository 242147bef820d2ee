//! The truncated sum of the devices: alignment to the largest exponent, integer addition.

use super::numerics::{
    Float, Output, TileA, TileB, TileC, Truncation, f16_from_f64, f16_to_f32, power_of_two,
};

/// Exponent given to zero, below that of any product: zeros take no part in the alignment.
const ZERO_EXPONENT: i32 = -1000;

/// A significand as an integer, and the exponent of its unit digit's power of two.
#[derive(Clone, Copy, Default)]
struct Scaled {
    significand: i32,
    exponent: i32,
}

/// Splits a value that the format holds: `x = significand * 2^(exponent - fraction_bits)`.
fn split(x: f32, fraction_bits: i32, min_exponent: i32) -> Scaled {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff == 0 {
        return Scaled { significand: 0, exponent: ZERO_EXPONENT };
    }
    let field = ((bits >> 23) & 0xff) as i32;
    let fraction = (bits & 0x7f_ffff) as i32;
    let significand = if field == 0 { fraction } else { fraction | 1 << 23 };
    let exponent = field.max(1) - 127;
    let below = (min_exponent - exponent).max(0);
    let magnitude = significand >> (23 - fraction_bits + below).min(31);
    Scaled {
        significand: if bits >> 31 == 1 { -magnitude } else { magnitude },
        exponent: exponent + below,
    }
}

/// Truncates `significand 2^-fraction` to `bits` fractional bits after a shift right by `down`.
#[inline(always)]
fn align(significand: i32, fraction: i32, bits: i32, down: i32) -> i64 {
    let shift = bits - fraction - down;
    let magnitude = i64::from(significand.unsigned_abs());
    let aligned = if shift >= 0 { magnitude << shift } else { magnitude >> (-shift).min(63) };
    if significand < 0 { -aligned } else { aligned }
}

/// `c = c + a b` by truncated sums over blocks of k.
pub(super) fn accumulate<const K: usize>(
    truncation: &Truncation,
    a: &TileA<f32, K>,
    b: &TileB<f32, K>,
    c: &mut TileC<f32>,
) {
    let finite = a.as_flattened().iter().chain(b.as_flattened()).all(|x| x.is_finite());
    let split_of =
        |float: Float| move |x: f32| split(x, float.fraction_bits(), float.min_exponent());
    let scaled_a = a.map(|row| row.map(split_of(truncation.a)));
    let scaled_b = b.map(|row| row.map(split_of(truncation.b)));
    for m in 0..16 {
        for first in (0..K).step_by(truncation.block) {
            let ks = first..first + truncation.block;
            for n in 0..8 {
                let value = c[m][n];
                let terms = ks.clone().map(|k| (scaled_a[m][k], scaled_b[k][n]));
                c[m][n] = if finite && value.is_finite() {
                    one_sum(truncation, terms, value)
                } else {
                    let naive = ks.clone().fold(f64::from(value), |sum, k| {
                        sum + f64::from(a[m][k]) * f64::from(b[k][n])
                    });
                    if naive.is_finite() { one_sum(truncation, terms, value) } else { naive as f32 }
                };
            }
        }
    }
}

/// One block of one output.
fn one_sum(
    truncation: &Truncation,
    terms: impl Iterator<Item = (Scaled, Scaled)> + Clone,
    c: f32,
) -> f32 {
    let (c_fraction, c_min) = match truncation.output {
        Output::NearestF16 => (10, -14),
        Output::TowardZero | Output::TowardZero13 => (23, -126),
    };
    let c = split(c, c_fraction, c_min);
    let largest = terms.clone().map(|(a, b)| a.exponent + b.exponent).fold(c.exponent, i32::max);
    if largest <= ZERO_EXPONENT / 2 {
        return 0.0;
    }
    let bits = truncation.fractional_bits;
    let fraction = truncation.a.fraction_bits() + truncation.b.fraction_bits();
    let mut sum = align(c.significand, c_fraction, bits, largest - c.exponent);
    for (a, b) in terms {
        let down = largest - a.exponent - b.exponent;
        sum += align(a.significand * b.significand, fraction, bits, down);
    }
    round(sum, largest - bits, truncation.output)
}

/// `sum * 2^unit` in the output format.
fn round(sum: i64, unit: i32, output: Output) -> f32 {
    match output {
        Output::NearestF16 => f16_to_f32(f16_from_f64(sum as f64 * power_of_two(unit))),
        Output::TowardZero => toward_zero(sum, unit),
        Output::TowardZero13 => f32::from_bits(toward_zero(sum, unit).to_bits() & !0x3ff),
    }
}

/// `sum * 2^unit` truncated to an f32; `2^128` and above is an infinity.
fn toward_zero(sum: i64, unit: i32) -> f32 {
    if sum == 0 {
        return 0.0;
    }
    let sign = if sum < 0 { 1 << 31 } else { 0 };
    let magnitude = sum.unsigned_abs();
    let top = 63 - magnitude.leading_zeros() as i32 + unit;
    if top > 127 {
        return f32::from_bits(sign | 0x7f80_0000);
    }
    let exponent = top.max(-126);
    let shift = unit - exponent + 23;
    let steps = if shift >= 0 { magnitude << shift } else { magnitude >> (-shift).min(63) };
    f32::from_bits(sign | ((((exponent + 126) as u32) << 23) + steps as u32))
}
