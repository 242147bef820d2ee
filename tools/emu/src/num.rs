//! Scalar arithmetic with PTX's rounding modes. f32 results that f64 arithmetic does not give
//! exactly go through a sum or product rounded to odd, after which any rounding to fewer bits is
//! right (Boldo & Melquiond 2008).

/// A rounding direction: `.rn`, `.rz`, `.rm`, `.rp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// The NaN that PTX arithmetic returns.
pub const NAN32: u32 = 0x7fff_ffff;
/// The same for f64.
pub const NAN64: u64 = 0x7ff8_0000_0000_0000;

/// Subnormal numbers to zero of the same sign.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// `.sat`: to [0, 1], NaN to 0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// An exact result `hi + lo` (|lo| at most half an ulp of hi) as the f64 rounded to odd.
#[inline(always)]
fn odd(hi: f64, lo: f64) -> f64 {
    if lo == 0.0 || !hi.is_finite() || hi.to_bits() & 1 == 1 {
        return hi;
    }
    // hi is even and inexact: one of its neighbors, on the side of lo, is odd.
    let away = (lo > 0.0) == (hi > 0.0);
    if hi == 0.0 {
        return lo;
    }
    f64::from_bits(if away { hi.to_bits() + 1 } else { hi.to_bits() - 1 })
}

#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let bb = s - a;
    (s, (a - (s - bb)) + (b - bb))
}

/// f64 to f32 in a direction. The input is exact or rounded to odd.
#[inline(always)]
pub fn narrow(x: f64, round: Round) -> f32 {
    let y = x as f32;
    if round == Round::Nearest || x.is_nan() || y as f64 == x {
        return y;
    }
    if x.is_infinite() {
        return y;
    }
    let toward_zero = if (y as f64).abs() > x.abs() { f32::from_bits(y.to_bits() - 1) } else { y };
    let grow = match round {
        Round::Down => x < 0.0,
        Round::Up => x > 0.0,
        _ => false,
    };
    if grow { f32::from_bits(toward_zero.to_bits() + 1) } else { toward_zero }
}

#[inline(always)]
pub fn add32(a: f32, b: f32, round: Round) -> f32 {
    if round == Round::Nearest {
        return a + b;
    }
    let (hi, lo) = two_sum(a as f64, b as f64);
    if hi == 0.0 && lo == 0.0 && !(a == 0.0 && b == 0.0 && a.to_bits() == b.to_bits()) {
        // x - x is -0 only when rounding down.
        return if round == Round::Down { -0.0 } else { 0.0 };
    }
    narrow(odd(hi, lo), round)
}

#[inline(always)]
pub fn mul32(a: f32, b: f32, round: Round) -> f32 {
    if round == Round::Nearest { a * b } else { narrow(a as f64 * b as f64, round) }
}

#[inline(always)]
pub fn fma32(a: f32, b: f32, c: f32, round: Round) -> f32 {
    let product = a as f64 * b as f64;
    let (hi, lo) = two_sum(product, c as f64);
    if !hi.is_finite() {
        return hi as f32;
    }
    if round != Round::Nearest
        && hi == 0.0
        && lo == 0.0
        && product.to_bits() != (c as f64).to_bits()
    {
        return if round == Round::Down { -0.0 } else { 0.0 };
    }
    narrow(odd(hi, lo), round)
}

#[inline(always)]
pub fn div32(a: f32, b: f32, round: Round) -> f32 {
    if round == Round::Nearest {
        return a / b;
    }
    let q = a as f64 / b as f64;
    if !q.is_finite() || q == 0.0 {
        return q as f32;
    }
    // The remainder a - q·b has the sign of what q lacks.
    let lack = f64::mul_add(-q, b as f64, a as f64);
    narrow(odd(q, if b > 0.0 { lack } else { -lack }), round)
}

#[inline(always)]
pub fn sqrt32(a: f32, round: Round) -> f32 {
    if round == Round::Nearest {
        return a.sqrt();
    }
    let r = (a as f64).sqrt();
    if !r.is_finite() || r == 0.0 {
        return r as f32;
    }
    narrow(odd(r, f64::mul_add(-r, r, a as f64)), round)
}

/// Moves a nearest-rounded f64 to the direction asked for; `lack` has the sign of exact - x.
#[inline(always)]
fn direct(x: f64, lack: f64, round: Round) -> f64 {
    if lack == 0.0 || !x.is_finite() {
        return x;
    }
    match round {
        Round::Nearest => x,
        Round::Down => {
            if lack < 0.0 {
                x.next_down()
            } else {
                x
            }
        }
        Round::Up => {
            if lack > 0.0 {
                x.next_up()
            } else {
                x
            }
        }
        Round::Zero if x > 0.0 && lack < 0.0 => x.next_down(),
        Round::Zero if x < 0.0 && lack > 0.0 => x.next_up(),
        Round::Zero => x,
    }
}

