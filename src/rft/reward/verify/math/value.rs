//! Numbers in exact form: a quotient of two [`Sum`]s.

use num_bigint::{BigInt, BigUint};
use num_traits::{One, ToPrimitive};

use super::super::ratio::Ratio;
use super::sum::{Fuel, Sum};

/// A number. Two are equal if their cross products have the same normal form.
#[derive(Clone, Debug)]
pub struct Value {
    up: Sum,
    /// Not 0, and 1 wherever the division could be carried out.
    down: Sum,
}

/// Largest `n` of `n!` and of binomial coefficients; 500! has some 3,800 bits.
const FACTORIAL: i64 = 500;

impl Value {
    pub fn rational(value: Ratio) -> Value {
        Value::whole(Sum::rational(value))
    }

    pub fn integer(value: i128) -> Value {
        Value::rational(Ratio::integer(value))
    }

    pub fn whole(up: Sum) -> Value {
        Value { up, down: Sum::one() }
    }

    /// The fraction that this is, if it is one.
    pub fn to_rational(&self) -> Option<Ratio> {
        self.up.to_rational()?.checked_div(&self.down.to_rational()?)
    }

    pub fn to_integer(&self) -> Option<i64> {
        self.to_rational()?.to_integer()
    }

    /// Nearest double or so; `None` if it is not real.
    pub fn to_f64(&self) -> Option<f64> {
        match self.to_rational() {
            Some(ratio) => Some(ratio.to_f64()),
            None => Some(self.up.to_f64()? / self.down.to_f64()?),
        }
    }

    /// `None` if the fuel does not suffice.
    pub fn equals(&self, other: &Value, fuel: &mut Fuel) -> Option<bool> {
        if self.down == other.down {
            return Some(self.up == other.up);
        }
        Some(self.up.mul(&other.down, fuel)? == other.up.mul(&self.down, fuel)?)
    }

    pub fn negated(&self) -> Value {
        Value { up: self.up.negated(), down: self.down.clone() }
    }

    pub fn add(&self, other: &Value, fuel: &mut Fuel) -> Option<Value> {
        if self.down == other.down {
            return Some(Value { up: self.up.add(&other.up, fuel)?, down: self.down.clone() });
        }
        let (left, right) = (self.up.mul(&other.down, fuel)?, other.up.mul(&self.down, fuel)?);
        Some(Value { up: left.add(&right, fuel)?, down: self.down.mul(&other.down, fuel)? })
    }

    pub fn mul(&self, other: &Value, fuel: &mut Fuel) -> Option<Value> {
        Value::quotient(self.up.mul(&other.up, fuel)?, self.down.mul(&other.down, fuel)?, fuel)
    }

    pub fn div(&self, other: &Value, fuel: &mut Fuel) -> Option<Value> {
        Value::quotient(self.up.mul(&other.down, fuel)?, self.down.mul(&other.up, fuel)?, fuel)
    }

    /// `None` for a division by 0.
    fn quotient(up: Sum, down: Sum, fuel: &mut Fuel) -> Option<Value> {
        if down.is_zero() {
            return None;
        }
        match down.reciprocal(fuel) {
            Some(inverse) => Some(Value::whole(up.mul(&inverse, fuel)?)),
            None => Some(Value { up, down }),
        }
    }

    /// `self^exponent` for a rational exponent.
    pub fn pow(&self, exponent: &Value, fuel: &mut Fuel) -> Option<Value> {
        let (up, down) = exponent.to_rational()?.parts()?;
        let (size, index) = (u64::try_from(up.unsigned_abs()).ok()?, i64::try_from(down).ok()?);
        if index > 1 && !self.to_f64().is_some_and(|base| base >= 0.0) {
            // There are several such powers.
            return None;
        }
        // 0^0 is none, as the field's graders have it.
        if size == 0 && self.up.is_zero() {
            return None;
        }
        // Rooting first keeps numbers small, e.g. in 4^(1001/2).
        let base = self.root(index, fuel)?;
        let power = Value { up: base.up.pow(size, fuel)?, down: base.down.pow(size, fuel)? };
        match up < 0 {
            true => Value::integer(1).div(&power, fuel),
            false => Value::quotient(power.up, power.down, fuel),
        }
    }

    /// The real root, or that of a negative rational under a square root.
    pub fn root(&self, index: i64, fuel: &mut Fuel) -> Option<Value> {
        Value::quotient(self.up.root(index, fuel)?, self.down.root(index, fuel)?, fuel)
    }

    /// Natural logarithm.
    pub fn ln(&self, fuel: &mut Fuel) -> Option<Value> {
        let down = self.down.log(fuel)?.negated();
        Some(Value::whole(self.up.log(fuel)?.add(&down, fuel)?))
    }

    pub fn factorial(&self, fuel: &mut Fuel) -> Option<Value> {
        let n = self.to_integer().filter(|n| (0..=FACTORIAL).contains(n))?;
        fuel.spend(n as u64)?;
        let product: BigInt = (2..=n).map(BigInt::from).product();
        Some(Value::rational(Ratio::of(product, BigInt::one())?))
    }

    /// `n` over `k`.
    pub fn binomial(n: &Value, k: &Value, fuel: &mut Fuel) -> Option<Value> {
        let (n, k) = (n.to_integer()?, k.to_integer()?);
        if !(0..=FACTORIAL).contains(&n) || !(0..=n).contains(&k) {
            return None;
        }
        fuel.spend(n as u64)?;
        let mut product = BigInt::one();
        for i in 1..=k {
            product = product * (n - k + i) / i;
        }
        Some(Value::rational(Ratio::of(product, BigInt::one())?))
    }

