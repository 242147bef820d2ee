//! Reductions of the copy engine: `cp.reduce.async.bulk` with and without a tensor map.
//!
//! | operation | types |
//! |---|---|
//! | add | u32, s32, u64, s64 (wrapping); f16, bf16, f32, f64 (to nearest even) |
//! | min, max | u32, s32, u64, s64; f16, bf16 |
//! | inc, dec | u32, with the operand as the limit |
//! | and, or, xor | u32 and s32, u64 and s64, as bits |
//!
//! Where one operand of a floating-point minimum or maximum is NaN, the other is the result.

use super::numerics::{f16_from_f64, f16_to_f32, f32_result};
use super::tensor_map::TensorElement;

/// The operation of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Sum.
    Add,
    /// Smaller value.
    Min,
    /// Larger value.
    Max,
    /// Old value plus one, 0 from the limit on.
    Inc,
    /// Old value minus one, the limit from 0 or above the limit.
    Dec,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}

impl Reduction {
    /// The operation that PTX writes as `.name`.
    #[must_use]
    pub fn from_ptx(name: &str) -> Option<Self> {
        Some(match name {
            "add" => Self::Add,
            "min" => Self::Min,
            "max" => Self::Max,
            "inc" => Self::Inc,
            "dec" => Self::Dec,
            "and" => Self::And,
            "or" => Self::Or,
            "xor" => Self::Xor,
            _ => return None,
        })
    }

    /// An error unless the module's table has the pair.
    ///
    /// # Errors
    ///
    /// The text names operation and type.
    pub fn check(self, element: TensorElement) -> Result<(), String> {
        use TensorElement as E;
        let integer = matches!(element, E::U32 | E::S32 | E::U64 | E::S64);
        let half = matches!(element, E::F16 | E::Bf16);
        let known = match self {
            Self::Add => integer || half || matches!(element, E::F32 | E::F64),
            Self::Min | Self::Max => integer || half,
            Self::Inc | Self::Dec => element == E::U32,
            Self::And | Self::Or | Self::Xor => integer,
        };
        if known { Ok(()) } else { Err(format!("there is no reduction {self:?} of {element:?}")) }
    }

    /// `into[i] = into[i] op from[i]` over elements.
    ///
    /// # Errors
    ///
    /// As [`Reduction::check`], the lengths differ, or they end inside an element; `into` is
    /// unchanged then.
    pub fn apply(self, element: TensorElement, into: &mut [u8], from: &[u8]) -> Result<(), String> {
        self.check(element)?;
        let size = element.bytes() as usize;
        if into.len() != from.len() || !into.len().is_multiple_of(size) {
            let (to, of) = (into.len(), from.len());
            return Err(format!("reduction of {of} bytes into {to} bytes of {element:?}"));
        }
        for (x, y) in into.chunks_exact_mut(size).zip(from.chunks_exact(size)) {
            let result = self.combine(element, bits_of(x), bits_of(y));
            x.copy_from_slice(&result.to_le_bytes()[..size]);
        }
        Ok(())
    }

    /// Two elements given by their bits.
    fn combine(self, element: TensorElement, x: u64, y: u64) -> u64 {
        match self {
            Self::Add => add(element, x, y),
            Self::Min | Self::Max => {
                let second = match element {
                    TensorElement::F16 | TensorElement::Bf16 => {
                        let (x, y) = (half(element, x), half(element, y));
                        x.is_nan() || if self == Self::Min { y < x } else { y > x }
                    }
                    _ => {
                        (ordered(element, y) < ordered(element, x)) == (self == Self::Min) && x != y
                    }
                };
                if second { y } else { x }
            }
            Self::Inc => {
                if x >= y {
                    0
                } else {
                    x + 1
                }
            }
            Self::Dec => {
                if x == 0 || x > y {
                    y
                } else {
                    x - 1
                }
            }
            Self::And => x & y,
            Self::Or => x | y,
            Self::Xor => x ^ y,
        }
    }
}

/// Little-endian bits of up to eight bytes.
fn bits_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// An integer element as a number whose order is that of the values.
fn ordered(element: TensorElement, x: u64) -> i128 {
    match element {
        TensorElement::S32 => i128::from(x as u32 as i32),
        TensorElement::S64 => i128::from(x as i64),
        _ => i128::from(x),
    }
}

/// The value of a 16-bit floating-point element.
fn half(element: TensorElement, x: u64) -> f32 {
    if element == TensorElement::F16 {
        f16_to_f32(x as u16)
    } else {
        f32::from_bits((x as u32) << 16)
    }
}

fn add(element: TensorElement, x: u64, y: u64) -> u64 {
    match element {
        TensorElement::F16 => {
            let sum = f64::from(half(element, x)) + f64::from(half(element, y));
            u64::from(f16_from_f64(sum))
        }
        TensorElement::Bf16 => u64::from(bf16_from_sum(half(element, x) + half(element, y))),
        TensorElement::F32 => {
            u64::from(f32_result(f32::from_bits(x as u32) + f32::from_bits(y as u32)))
        }
        TensorElement::F64 => (f64::from_bits(x) + f64::from_bits(y)).to_bits(),
        _ => x.wrapping_add(y),
    }
}

/// Nearest bf16, ties to even, of the f32 sum of two bf16.
///
/// The f32 sum is inexact only if one operand is below 2^-16 of the other, far from any tie of
/// bf16: rounding twice does no harm.
fn bf16_from_sum(sum: f32) -> u16 {
    if sum.is_nan() {
        return 0x7fff;
    }
    let bits = sum.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
