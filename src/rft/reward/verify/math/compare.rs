//! Whether two answers are the same.

use super::super::ratio::Ratio;
use super::answer::{Answer, Item};
use super::quantity::Quantity;
use super::sum::{Fuel, Sum};
use super::value::Value;

/// Allowed distance of real numbers from the gold. Where both are 0 the comparison is exact.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tolerance {
    pub absolute: f64,
    pub relative: f64,
}

/// Whether `said` is `gold`. What would take too long to decide is not.
pub fn same(said: &Answer, gold: &Answer, tolerance: Tolerance, fuel: &mut Fuel) -> bool {
    let mut judge = Judge { tolerance, fuel };
    judge.same(said, gold)
}

struct Judge<'a> {
    tolerance: Tolerance,
    fuel: &'a mut Fuel,
}

impl Judge<'_> {
    fn same(&mut self, said: &Answer, gold: &Answer) -> bool {
        if self.fuel.spend(1).is_none() {
            return false;
        }
        match (said, gold) {
            (Answer::Quantity(a), Answer::Quantity(b)) => self.quantities(a, b),
            (Answer::Infinity { negative: a }, Answer::Infinity { negative: b }) => a == b,
            (
                Answer::Group { open, close, items },
                Answer::Group { open: gold_open, close: gold_close, items: gold },
            ) => match open == gold_open && close == gold_close {
                // With a 0 in it, as in 12:00, it is a time and no ratio.
                true if *open == ':' && !has_zero(items) && !has_zero(gold) => {
                    self.proportional(items, gold)
                }
                alike => alike && self.in_order(items.iter(), gold.iter()),
            },
            (Answer::Set { items: a, .. }, Answer::Set { items: b, .. }) => self.sets(a, b),
            // `x = 3, y = 5` is the point (3, 5); below, a set of one is its member.
            (
                Answer::Set { bare: true, items },
                Answer::Group { open: '(', close: ')', items: gold },
            ) => self.in_order(items.iter().map(|item| &item.answer), gold.iter()),
            (
                Answer::Group { open: '(', close: ')', items },
                Answer::Set { bare: true, items: gold },
            ) => self.in_order(items.iter(), gold.iter().map(|item| &item.answer)),
            (Answer::Group { open: ':', items, .. }, Answer::Quantity(gold)) => {
                self.fraction(items).is_some_and(|value| self.values(&value, &gold.value))
            }
            (Answer::Quantity(said), Answer::Group { open: ':', items, .. }) => {
                self.fraction(items).is_some_and(|value| self.values(&said.value, &value))
            }
            (Answer::Set { items, .. }, other) => {
                !items.is_empty() && items.iter().all(|item| self.same(&item.answer, other))
            }
            (other, Answer::Set { items, .. }) => {
                !items.is_empty() && items.iter().all(|item| self.same(other, &item.answer))
            }
            (Answer::Quantity(_) | Answer::Infinity { .. } | Answer::Group { .. }, _) => false,
        }
    }

    fn in_order<'b>(
        &mut self,
        said: impl ExactSizeIterator<Item = &'b Answer>,
        gold: impl ExactSizeIterator<Item = &'b Answer>,
    ) -> bool {
        said.len() == gold.len() && said.zip(gold).all(|(a, b)| self.same(a, b))
    }

    /// Every member of one is in the other. Names count where all have one.
    fn sets(&mut self, said: &[Item], gold: &[Item]) -> bool {
        let named = said.iter().chain(gold).all(|item| item.label.is_some());
        let distinct = |items: &[Item]| {
            let first = items.first().and_then(|item| item.label.as_ref());
            items.iter().skip(1).all(|item| item.label.as_ref() != first)
        };
        let named = named && distinct(said) && distinct(gold);
        let mut covers =
            |a: &Item, b: &Item| (!named || a.label == b.label) && self.same(&a.answer, &b.answer);
        gold.iter().all(|gold| said.iter().any(|said| covers(said, gold)))
            && said.iter().all(|said| gold.iter().any(|gold| covers(said, gold)))
    }

    /// The value of a ratio of two; a time of day has none.
    fn fraction(&mut self, items: &[Answer]) -> Option<Value> {
        match items {
            [Answer::Quantity(a), Answer::Quantity(b)] if !time_of_day(&a.value, &b.value) => {
                a.value.div(&b.value, self.fuel)
            }
            _ => None,
        }
    }

    fn proportional(&mut self, said: &[Answer], gold: &[Answer]) -> bool {
        let value = |answer: &Answer| match answer {
            Answer::Quantity(quantity) => Some(quantity.value.clone()),
            Answer::Infinity { .. } | Answer::Group { .. } | Answer::Set { .. } => None,
        };
        let all = |items: &[Answer]| items.iter().map(value).collect::<Option<Vec<_>>>();
        let (Some(said), Some(gold)) = (all(said), all(gold)) else { return false };
        said.len() == gold.len()
            && said.iter().zip(&gold).all(|(a, b)| {
                let left = a.mul(&gold[0], self.fuel);
                let right = b.mul(&said[0], self.fuel);
                left.zip(right).is_some_and(|(left, right)| self.values(&left, &right))
            })
    }

    fn quantities(&mut self, said: &Quantity, gold: &Quantity) -> bool {
        let (mut a, mut all) = (Some(said), Vec::new());
        while let Some(one) = a {
            let mut b = Some(gold);
            while let Some(other) = b {
                all.push((one, other));
                b = other.also.as_deref();
            }
            a = one.also.as_deref();
        }
        all.into_iter().any(|(a, b)| self.alike(a, b))
    }

    fn alike(&mut self, said: &Quantity, gold: &Quantity) -> bool {
        if said.base.is_some() || gold.base.is_some() {
            return based(said, gold);
        }
        let mut value = said.value.clone();
        if !said.unit.is_none() && !gold.unit.is_none() {
            let Some(factor) = self.factor(said, gold) else { return false };
            match value.mul(&factor, self.fuel) {
                Some(scaled) => value = scaled,
                None => return false,
            }
        }
        if self.percentages(&value, said.percent, &gold.value, gold.percent) {
            return true;
        }
        // An angle with π in it and no unit is in radians.
        let irrational =
            |quantity: &Quantity| quantity.unit.is_none() && quantity.value.to_rational().is_none();
        let turned = |radians: &Value, fuel: &mut Fuel| radians.mul(&degrees(fuel)?, fuel);
        if irrational(said) && gold.unit.is("degree") {
            let value = turned(&value, self.fuel);
            return value.is_some_and(|value| self.values(&value, &gold.value));
        }
        if irrational(gold) && said.unit.is("degree") {
            let gold = turned(&gold.value, self.fuel);
            return gold.is_some_and(|gold| self.values(&value, &gold));
        }
        false
    }

    /// What a number in the unit of `said` is multiplied with to be in that of `gold`.
    fn factor(&mut self, said: &Quantity, gold: &Quantity) -> Option<Value> {
        if said.unit.is("radian") && gold.unit.is("degree") {
            return degrees(self.fuel);
        }
        if said.unit.is("degree") && gold.unit.is("radian") {
            return Value::integer(1).div(&degrees(self.fuel)?, self.fuel);
        }
        Some(Value::rational(said.unit.over(&gold.unit)?))
    }

    /// A percent sign on one side only may mean either of two things, and both are taken: `50%` is
    /// 50 and 0.5.
    fn percentages(&mut self, a: &Value, a_percent: bool, b: &Value, b_percent: bool) -> bool {
        if self.values(a, b) {
            return true;
        }
        let hundredth =
            |value: &Value, fuel: &mut Fuel| value.mul(&Value::rational(Ratio::new(1, 100)?), fuel);
        if a_percent == b_percent {
            return false;
        }
        let (mut a, mut b) = (Some(a.clone()), Some(b.clone()));
        let part = if a_percent { &mut a } else { &mut b };
        *part = part.take().and_then(|value| hundredth(&value, self.fuel));
        a.zip(b).is_some_and(|(a, b)| self.values(&a, &b))
    }

    fn values(&mut self, said: &Value, gold: &Value) -> bool {
        if said.equals(gold, self.fuel) == Some(true) {
            return true;
        }
        let Tolerance { absolute, relative } = self.tolerance;
        if absolute == 0.0 && relative == 0.0 {
            return false;
        }
        match (said.to_f64(), gold.to_f64()) {
            (Some(a), Some(b)) => {
                // Infinities, which are numbers beyond doubles, are near to nothing.
                (a - b).abs() <= absolute + relative * b.abs() && b.is_finite()
            }
            _ => false,
        }
    }
}

