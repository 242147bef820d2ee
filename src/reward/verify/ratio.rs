//! Fractions of 128-bit integers: arithmetic that is exact or says that it cannot be.

/// A fraction in lowest terms with a positive denominator, so that equal values are equal bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ratio {
    numerator: i128,
    denominator: i128,
}

impl Ratio {
    /// `numerator / denominator`; `None` if the denominator is 0 or a part does not fit.
    pub fn new(numerator: i128, denominator: i128) -> Option<Ratio> {
        if denominator == 0 {
            return None;
        }
        let divisor = gcd(numerator.unsigned_abs(), denominator.unsigned_abs());
        let up = i128::try_from(numerator.unsigned_abs() / divisor).ok()?;
        let down = i128::try_from(denominator.unsigned_abs() / divisor).ok()?;
        let negative = (numerator < 0) != (denominator < 0);
        Some(Ratio { numerator: if negative { -up } else { up }, denominator: down })
    }

    /// An integer.
    pub fn integer(value: i128) -> Option<Ratio> {
        Ratio::new(value, 1)
    }

    /// `digits · 10^exponent`.
    pub fn decimal(digits: i128, exponent: i64) -> Option<Ratio> {
        if digits == 0 {
            return Ratio::integer(0);
        }
        let power = 10i128.checked_pow(u32::try_from(exponent.unsigned_abs()).ok()?)?;
        match exponent >= 0 {
            true => Ratio::integer(digits.checked_mul(power)?),
            false => Ratio::new(digits, power),
        }
    }

    /// The parts, in lowest terms.
    pub fn parts(self) -> (i128, i128) {
        (self.numerator, self.denominator)
    }

    /// Nearest double, up to two roundings.
    pub fn to_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    /// `self + other`.
    pub fn checked_add(self, other: Ratio) -> Option<Ratio> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        let down = self.denominator.checked_mul(other.denominator)?;
        Ratio::new(left.checked_add(right)?, down)
    }

    /// `-self`.
    pub fn negated(self) -> Ratio {
        // The numerator came from an unsigned magnitude that fits, so it is never the minimum.
        Ratio { numerator: -self.numerator, ..self }
    }

    /// `self - other`.
    pub fn checked_sub(self, other: Ratio) -> Option<Ratio> {
        self.checked_add(other.negated())
    }

    /// `self · other`.
    pub fn checked_mul(self, other: Ratio) -> Option<Ratio> {
        let up = self.numerator.checked_mul(other.numerator)?;
        Ratio::new(up, self.denominator.checked_mul(other.denominator)?)
    }

    /// `self / other`; `None` also for division by 0.
    pub fn checked_div(self, other: Ratio) -> Option<Ratio> {
        self.checked_mul(Ratio::new(other.denominator, other.numerator)?)
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
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
        assert_eq!(r(-2, -4).parts(), (1, 2));
        assert_eq!(r(0, -7).parts(), (0, 1));
        assert_eq!(Ratio::new(1, 0), None);
        assert_eq!(Ratio::new(i128::MIN, 1), None);
        assert_eq!(r(i128::MIN, 2).negated(), r(1 << 126, 1));
    }

    #[test]
    fn arithmetic_is_exact_or_refused() {
        assert_eq!(r(1, 3).checked_add(r(1, 6)), Some(r(1, 2)));
        assert_eq!(r(1, 3).checked_sub(r(1, 3)), Some(r(0, 1)));
        assert_eq!(r(2, 3).checked_mul(r(3, 4)), Some(r(1, 2)));
        assert_eq!(r(2, 3).checked_div(r(0, 1)), None);
        assert_eq!(r(i128::MAX, 1).checked_add(r(1, 1)), None);
        assert_eq!(Ratio::decimal(15, -1), Some(r(3, 2)));
        assert_eq!(Ratio::decimal(15, 40), None);
        assert_eq!(Ratio::decimal(0, -999_999_999_999), Ratio::integer(0));
    }
}
