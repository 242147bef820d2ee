//! Element formats of the tensor cores, and the arithmetic of one output element.
//!
//! A tensor core computes `d = c + sum a[k] b[k]` as *one* fused sum, not as a chain of rounded
//! additions. [`Numerics`] chooses the model of that sum:
//!
//! | mode | products | sum | result |
//! |---|---|---|---|
//! | [`Numerics::Exact`] | exact | exact over all k of the instruction | rounded once to nearest even |
//! | [`Numerics::Ampere`] | exact | blocks of 16 bytes of k; each truncated to 24 fractional bits | toward zero |
//! | [`Numerics::Hopper`] | exact | all k in one block; truncated to 25 fractional bits | toward zero |
//!
//! `Exact` is what a kernel is checked against: it has no error but the last rounding. The other
//! two reproduce what was measured on the devices (MMA-Sim, arXiv 2511.10909; Khattak and
//! Mikaitis, arXiv 2512.07004), so that a test can show that the kernel's tolerance covers them:
//! truncation pulls long sums toward zero, which no rounding to nearest does.
//!
//! # Truncated sums
//!
//! Every term is a significand times a power of two: `a b` has the significand product in
//! `[1, 4)`, not normalized, and the sum of the two exponents; `c` has its own. The largest
//! exponent `E` is found, every term is truncated toward zero to a multiple of `2^(E-F)`, and
//! those multiples are added as integers. Subnormal operands have the smallest normal exponent of
//! their format; `E` is at least -132 (Ampere) or -133 (Hopper) for f32 results, -20 or -21 for
//! f16 results.
//!
//! | operands | instruction | mode | F | k per sum | result |
//! |---|---|---|---|---|---|
//! | bf16, f16 | `mma` | Ampere | 24 | 8 | f32 toward zero, f16 to nearest even |
//! | tf32 | `mma` | Ampere | 24 | 4 | f32 toward zero |
//! | fp8 | `mma` | Ampere (Ada) | 13 | 16 | f32 with 13 fractional bits toward zero, f16 to nearest even |
//! | bf16, f16, tf32 | `mma`, `wgmma` | Hopper | 25 | all | f32 toward zero, f16 to nearest even |
//! | fp8 | `wgmma` | Hopper | 13 | all | f32 with 13 fractional bits toward zero, f16 to nearest even |
//! | fp8 | `mma` | Hopper | 25 | 16 | operands widened to f16, then as f16; assumed, not measured |
//!
//! In every mode a NaN result is `0x7fffffff` (f32) or `0x7fff` (f16), infinities follow IEEE 754,
//! a magnitude of `2^128` or more becomes an infinity, and a sum of zero is `+0`. The truncated
//! sums are checked against 680 results of MMA-Sim.

use super::{exact, fused};

/// How the products of an output element are summed; see the module's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numerics {
    /// The exact sum, rounded once to nearest even.
    #[default]
    Exact,
    /// Truncated sums of compute capability 8.0; of 8.9 for fp8.
    Ampere,
    /// Truncated sums of compute capability 9.0.
    Hopper,
}

/// Which instruction computes: fp8 sums differ between the two on Hopper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `mma.sync`.
    Sync,
    /// `wgmma.mma_async`.
    Wgmma,
}

/// A floating-point operand format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 8 exponent bits, 7 fraction bits.
    Bf16,
    /// 5 exponent bits, 10 fraction bits.
    F16,
    /// The upper 19 bits of an f32: 8 exponent bits, 10 fraction bits. The lower 13 are ignored.
    Tf32,
    /// 4 exponent bits of bias 7, 3 fraction bits, no infinity; `S.1111.111` is NaN.
    E4m3,
    /// 5 exponent bits, 2 fraction bits.
    E5m2,
}

/// Format of a floating-point accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatAccumulator {
    /// One value per register.
    F32,
    /// Two values per register.
    F16,
}

impl Float {
    /// Bits an element takes in a register or in memory.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bf16 | Self::F16 => 16,
            Self::Tf32 => 32,
            Self::E4m3 | Self::E5m2 => 8,
        }
    }

    /// Fraction bits of the significand.
    #[must_use]
    pub const fn fraction_bits(self) -> i32 {
        match self {
            Self::Bf16 => 7,
            Self::F16 | Self::Tf32 => 10,
            Self::E4m3 => 3,
            Self::E5m2 => 2,
        }
    }

    /// Exponent of the smallest normal number, which subnormals share.
    #[must_use]
    pub const fn min_exponent(self) -> i32 {
        match self {
            Self::Bf16 | Self::Tf32 => -126,
            Self::F16 | Self::E5m2 => -14,
            Self::E4m3 => -6,
        }
    }

    /// The value of the low [`Float::bits`] bits of `raw`; every format fits an f32 exactly.
    #[inline(always)]
    #[must_use]
    pub fn decode(self, raw: u32) -> f32 {
        match self {
            Self::Bf16 => f32::from_bits(raw << 16),
            Self::F16 => f16_to_f32(raw as u16),
            Self::Tf32 => f32::from_bits(raw & 0xffff_e000),
            Self::E4m3 => e4m3_to_f32(raw as u8),
            Self::E5m2 => f16_to_f32((raw << 8) as u16),
        }
    }
}