fn has_zero(items: &[Answer]) -> bool {
    let zero = |item: &Answer| match item {
        Answer::Quantity(quantity) => quantity.value.to_rational().is_some_and(|r| r.is_zero()),
        Answer::Infinity { .. } | Answer::Group { .. } | Answer::Set { .. } => false,
    };
    items.iter().any(zero)
}

/// Whether `hours:minutes` is rather a time than a ratio: nobody writes a ratio of such numbers without
/// their common divisor.
fn time_of_day(hours: &Value, minutes: &Value) -> bool {
    match (hours.to_integer(), minutes.to_integer()) {
        (Some(a @ 0..24), Some(b @ 10..60)) => (2..=b).any(|part| a % part == 0 && b % part == 0),
        _ => false,
    }
}

/// Degrees in a radian.
fn degrees(fuel: &mut Fuel) -> Option<Value> {
    Value::integer(180).div(&Value::whole(Sum::pi()), fuel)
}

/// Digits with a base have the value of these digits. Where only the gold has one the digits may stand
/// alone: its base is that of the question.
fn based(said: &Quantity, gold: &Quantity) -> bool {
    let value = |quantity: &Quantity| match quantity.base.as_ref() {
        Some((digits, base)) => Value::in_base(digits, *base)?.to_rational(),
        None => quantity.value.to_rational(),
    };
    if said.base.is_none() {
        return said.value.digits().is_some() && said.value.digits() == gold.value.digits();
    }
    value(said).is_some_and(|said| value(gold) == Some(said))
}