    /// The largest integer up to the number, or the least from it on.
    pub fn rounded(&self, up: bool) -> Option<Value> {
        let ratio = self.to_rational()?;
        let ratio = if up { ratio.negated() } else { ratio };
        let floor = num_integer::Integer::div_floor(ratio.numerator(), ratio.denominator());
        let floor = Ratio::of(floor, BigInt::one())?;
        Some(Value::rational(if up { floor.negated() } else { floor }))
    }

    pub fn abs(&self) -> Option<Value> {
        Some(if self.to_f64()? < 0.0 { self.negated() } else { self.clone() })
    }

    /// Digits in base 2 to 36.
    pub fn in_base(digits: &str, base: u32) -> Option<Value> {
        let value = BigUint::parse_bytes(digits.as_bytes(), base)?;
        Some(Value::rational(Ratio::of(value.into(), BigInt::one())?))
    }

    /// The decimal digits of a non-negative integer.
    pub fn digits(&self) -> Option<String> {
        let ratio = self.to_rational().filter(|r| r.denominator().is_one() && !r.is_negative())?;
        Some(ratio.numerator().to_string())
    }

    /// Whether it is an integer from 1 to 15 digits, as the parts of a mixed number are.
    pub fn is_small_natural(&self) -> bool {
        const MOST: i64 = 1_000_000_000_000_000;
        self.to_integer().is_some_and(|n| (1..MOST).contains(&n))
    }

    /// The number as a base of digits.
    pub fn to_base(&self) -> Option<u32> {
        self.to_integer()?.to_u32().filter(|base| (2..=36).contains(base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(value: i128) -> Value {
        Value::integer(value)
    }

    fn root(value: i128, index: i64) -> Value {
        n(value).root(index, &mut Fuel::new()).unwrap()
    }

    fn same(a: &Value, b: &Value) -> bool {
        a.equals(b, &mut Fuel::new()).unwrap()
    }

    #[test]
    fn roots_have_one_form() {
        let f = &mut Fuel::new();
        assert!(same(&root(8, 2), &n(2).mul(&root(2, 2), f).unwrap()));
        assert!(same(&root(-8, 3), &n(-2)));
        assert!(same(&root(-4, 2).mul(&root(-9, 2), f).unwrap(), &n(-6)));
        assert!(same(&root(4, 4), &root(2, 2)));
        assert!(same(&root(2, 2).mul(&root(3, 2), f).unwrap(), &root(6, 2)));
        // 1/(1+√2) = √2 - 1 and 1/(1 + ∛2 + ∛4) = ∛2 - 1.
        let inverse = n(1).div(&n(1).add(&root(2, 2), f).unwrap(), f).unwrap();
        assert!(same(&inverse, &root(2, 2).add(&n(-1), f).unwrap()));
        let cubes = n(1).add(&root(2, 3), f).unwrap().add(&root(4, 3), f).unwrap();
        let inverse = n(1).div(&cubes, f).unwrap();
        assert!(same(&inverse, &root(2, 3).add(&n(-1), f).unwrap()));
        // √(3+2√2) = 1+√2, and √(2+√2)² = 2+√2.
        let nested = n(3).add(&root(8, 2), f).unwrap().root(2, f).unwrap();
        assert!(same(&nested, &n(1).add(&root(2, 2), f).unwrap()));
        let plain = n(2).add(&root(2, 2), f).unwrap();
        let nested = plain.root(2, f).unwrap();
        assert!(same(&nested.mul(&nested, f).unwrap(), &plain));
        assert!(!same(&nested, &plain));
        let scaled = n(8).add(&root(32, 2), f).unwrap().root(2, f).unwrap();
        assert!(same(&scaled, &n(2).mul(&nested, f).unwrap()));
        assert!(root(1 << 40, 40).to_integer() == Some(2));
        assert!(n(0).add(&root(2, 2), f).unwrap().negated().root(2, f).is_none());
        // A prime beyond the table, and its square.
        assert!(same(&root(4_294_967_311 * 4_294_967_311, 2), &n(4_294_967_311)));
    }

    #[test]
    fn logarithms_powers_and_bounds() {
        let f = &mut Fuel::new();
        let ratio = n(8).ln(f).unwrap().div(&n(2).ln(f).unwrap(), f).unwrap();
        assert!(same(&ratio, &n(3)));
        let half = Value::rational(Ratio::new(1, 2).unwrap());
        assert!(same(&n(4).pow(&half, f).unwrap(), &n(2)));
        assert!(same(&n(2).pow(&n(-2), f).unwrap(), &half.mul(&half, f).unwrap()));
        assert!(n(0).pow(&n(0), f).is_none() && n(0).pow(&n(-1), f).is_none());
        assert!(n(-8).pow(&Value::rational(Ratio::new(1, 3).unwrap()), f).is_none());
        assert!(n(9).pow(&n(9_999), f).is_none() && n(1).pow(&n(1 << 40), f).is_some());
        assert_eq!(n(5).factorial(f).unwrap().to_integer(), Some(120));
        assert_eq!(Value::binomial(&n(10), &n(3), f).unwrap().to_integer(), Some(120));
        assert!(n(501).factorial(f).is_none() && n(-1).factorial(f).is_none());
        let i = n(-1).root(2, f).unwrap();
        assert!(same(&i.mul(&i, f).unwrap(), &n(-1)) && i.to_f64().is_none());
        let inverse = n(1).div(&n(1).add(&i, f).unwrap(), f).unwrap();
        assert!(same(&inverse.mul(&n(2), f).unwrap(), &n(1).add(&i.negated(), f).unwrap()));
    }
}
