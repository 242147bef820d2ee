//! Sums of products of rationals with roots, π, e, i and logarithms, in a normal form.
//!
//! A sum maps each product of powers of atoms to its coefficient. Roots are of primes and have
//! exponents in (0, 1), i has the exponent 1, and no coefficient is 0. Such products are linearly
//! independent over the rationals (for roots of primes that is Besicovitch's theorem; for π, e and
//! logarithms it is what everyone believes), so two sums are the same number only if they are the
//! same map. Two things are not unfolded: roots of sums other than `√(a + b√c)`, and cofactors
//! without a prime factor below 2^16; different spellings of those can differ, never the reverse.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use num_bigint::{BigInt, BigUint};
use num_traits::{One, ToPrimitive};

use super::super::ratio::Ratio;

/// Work that one judgment may still take, about a microsecond per unit.
#[derive(Clone, Debug)]
pub struct Fuel(u64);

impl Fuel {
    /// For one judgment: a tenth of a second at the worst, where ordinary answers take microseconds.
    pub fn new() -> Fuel {
        Fuel(60_000)
    }

    /// `None` if it is used up.
    pub fn spend(&mut self, units: u64) -> Option<()> {
        self.0 = self.0.checked_sub(units)?;
        Some(())
    }
}

/// What cannot be reduced to rationals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Imaginary,
    Pi,
    Euler,
    /// Natural logarithm of a prime.
    Log(BigUint),
    /// A prime, under a root by its exponent.
    Root(BigUint),
    /// A positive sum, under a root by its exponent.
    Nested(Box<Sum>),
}

type Monomial = BTreeMap<Atom, Ratio>;

/// A sum of terms; see the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sum {
    terms: BTreeMap<Monomial, Ratio>,
}

/// Most terms of a sum, most atoms of a term, most terms under a nested root, and its depth.
const TERMS: usize = 32;
const ATOMS: usize = 8;
const NESTED_TERMS: usize = 4;
const NESTED_DEPTH: usize = 3;
/// Largest exponent of an atom and largest index of a root.
const EXPONENT: i64 = 1 << 12;

impl Sum {
    pub fn rational(value: Ratio) -> Sum {
        Sum::single(Monomial::new(), value)
    }

    pub fn one() -> Sum {
        Sum::rational(Ratio::integer(1))
    }

    pub fn imaginary() -> Sum {
        Sum::atom(Atom::Imaginary)
    }

    pub fn pi() -> Sum {
        Sum::atom(Atom::Pi)
    }

    pub fn euler() -> Sum {
        Sum::atom(Atom::Euler)
    }

    fn atom(atom: Atom) -> Sum {
        Sum::single([(atom, Ratio::integer(1))].into(), Ratio::integer(1))
    }

    fn single(monomial: Monomial, coefficient: Ratio) -> Sum {
        let mut sum = Sum::default();
        if !coefficient.is_zero() {
            sum.terms.insert(monomial, coefficient);
        }
        sum
    }