#[inline(always)]
pub fn add64(a: f64, b: f64, round: Round) -> f64 {
    let (hi, lo) = two_sum(a, b);
    direct(hi, lo, round)
}

#[inline(always)]
pub fn mul64(a: f64, b: f64, round: Round) -> f64 {
    let p = a * b;
    if round == Round::Nearest {
        return p;
    }
    direct(p, f64::mul_add(a, b, -p), round)
}

/// Nearest only: the decoder refuses the other modes.
#[inline(always)]
pub fn fma64(a: f64, b: f64, c: f64) -> f64 {
    a.mul_add(b, c)
}

#[inline(always)]
pub fn div64(a: f64, b: f64, round: Round) -> f64 {
    let q = a / b;
    if round == Round::Nearest || !q.is_finite() {
        return q;
    }
    let lack = f64::mul_add(-q, b, a);
    direct(q, if b > 0.0 { lack } else { -lack }, round)
}

#[inline(always)]
pub fn sqrt64(a: f64, round: Round) -> f64 {
    let r = a.sqrt();
    if round == Round::Nearest || !r.is_finite() {
        return r;
    }
    direct(r, f64::mul_add(-r, r, a), round)
}

/// 2^x to about 2^-50, in arithmetic the compiler vectorizes.
#[inline(always)]
pub fn exp2(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let x = x.clamp(-1100.0, 1100.0);
    let n = x.round_ties_even();
    let t = (x - n) * std::f64::consts::LN_2;
    // exp(t) on |t| <= 0.35 by its Taylor series; the last term is below 2^-53.
    let mut y = 1.0 / 6_227_020_800.0;
    for c in [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ] {
        y = y * t + 1.0 / c;
    }
    let half = (n as i64 / 2).clamp(-1000, 1000);
    let power = |k: i64| f64::from_bits(((k + 1023) as u64) << 52);
    y * power(half) * power(n as i64 - half)
}

/// A 16-bit float format.
pub trait Half {
    fn widen(bits: u16) -> f32;
    /// From an exact or odd-rounded f64.
    fn encode(x: f64, round: Round) -> u16;
    const NAN: u16 = 0x7fff;
}

/// bfloat16.
pub struct Bf16;
/// IEEE binary16.
pub struct F16;

impl Half for Bf16 {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits((bits as u32) << 16)
    }
    fn encode(x: f64, round: Round) -> u16 {
        if x.is_nan() { Self::NAN } else { encode(x, round, 8, 7) as u16 }
    }
}

impl Half for F16 {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        let (sign, exponent, fraction) =
            ((bits as u32 & 0x8000) << 16, bits >> 10 & 31, bits as u32 & 0x3ff);
        let magnitude = match exponent {
            0 => fraction as f32 * 2f32.powi(-24),
            31 if fraction == 0 => f32::INFINITY,
            31 => return f32::NAN,
            _ => f32::from_bits(((exponent as u32 + 112) << 23) | fraction << 13),
        };
        f32::from_bits(magnitude.to_bits() | sign)
    }
    fn encode(x: f64, round: Round) -> u16 {
        if x.is_nan() { Self::NAN } else { encode(x, round, 5, 10) as u16 }
    }
}

/// x in a format with `exponent` and `fraction` bits, infinities and subnormal numbers as in IEEE.
pub fn encode(x: f64, round: Round, exponent: u32, fraction: u32) -> u32 {
    let sign = ((x.is_sign_negative()) as u32) << (exponent + fraction);
    let bias = (1i32 << (exponent - 1)) - 1;
    let infinity = ((1u32 << exponent) - 1) << fraction;
    let magnitude = x.abs();
    if magnitude == 0.0 {
        return sign;
    }
    if magnitude.is_infinite() {
        return sign | infinity;
    }
    // magnitude = significand · 2^e with 1 <= significand < 2; the quantum of the target there.
    let e = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - bias);
    let quantum = 2f64.powi(e - fraction as i32);
    let scaled = magnitude / quantum;
    let floor = scaled.floor();
    let rest = scaled - floor;
    let up = match round {
        Round::Nearest => rest > 0.5 || (rest == 0.5 && floor % 2.0 == 1.0),
        Round::Zero => false,
        Round::Down => rest > 0.0 && sign != 0,
        Round::Up => rest > 0.0 && sign == 0,
    };
    let count = floor as u64 + up as u64;
    // Subnormal and normal numbers share one formula: the count carries into the exponent.
    let bits = (count + ((e + bias - 1) as u64) * (1 << fraction)) as u32;
    if bits >= infinity {
        let largest = infinity - 1;
        let overflow = match round {
            Round::Nearest => true,
            Round::Zero => false,
            Round::Down => sign != 0,
            Round::Up => sign == 0,
        };
        return sign | if overflow { infinity } else { largest };
    }
    sign | bits
}

