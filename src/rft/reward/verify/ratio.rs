//! Fractions of integers of up to 4096 bits: arithmetic that is exact or says that it cannot be.

use num_bigint::{BigInt, BigUint, Sign};
use num_integer::Integer;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// Most bits of a numerator or denominator. It bounds the time of every operation.
pub(super) const BITS: u64 = 4096;

/// A fraction in lowest terms with a positive denominator, so that equal values are equal bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ratio {
    numerator: BigInt,
    denominator: BigInt,
}

impl Ratio {
    /// `numerator / denominator`; `None` if the denominator is 0.
    pub fn new(numerator: i128, denominator: i128) -> Option<Ratio> {
        Ratio::of(numerator.into(), denominator.into())
    }

    /// `numerator / denominator`; `None` if the denominator is 0 or a part has too many bits.
    pub(super) fn of(numerator: BigInt, denominator: BigInt) -> Option<Ratio> {
        // Checked before the division too, as its time depends on the size.
        if denominator.is_zero() || numerator.bits().max(denominator.bits()) > 2 * BITS {
            return None;
        }
        let divisor = if denominator.is_one() {
            BigInt::one()
        } else {
            numerator.gcd(&denominator) * denominator.signum()
        };
        let ratio = Ratio { numerator: numerator / &divisor, denominator: denominator / &divisor };
        let bits = ratio.numerator.bits().max(ratio.denominator.bits());
        (bits <= BITS).then_some(ratio)
    }

    /// An integer.
    pub fn integer(value: i128) -> Ratio {
        Ratio { numerator: value.into(), denominator: BigInt::one() }
    }

    /// `digits · 10^exponent`, for ASCII digits.
    pub(super) fn decimal(digits: &str, exponent: i64) -> Option<Ratio> {
        let significant = digits.trim_start_matches('0');
        let short = significant.trim_end_matches('0');
        if short.is_empty() {
            return Some(Ratio::integer(0));
        }
        // Ten to this is beyond the bits, whatever the digits.
        const MOST: u64 = BITS / 3;
        let power = exponent.saturating_add((significant.len() - short.len()) as i64);
        if short.len() as u64 > MOST || power.unsigned_abs() > MOST {
            return None;
        }
        let digits = BigInt::parse_bytes(short.as_bytes(), 10)?;
        let scale = BigInt::from(10).pow(power.unsigned_abs() as u32);
        match power >= 0 {
            true => Ratio::of(digits * scale, BigInt::one()),
            false => Ratio::of(digits, scale),
        }
    }

    /// The parts in lowest terms, if they fit.
    pub fn parts(&self) -> Option<(i128, i128)> {
        Some((self.numerator.to_i128()?, self.denominator.to_i128()?))
    }

    /// The value, if it is an integer that fits.
    pub(super) fn to_integer(&self) -> Option<i64> {
        if self.denominator.is_one() { self.numerator.to_i64() } else { None }
    }

    pub(super) fn numerator(&self) -> &BigInt {
        &self.numerator
    }

    pub(super) fn denominator(&self) -> &BigInt {
        &self.denominator
    }

    /// Words of both parts, which the cost of an operation grows with.
    pub(super) fn words(&self) -> u64 {
        2 + (self.numerator.bits() + self.denominator.bits()) / 64
    }

    pub(super) fn is_zero(&self) -> bool {
        self.numerator.is_zero()
    }

    pub(super) fn is_negative(&self) -> bool {
        self.numerator.sign() == Sign::Minus
    }

    /// A double next to the value, infinite beyond their range.
    pub fn to_f64(&self) -> f64 {
        /// Bits that a part keeps; the quotient of two such integers is off by a few units of the last place.
        const KEPT: u64 = 128;
        let scaled = |part: &BigInt| {
            let shift = part.bits().saturating_sub(KEPT);
            ((part >> shift).to_f64().unwrap_or(f64::NAN), shift as i32)
        };
        let ((up, a), (down, b)) = (scaled(&self.numerator), scaled(&self.denominator));
        // In two steps, since a factor alone may be beyond a double where the product is not.
        let half = (a - b) / 2;
        up / down * 2f64.powi(half) * 2f64.powi(a - b - half)
    }

    /// `self + other`.
    pub fn checked_add(&self, other: &Ratio) -> Option<Ratio> {
        let (left, right) =
            (&self.numerator * &other.denominator, &other.numerator * &self.denominator);
        Ratio::of(left + right, &self.denominator * &other.denominator)
    }

    /// `-self`.
    pub fn negated(&self) -> Ratio {
        Ratio { numerator: -&self.numerator, denominator: self.denominator.clone() }
    }

    /// `self - other`.
    pub fn checked_sub(&self, other: &Ratio) -> Option<Ratio> {
        self.checked_add(&other.negated())
    }

