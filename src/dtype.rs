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
/// arithmetic that the compiler vectorizes.
impl Float for bf16 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        // Not `self.to_f32()`, which is half's own, with a branch for NaN.
        Float::to_f32(self) as f64
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn from_f64(x: f64) -> bf16 {
        bf16_from_f64(x)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_bits((round_to_bf16(x).to_bits() >> 16) as u16)
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

/// half's `bf16::from_f32` and back without branches, which the compiler vectorizes: adding half a unit,
/// less one bit when the last kept bit is 0, carries exactly when rounding to nearest even does.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000;
    let quiet = (bits & 0xFFFF_0000) | 0x0040_0000;
    let nan = 0u32.wrapping_sub((bits & 0x7FFF_FFFF > 0x7F80_0000) as u32);
    f32::from_bits((nearest & !nan) | (quiet & nan))
}

/// `bf16::from_f32(round_to_odd(x))` without branches, which the compiler vectorizes. An infinity that
/// the rounding to f32 made becomes the largest f32 with its odd last bit, and then infinity again.
#[inline(always)]
fn bf16_from_f64(x: f64) -> bf16 {
    let y = x as f32;
    let (bits, back) = (y.to_bits(), y as f64);
    let above = (back.abs() > x.abs()) as u32;
    let odd = bits.wrapping_sub(above) | (back != x) as u32;
    let nearest = odd.wrapping_add(0x7FFF + ((odd >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { nearest } as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every exponent of f64 beside and between the numbers of bf16 and f32, both signs.
    #[test]
    fn narrowing_to_bf16_is_that_through_odd() {
        let same = |x: f64| {
            let want = bf16::from_f32(round_to_odd(x)).to_bits();
            assert_eq!(bf16_from_f64(x).to_bits(), want, "{x:e} {:#x}", x.to_bits());
        };
        let tails =
            [0, 1, 1 << 27, 1 << 28, 1 << 29, 3 << 28, (1 << 44) - 1, 1 << 44, (1 << 44) + 1];
        for exponent in (0..=2047u64).filter(|e| *e < 2 || *e > 2045 || (860..1160).contains(e)) {
            for high in (0..128u64).map(|high| high << 45) {
                for bits in tails.map(|tail| exponent << 52 | high | tail) {
                    same(f64::from_bits(bits));
                    same(f64::from_bits(bits | 1 << 63));
                    same(f64::from_bits(bits | ((1 << 44) - 1)));
                }
            }
        }
    }

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        for high in 0..=0xFFFFu32 {
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let x = f32::from_bits(high << 16 | low);
                let want = bf16::from_f32(x);
                assert_eq!(
                    <bf16 as Float>::from_f32(x).to_bits(),
                    want.to_bits(),
                    "{:#x}",
                    x.to_bits()
                );
                assert_eq!(
                    round_to_bf16(x).to_bits(),
                    want.to_f32().to_bits(),
                    "{:#x}",
                    x.to_bits()
                );
            }
        }
    }

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