    pub fn is_zero(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn to_rational(&self) -> Option<Ratio> {
        match self.terms.len() {
            0 => Some(Ratio::integer(0)),
            1 => self.terms.get(&Monomial::new()).cloned(),
            _ => None,
        }
    }

    /// Nearest double or so; `None` if it is not real.
    pub fn to_f64(&self) -> Option<f64> {
        let mut total = 0.0;
        for (monomial, coefficient) in &self.terms {
            let mut product = coefficient.to_f64();
            for (atom, exponent) in monomial {
                let base = match atom {
                    Atom::Imaginary => return None,
                    Atom::Pi => std::f64::consts::PI,
                    Atom::Euler => std::f64::consts::E,
                    Atom::Log(prime) => prime.to_f64()?.ln(),
                    Atom::Root(prime) => prime.to_f64()?,
                    Atom::Nested(sum) => sum.to_f64()?,
                };
                product *= base.powf(exponent.to_f64());
            }
            total += product;
        }
        Some(total)
    }

    /// Whether it is real and clearly above 0.
    fn is_positive(&self) -> bool {
        /// Relative to the largest term, far above the rounding of doubles.
        const CLEARLY: f64 = 1e-9;
        let single = |(m, c): (&Monomial, &Ratio)| Sum::single(m.clone(), c.clone()).to_f64();
        let scale = self.terms.iter().filter_map(single).fold(0.0, |a: f64, b| a.max(b.abs()));
        self.to_f64().is_some_and(|value| value.is_finite() && value > CLEARLY * scale)
    }

    pub fn negated(&self) -> Sum {
        let terms = self.terms.iter().map(|(m, c)| (m.clone(), c.negated())).collect();
        Sum { terms }
    }

    pub fn add(&self, other: &Sum, fuel: &mut Fuel) -> Option<Sum> {
        let mut sum = self.clone();
        for (monomial, coefficient) in &other.terms {
            sum.accumulate(monomial.clone(), coefficient, fuel)?;
        }
        Some(sum)
    }

    fn accumulate(&mut self, monomial: Monomial, by: &Ratio, fuel: &mut Fuel) -> Option<()> {
        let old = self.terms.remove(&monomial).unwrap_or_else(|| Ratio::integer(0));
        fuel.spend(cost(&old, by))?;
        let new = old.checked_add(by)?;
        if !new.is_zero() {
            self.terms.insert(monomial, new);
        }
        (self.terms.len() <= TERMS).then_some(())
    }

    pub fn mul(&self, other: &Sum, fuel: &mut Fuel) -> Option<Sum> {
        let mut sum = Sum::default();
        for (left, a) in &self.terms {
            for (right, b) in &other.terms {
                fuel.spend(cost(a, b) + (left.len() + right.len()) as u64)?;
                let mut exponents = left.clone();
                for (atom, exponent) in right {
                    let total = exponents.remove(atom).unwrap_or_else(|| Ratio::integer(0));
                    exponents.insert(atom.clone(), total.checked_add(exponent)?);
                }
                let product = normal(exponents, a.checked_mul(b)?, fuel)?;
                sum = match product.terms.len() {
                    1 => {
                        for (monomial, coefficient) in product.terms {
                            sum.accumulate(monomial, &coefficient, fuel)?;
                        }
                        sum
                    }
                    _ => sum.add(&product, fuel)?,
                };
            }
        }
        Some(sum)
    }

    pub fn pow(&self, exponent: u64, fuel: &mut Fuel) -> Option<Sum> {
        if let Some(base) = self.to_rational() {
            fuel.spend(32)?;
            return Some(Sum::rational(base.checked_pow(i64::try_from(exponent).ok()?)?));
        }
        if exponent > EXPONENT as u64 {
            return None;
        }
        let (mut power, mut square, mut left) = (Sum::one(), self.clone(), exponent);
        while left > 0 {
            if left % 2 == 1 {
                power = power.mul(&square, fuel)?;
            }
            left /= 2;
            if left > 0 {
                square = square.mul(&square, fuel)?;
            }
        }
        Some(power)
    }

    /// `1 / self` where that is a single term; `None` for any other.
    pub fn reciprocal(&self, fuel: &mut Fuel) -> Option<Sum> {
        let (monomial, coefficient) = self.only_term()?;
        if monomial.keys().any(|atom| matches!(atom, Atom::Nested(_))) {
            return None;
        }
        let exponents = monomial.iter().map(|(atom, e)| (atom.clone(), e.negated())).collect();
        normal(exponents, Ratio::integer(1).checked_div(coefficient)?, fuel)
    }

    fn only_term(&self) -> Option<(&Monomial, &Ratio)> {
        self.terms.first_key_value().filter(|_| self.terms.len() == 1)
    }

    /// The real root of a real number, or i times one for a square root of a negative rational.
    pub fn root(&self, index: i64, fuel: &mut Fuel) -> Option<Sum> {
        if !(1..=EXPONENT).contains(&index) {
            return None;
        }
        if index == 1 || self.is_zero() {
            return Some(self.clone());
        }
        if let Some((monomial, coefficient)) = self.only_term() {
            return root_of_term(monomial, coefficient, index, fuel);
        }
        if !self.is_positive() {
            return None;
        }
        if index == 2
            && let Some(root) = self.denested(fuel)
        {
            return Some(root);
        }
        self.nested(index, fuel)
    }

    /// `√(a + b√c)` as `√((a+d)/2) ± √((a-d)/2)` where `d = √(a² - b²c)` is rational.
    fn denested(&self, fuel: &mut Fuel) -> Option<Sum> {
        let a = self.terms.get(&Monomial::new()).filter(|_| self.terms.len() == 2)?.clone();
        let (surd, b) = self.terms.iter().find(|(monomial, _)| !monomial.is_empty())?;
        let surd = Sum::single(surd.clone(), b.clone());
        let square = surd.mul(&surd, fuel)?.to_rational()?;
        let d = a.checked_mul(&a)?.checked_sub(&square)?.square_root()?;
        let half = Ratio::new(1, 2)?;
        let part =
            |value: Ratio, fuel: &mut Fuel| Sum::rational(value.checked_mul(&half)?).root(2, fuel);
        let (large, small) = (part(a.checked_add(&d)?, fuel)?, part(a.checked_sub(&d)?, fuel)?);
        large.add(&if b.is_negative() { small.negated() } else { small }, fuel)
    }

    /// A root of a sum as an atom, with what is common to its terms taken out.
    fn nested(&self, index: i64, fuel: &mut Fuel) -> Option<Sum> {
        if self.terms.len() > NESTED_TERMS || self.depth() >= NESTED_DEPTH {
            return None;
        }
        let mut coefficients = self.terms.values();
        let first = coefficients.next()?.clone();
        let first = if first.is_negative() { first.negated() } else { first };
        let common = coefficients.try_fold(first, |common, c| {
            fuel.spend(cost(&common, c))?;
            common.common(c)
        })?;
        let whole = Sum::rational(common.clone());
        let rest = self.mul(&whole.reciprocal(fuel)?, fuel)?;
        let exponent = Ratio::new(1, index.into())?;
        let atom =
            Sum::single([(Atom::Nested(Box::new(rest)), exponent)].into(), Ratio::integer(1));
        whole.root(index, fuel)?.mul(&atom, fuel)
    }

    fn depth(&self) -> usize {
        let atoms = self.terms.keys().flat_map(BTreeMap::keys);
        let depth = |atom: &Atom| match atom {
            Atom::Nested(sum) => 1 + sum.depth(),
            Atom::Imaginary | Atom::Pi | Atom::Euler | Atom::Log(_) | Atom::Root(_) => 0,
        };
        atoms.map(depth).max().unwrap_or(0)
    }

    /// Natural logarithm of a single positive term without π, i and logarithms.
    pub fn log(&self, fuel: &mut Fuel) -> Option<Sum> {
        let (monomial, coefficient) = self.only_term()?;
        let mut sum = log_of(coefficient.numerator(), &Ratio::integer(1), fuel)?
            .add(&log_of(coefficient.denominator(), &Ratio::integer(-1), fuel)?, fuel)?;
        for (atom, exponent) in monomial {
            let part = match atom {
                Atom::Euler => Sum::rational(exponent.clone()),
                Atom::Root(prime) => Sum::single(
                    [(Atom::Log(prime.clone()), Ratio::integer(1))].into(),
                    exponent.clone(),
                ),
                Atom::Imaginary | Atom::Pi | Atom::Log(_) | Atom::Nested(_) => return None,
            };
            sum = sum.add(&part, fuel)?;
        }
        Some(sum)
    }
}

fn cost(a: &Ratio, b: &Ratio) -> u64 {
    let words = a.words() + b.words();
    2 + words * words / 64
}

/// The sum that a product of any powers is: whole powers of roots and of i go where they belong.
fn normal(exponents: Monomial, coefficient: Ratio, fuel: &mut Fuel) -> Option<Sum> {
    let (mut kept, mut coefficient) = (Monomial::new(), coefficient);
    let mut factors = Vec::new();
    for (atom, exponent) in exponents {
        if exponent.is_zero() {
            continue;
        }
        let whole = floor(&exponent)?;
        let part = exponent.checked_sub(&Ratio::integer(whole.into()))?;
        let left = match &atom {
            Atom::Pi | Atom::Euler | Atom::Log(_) => exponent,
            Atom::Root(prime) => {
                let base = Ratio::of(BigInt::from(prime.clone()), BigInt::one())?;
                coefficient = coefficient.checked_mul(&base.checked_pow(whole)?)?;
                part
            }
            Atom::Imaginary => {
                if whole.rem_euclid(4) >= 2 {
                    coefficient = coefficient.negated();
                }
                // Its exponents are whole.
                Ratio::integer(whole.rem_euclid(2).into())
            }
            Atom::Nested(sum) => {
                if whole != 0 {
                    factors.push(sum.pow(u64::try_from(whole).ok()?, fuel)?);
                }
                part
            }
        };
        if !left.is_zero() {
            kept.insert(atom, left);
        }
    }
    if kept.len() > ATOMS {
        return None;
    }
    let mut sum = Sum::single(kept, coefficient);
    for factor in factors {
        sum = sum.mul(&factor, fuel)?;
    }
    Some(sum)
}

/// The largest integer up to `value`, if it is small.
fn floor(value: &Ratio) -> Option<i64> {
    let (up, down) = value.parts()?;
    let whole = i64::try_from(up.div_euclid(down)).ok()?;
    (whole.abs() <= EXPONENT).then_some(whole)
}

fn root_of_term(monomial: &Monomial, c: &Ratio, index: i64, fuel: &mut Fuel) -> Option<Sum> {
    let share = Ratio::new(1, index.into())?;
    let imaginary = c.is_negative() && index == 2 && monomial.is_empty();
    if c.is_negative() && index % 2 == 0 && !imaginary {
        return None;
    }
    let mut exponents = Monomial::new();
    for (atom, exponent) in monomial {
        if matches!(atom, Atom::Imaginary) {
            return None;
        }
        exponents.insert(atom.clone(), exponent.checked_mul(&share)?);
    }
    for (part, sign) in [(c.numerator(), 1), (c.denominator(), -1)] {
        for (prime, power) in factors(part.magnitude(), fuel)? {
            let exponent = Ratio::integer(sign * power as i128).checked_mul(&share)?;
            let atom = Atom::Root(prime);
            let old = exponents.remove(&atom).unwrap_or_else(|| Ratio::integer(0));
            exponents.insert(atom, old.checked_add(&exponent)?);
        }
    }
    let sign = Ratio::integer(if c.is_negative() && !imaginary { -1 } else { 1 });
    let root = normal(exponents, sign, fuel)?;
    if imaginary { root.mul(&Sum::imaginary(), fuel) } else { Some(root) }
}

/// `times · ln(value)` for a positive integer.
fn log_of(value: &BigInt, times: &Ratio, fuel: &mut Fuel) -> Option<Sum> {
    let mut sum = Sum::default();
    if *value < BigInt::one() {
        return None;
    }
    for (prime, power) in factors(value.magnitude(), fuel)? {
        let monomial = [(Atom::Log(prime), Ratio::integer(1))].into();
        sum.accumulate(monomial, &times.checked_mul(&Ratio::integer(power.into()))?, fuel)?;
    }
    Some(sum)
}

/// The primes below 2^16.
fn primes() -> &'static [u32] {
    static PRIMES: OnceLock<Vec<u32>> = OnceLock::new();
    PRIMES.get_or_init(|| {
        let mut composite = vec![false; 1 << 16];
        let mut found = Vec::new();
        for n in 2..composite.len() {
            if !composite[n] {
                found.push(n as u32);
                (n * n..composite.len()).step_by(n).for_each(|multiple| composite[multiple] = true);
            }
        }
        found
    })
}

/// Prime factors of a positive integer with their powers. What is left after the primes below 2^16
/// counts as a prime, or as a power of one.
fn factors(value: &BigUint, fuel: &mut Fuel) -> Option<Vec<(BigUint, u32)>> {
    let (mut left, mut found) = (value.clone(), Vec::new());
    fuel.spend(20)?;
    for &prime in primes() {
        let small = left.to_u64();
        if small.is_some_and(|left| left < prime as u64 * prime as u64) {
            break;
        }
        // A prime of small numbers is cheap to try, one of large numbers is not.
        fuel.spend((prime % 64 == 1 || small.is_none()) as u64)?;
        let mut power = 0;
        while (&left % prime).to_u32() == Some(0) {
            left /= prime;
            power += 1;
        }
        if power > 0 {
            found.push((prime.into(), power));
        }
    }
    if !left.is_one() {
        let powers = (2..=(left.bits() / 16) as u32).rev();
        let whole = powers.map(|k| (left.nth_root(k), k)).find(|(root, k)| root.pow(*k) == left);
        fuel.spend(left.bits())?;
        found.push(whole.unwrap_or((left, 1)));
    }
    Some(found)
}