/// a·b + c of 16-bit floats, rounded once.
#[inline(always)]
pub fn fma16<H: Half>(a: u16, b: u16, c: u16) -> u16 {
    let (hi, lo) = two_sum(H::widen(a) as f64 * H::widen(b) as f64, H::widen(c) as f64);
    H::encode(if hi.is_finite() { odd(hi, lo) } else { hi }, Round::Nearest)
}

/// a + b of 16-bit floats, rounded once.
#[inline(always)]
pub fn add16<H: Half>(a: u16, b: u16) -> u16 {
    let (hi, lo) = two_sum(H::widen(a) as f64, H::widen(b) as f64);
    H::encode(if hi.is_finite() { odd(hi, lo) } else { hi }, Round::Nearest)
}

/// a·b of 16-bit floats, rounded once.
#[inline(always)]
pub fn mul16<H: Half>(a: u16, b: u16) -> u16 {
    H::encode(H::widen(a) as f64 * H::widen(b) as f64, Round::Nearest)
}

/// `min` and `max`: the operand that is a number, or NaN if `nan` asks for it; -0 < +0.
#[inline(always)]
pub fn extreme(a: f64, b: f64, max: bool, nan: bool) -> f64 {
    if a.is_nan() || b.is_nan() {
        if nan || (a.is_nan() && b.is_nan()) {
            return f64::NAN;
        }
        return if a.is_nan() { b } else { a };
    }
    if a == b {
        let first = a.is_sign_negative() != max;
        return if first { a } else { b };
    }
    if (a > b) == max { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directed_rounding_brackets_the_exact_sum() {
        let (a, b) = (1.0f32, f32::from_bits(0x3000_0001));
        assert_eq!(add32(a, b, Round::Down), 1.0);
        assert_eq!(add32(a, b, Round::Zero), 1.0);
        assert_eq!(add32(a, b, Round::Up), 1.0 + f32::EPSILON);
        assert_eq!(add32(-a, -b, Round::Down), -1.0 - f32::EPSILON);
        assert_eq!(add32(1.0, -1.0, Round::Down).to_bits(), (-0.0f32).to_bits());
        assert_eq!(div32(1.0, 3.0, Round::Up), (1.0f32 / 3.0).max(div32(1.0, 3.0, Round::Down)));
        assert!(div32(1.0, 3.0, Round::Down) < div32(1.0, 3.0, Round::Up));
        assert!(sqrt32(2.0, Round::Down) < sqrt32(2.0, Round::Up));
    }

    #[test]
    fn fma_rounds_once() {
        // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: a tie that c decides.
        let a = 1.0 + 2f32.powi(-12);
        let tie = fma32(a, a, 0.0, Round::Nearest);
        assert_eq!(tie, 1.0 + 2f32.powi(-11));
        assert_eq!(fma32(a, a, 2f32.powi(-100), Round::Nearest), tie + f32::EPSILON);
        for (a, b, c) in [(1.5f32, 3.25, -4.875), (1e-30, 1e-10, 1e-38), (3e38, 10.0, -1e38)] {
            assert_eq!(fma32(a, b, c, Round::Nearest).to_bits(), a.mul_add(b, c).to_bits());
        }
    }

    #[test]
    fn half_precision_round_trips_and_rounds() {
        for bits in 0..=u16::MAX {
            let (h, b) = (F16::widen(bits), Bf16::widen(bits));
            if !h.is_nan() {
                assert_eq!(F16::encode(h as f64, Round::Nearest), bits);
            }
            if !b.is_nan() {
                assert_eq!(Bf16::encode(b as f64, Round::Nearest), bits);
            }
        }
        assert_eq!(F16::encode(65520.0, Round::Nearest), 0x7c00);
        assert_eq!(F16::encode(65519.0, Round::Nearest), 0x7bff);
        assert_eq!(F16::encode(65520.0, Round::Zero), 0x7bff);
        assert_eq!(Bf16::encode(1.0 + 2f64.powi(-8), Round::Nearest), 0x3f80);
        assert_eq!(Bf16::encode(1.0 + 2f64.powi(-8) + 2f64.powi(-40), Round::Nearest), 0x3f81);
    }

    #[test]
    fn exp2_is_close_everywhere() {
        for i in -11000..11000 {
            let x = i as f64 * 0.1;
            let (got, want) = (exp2(x), x.exp2());
            assert!(
                got == want || (got - want).abs() <= want * 1e-14 || want < 1e-300,
                "{x}: {got} {want}"
            );
        }
    }
}
