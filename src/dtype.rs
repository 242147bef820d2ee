//! Element types. [`Element`] is anything a view can hold, [`Float`] what an op can compute with.

pub use half::{bf16, f16};

/// Tag of an element type; the numbers are the C ABI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DType {
    /// 8-bit unsigned: packed 4-bit codes, flags.
    U8 = 0,
    /// 32-bit signed: token ids, offsets.
    I32 = 1,
    /// 64-bit signed: lengths, offsets.
    I64 = 2,
    /// IEEE binary16.
    F16 = 3,
    /// bfloat16.
    Bf16 = 4,
    /// IEEE binary32.
    F32 = 5,
    /// IEEE binary64 (CPU only).
    F64 = 6,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::F16 | DType::Bf16 => 2,
            DType::I32 | DType::F32 => 4,
            DType::I64 | DType::F64 => 8,
        }
    }

    /// Lower-case name as used in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }
}

/// A type that views may hold.
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + std::fmt::Debug {
    /// The type's tag.
    const DTYPE: DType;
}

/// A floating-point element. Conversions from wider types round once, to nearest, ties to even.
pub trait Float: Element {
    /// Exact value in f64.
    fn to_f64(self) -> f64;
    /// Value in f32 (exact for bf16, f16, f32).
    fn to_f32(self) -> f32;
    /// Correctly rounded from f64.
    fn from_f64(x: f64) -> Self;
    /// Correctly rounded from f32.
    fn from_f32(x: f32) -> Self;
}

/// A float that keeps per-token and per-sequence quantities: f32, and f64 for oracles and peers
/// that compute in f64.
pub trait Real: Float {}
impl Real for f32 {}
impl Real for f64 {}

macro_rules! element {
    ($($t:ty => $tag:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$tag; })* };
}
element!(u8 => U8, i32 => I32, i64 => I64, f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64);

impl Float for f64 {
    fn to_f64(self) -> f64 {
        self
    }
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn from_f64(x: f64) -> f64 {
        x
    }
    fn from_f32(x: f32) -> f64 {
        x as f64
    }
}

impl Float for f32 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

/// bf16 is the upper half of f32, so widening is a shift; narrowing goes through integer
/// arithmetic that the compiler vectorises.
impl Float for bf16 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.to_f32() as f64
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn from_f64(x: f64) -> bf16 {
        bf16::from_f32(round_to_odd(x))
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

impl Float for f16 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f16::to_f64(self)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f64(x: f64) -> f16 {
        f16::from_f32(round_to_odd(x))
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

/// f64 to f32 so that a second rounding to fewer bits is still right: an inexact result is cut
/// towards zero and its last bit set (Boldo & Melquiond 2008). `half`'s own conversions from f64
/// drop the low word and so round 1 + 2^-8 + 2^-40 to even; a test below keeps the difference.
#[inline(always)]
fn round_to_odd(x: f64) -> f32 {
    let y = x as f32;
    if y as f64 == x || !y.is_finite() {
        return y;
    }
    let above = (y as f64).abs() > x.abs();
    f32::from_bits((y.to_bits() - above as u32) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f64 -> bf16 through f32 would round twice: 1 + 2^-8 + 2^-40 must go up, not to even.
    #[test]
    fn narrowing_rounds_once() {
        let x = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(<bf16 as Float>::from_f64(x).to_f64(), 1.0 + 2f64.powi(-7));
        assert_eq!(bf16::from_f64(x).to_f64(), 1.0, "half has fixed its conversion: use it");
        let y = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(<f16 as Float>::from_f64(y).to_f64(), 1.0 + 2f64.powi(-10));
    }
}