/// Value of an f16: the exponent is rebased by a multiplication, which is exact for subnormals too.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(raw: u16) -> f32 {
    let raw = u32::from(raw);
    let magnitude = (raw & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = magnitude | 0x7f80_0000;
    let bits = if magnitude >= 0x7c00 << 13 { special } else { finite };
    f32::from_bits(bits | (raw & 0x8000) << 16)
}

/// Value of an e4m3, laid out so that the same rebasing applies: bias 7 against 127.
#[inline(always)]
fn e4m3_to_f32(raw: u8) -> f32 {
    let raw = u32::from(raw);
    let magnitude = (raw & 0x7f) << 20;
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 120) << 23)).to_bits();
    let bits = if raw & 0x7f == 0x7f { 0x7fff_ffff } else { finite };
    f32::from_bits(bits | (raw & 0x80) << 24)
}

/// Nearest f16, ties to even, from a value that was rounded at most to odd before; NaN is `0x7fff`.
#[must_use]
pub fn f16_from_f64(x: f64) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = x.abs();
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    let exponent = (((magnitude.to_bits() >> 52) as i32) - 1023).max(-14);
    let steps = (magnitude * power_of_two(10 - exponent)).round_ties_even();
    sign | ((((exponent + 14) as u32) << 10) + steps as u32) as u16
}

/// `2^e` for `-1022 <= e <= 1023`.
pub(super) fn power_of_two(e: i32) -> f64 {
    debug_assert!((-1022..=1023).contains(&e));
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// Bits of an f32 result: every NaN is the canonical one.
#[inline(always)]
#[must_use]
pub fn f32_result(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// 16 rows of the left operand, `[m][k]`.
pub type TileA<T, const K: usize> = [[T; K]; 16];
/// 8 columns of the right operand, `[k][n]`.
pub type TileB<T, const K: usize> = [[T; 8]; K];
/// 16 x 8 accumulators, `[m][n]`.
pub type TileC<T> = [[T; 8]; 16];

/// The arithmetic of one 16 x 8 x K product: formats and model of the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Model of the sum.
    pub numerics: Numerics,
    /// The instruction that computes.
    pub unit: Unit,
    /// Format of the left operand.
    pub a: Float,
    /// Format of the right operand.
    pub b: Float,
    /// Format of the accumulators.
    pub accumulator: FloatAccumulator,
}

/// Rounding of a truncated sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// f32 toward zero.
    TowardZero,
    /// f32 toward zero with 13 fraction bits.
    TowardZero13,
    /// f16 to nearest even.
    NearestF16,
}

/// Parameters of a truncated sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truncation {
    /// Fractional bits below the largest exponent.
    pub fractional_bits: i32,
    /// Exponent that a sum is aligned to at least: that of its zeros.
    pub lowest_exponent: i32,
    /// Values of k in one sum.
    pub block: usize,
    /// Formats the operands have inside the unit.
    pub a: Float,
    pub b: Float,
    pub output: Output,
}

impl Product {
    /// `c = c + a b`, all values exact in f32; f16 accumulators hold f16 values.
    pub fn accumulate<const K: usize>(
        &self,
        a: &TileA<f32, K>,
        b: &TileB<f32, K>,
        c: &mut TileC<f32>,
    ) {
        if let Some(truncation) = self.truncation(K) {
            fused::accumulate(&truncation, a, b, c);
            return;
        }
        let formats = exact::Formats {
            product_fraction: self.a.fraction_bits() + self.b.fraction_bits(),
            accumulator: self.accumulator,
        };
        let sums = exact::sums(a, b, c, formats);
        for (row, sum) in c.iter_mut().zip(&sums) {
            for n in 0..8 {
                // Adding +0 turns the -0 of an all-negative-zero sum into the +0 of a canceled one.
                row[n] = match self.accumulator {
                    FloatAccumulator::F32 => (sum[n] + 0.0) as f32,
                    FloatAccumulator::F16 => f16_to_f32(f16_from_f64(sum[n] + 0.0)),
                };
            }
        }
    }

    /// The truncated sum of this mode for an instruction of `k` values, or `None` for exact sums.
    fn truncation(&self, k: usize) -> Option<Truncation> {
        let fp8 = self.a.bits() == 8;
        let sync = self.unit == Unit::Sync;
        let widened = |float: Float| {
            if fp8 && sync && self.numerics == Numerics::Hopper { Float::F16 } else { float }
        };
        let (fractional_bits, block) = match self.numerics {
            Numerics::Exact => return None,
            Numerics::Ampere => (if fp8 { 13 } else { 24 }, 128 / self.a.bits() as usize),
            Numerics::Hopper if fp8 && sync => (25, 16),
            Numerics::Hopper => (if fp8 { 13 } else { 25 }, k),
        };
        let output = match (self.accumulator, fractional_bits) {
            (FloatAccumulator::F16, _) => Output::NearestF16,
            (FloatAccumulator::F32, 13) => Output::TowardZero13,
            (FloatAccumulator::F32, _) => Output::TowardZero,
        };
        let lowest_exponent = match (self.accumulator, self.numerics) {
            (FloatAccumulator::F32, Numerics::Ampere) => -132,
            (FloatAccumulator::F32, _) => -133,
            (FloatAccumulator::F16, Numerics::Ampere) => -20,
            (FloatAccumulator::F16, _) => -21,
        };
        let (a, b) = (widened(self.a), widened(self.b));
        let block = block.min(k);
        Some(Truncation { fractional_bits, lowest_exponent, block, a, b, output })
    }
}