    /// `self · other`.
    pub fn checked_mul(&self, other: &Ratio) -> Option<Ratio> {
        Ratio::of(&self.numerator * &other.numerator, &self.denominator * &other.denominator)
    }

    /// `self / other`; `None` also for division by 0.
    pub fn checked_div(&self, other: &Ratio) -> Option<Ratio> {
        Ratio::of(&self.numerator * &other.denominator, &self.denominator * &other.numerator)
    }

    /// `self^exponent`; `None` also for 0 to a negative power.
    pub(super) fn checked_pow(&self, exponent: i64) -> Option<Ratio> {
        let bits = self.numerator.bits().max(self.denominator.bits());
        let size = exponent.unsigned_abs();
        // The least size that the power can have, before it is computed.
        if bits > 1 && (bits - 1).checked_mul(size)? > BITS {
            return None;
        }
        let (up, down) = match bits > 1 {
            true => {
                let size = u32::try_from(size).ok()?;
                (self.numerator.pow(size), self.denominator.pow(size))
            }
            // 0, 1 or -1.
            false => (self.numerator.pow((size % 2) as u32 + 2 * (size > 1) as u32), BigInt::one()),
        };
        if exponent < 0 { Ratio::of(down, up) } else { Ratio::of(up, down) }
    }

    /// The greatest rational that divides both into integers. Neither is 0.
    pub(super) fn common(&self, other: &Ratio) -> Option<Ratio> {
        let up = self.numerator.gcd(&other.numerator);
        Ratio::of(up, self.denominator.lcm(&other.denominator))
    }

    /// The positive square root, if it is rational.
    pub(super) fn square_root(&self) -> Option<Ratio> {
        let root = |part: &BigInt| {
            let part: &BigUint = part.magnitude();
            let root = part.sqrt();
            (&root * &root == *part).then(|| BigInt::from(root))
        };
        if self.is_negative() {
            return None;
        }
        Ratio::of(root(&self.numerator)?, root(&self.denominator)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(a: i128, b: i128) -> Ratio {
        Ratio::new(a, b).unwrap()
    }

    #[test]
    fn lowest_terms_and_signs() {
        assert_eq!(r(2, -4), r(-1, 2));
        assert_eq!(r(-2, -4).parts(), Some((1, 2)));
        assert_eq!(r(0, -7).parts(), Some((0, 1)));
        assert_eq!(Ratio::new(1, 0), None);
        assert_eq!(r(i128::MIN, 2).negated(), r(1 << 126, 1));
    }

    #[test]
    fn arithmetic_is_exact_or_refused() {
        assert_eq!(r(1, 3).checked_add(&r(1, 6)), Some(r(1, 2)));
        assert_eq!(r(1, 3).checked_sub(&r(1, 3)), Some(r(0, 1)));
        assert_eq!(r(2, 3).checked_mul(&r(3, 4)), Some(r(1, 2)));
        assert_eq!(r(2, 3).checked_div(&r(0, 1)), None);
        assert_eq!(r(i128::MAX, 1).checked_add(&r(1, 1)).unwrap().parts(), None);
        let big = r(2, 1).checked_pow(4095).unwrap();
        assert_eq!(big.checked_add(&big), None);
        assert_eq!(r(1 << 100, 1).checked_pow(41), None);
        assert_eq!(r(-2, 3).checked_pow(-3), Some(r(-27, 8)));
        assert_eq!(r(-1, 1).checked_pow(i64::from(u32::MAX)), Some(r(-1, 1)));
        assert_eq!(r(-1, 1).checked_pow(-4), Some(r(1, 1)));
        assert_eq!((r(0, 1).checked_pow(0), r(0, 1).checked_pow(-1)), (Some(r(1, 1)), None));
        assert_eq!(Ratio::decimal("15", -1), Some(r(3, 2)));
        assert_eq!(Ratio::decimal("0150", -2), Some(r(3, 2)));
        assert_eq!(Ratio::decimal("15", 4000), None);
        assert_eq!(Ratio::decimal("0", -999_999_999_999), Some(Ratio::integer(0)));
        assert_eq!(r(9, 4).square_root(), Some(r(3, 2)));
        assert_eq!((r(2, 1).square_root(), r(-4, 1).square_root()), (None, None));
        assert_eq!(r(4, 3).common(&r(6, 5)), Some(r(2, 15)));
    }

    #[test]
    fn doubles_are_near() {
        for (ratio, value) in [
            (r(1, 3), 1.0 / 3.0),
            (r(-7, 2), -3.5),
            (Ratio::decimal("15", 299).unwrap(), 1.5e300),
            (Ratio::decimal("1", -310).unwrap(), 1e-310),
            (Ratio::decimal("1", 400).unwrap(), f64::INFINITY),
        ] {
            let got = ratio.to_f64();
            assert!(got == value || (got / value - 1.0).abs() < 1e-15, "{got} {value}");
        }
    }
}
