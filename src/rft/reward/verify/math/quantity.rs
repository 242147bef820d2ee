//! Numbers with what they are measured in.

use super::expression::Parser;
use super::unit::{Unit, multiple};
use super::value::Value;

/// A number with what stands around it.
#[derive(Clone, Debug)]
pub struct Quantity {
    pub value: Value,
    pub unit: Unit,
    pub percent: bool,
    /// The base of the digits, where one is written below them.
    pub base: Option<(String, u32)>,
    /// Whether it is written with decimal places.
    pub decimal: bool,
    /// The other side of `≈`, or of `=` between a number and its decimals.
    pub also: Option<Box<Quantity>>,
}

impl Parser<'_> {
    /// A number with a currency before it and units behind it.
    pub fn quantity(&mut self) -> Option<Quantity> {
        let signed = matches!(self.sign(0), Some('+' | '-'))
            && self.sign(1).is_some_and(|sign| Unit::named(&sign.to_string()).is_some());
        let negative = signed && self.sign(0) == Some('-');
        self.at += signed as usize;
        let mut unit = Unit::none();
        if let Some(sign) = self.sign(0).filter(|sign| "$€£¥₹".contains(*sign)) {
            unit = Unit::named(&sign.to_string())?;
            self.at += 1;
        }
        let decimal = self.number(0).is_some_and(|number| number.decimal)
            || matches!(self.sign(0), Some('-')) && self.number(1).is_some_and(|n| n.decimal);
        let (value, base) = match self.attempt(Parser::based) {
            Some((value, base)) => (value, Some(base)),
            None => (self.expression()?, None),
        };
        let value = if negative { value.negated() } else { value };
        let mut quantity = Quantity { value, unit, percent: false, base, decimal, also: None };
        // `2 million`, `$2 million`, `2 hundred thousand`.
        while let Some(times) = self.word(0).and_then(multiple) {
            self.at += 1;
            quantity.value = quantity.value.mul(&Value::integer(times), self.fuel)?;
        }
        self.units(&mut quantity)?;
        Some(quantity)
    }

    /// Digits with a base below them.
    fn based(&mut self) -> Option<(Value, (String, u32))> {
        let number = self.number(0)?.clone();
        let digits = number.digits?;
        self.at += 1;
        self.take('_').then_some(())?;
        let braced = self.take('{');
        let base = self.number(0)?.value.clone()?.to_base()?;
        self.at += 1;
        let closed = !braced || self.take('}');
        closed.then_some((number.value?, (digits, base)))
    }

    /// What a number is measured in. Words that are no unit are taken as well where they cannot be
    /// variables, except in a sentence, whose rest is the caller's.
    fn units(&mut self, quantity: &mut Quantity) -> Option<()> {
        let (mut power, mut last, mut prose) = (1, None, false);
        if let Some(unit) = self.attempt(Parser::stacked_unit) {
            quantity.unit = quantity.unit.times(&unit, 1)?;
        }
        loop {
            if matches!(self.sign(0), Some('^')) && self.raised_unit(quantity, &mut last)? {
                continue;
            }
            let divides = match self.sign(0) {
                Some('%') => {
                    self.at += 1;
                    quantity.percent = true;
                    continue;
                }
                Some(sign @ ('°' | '$' | '€' | '£' | '¥' | '₹' | '¢'))
                    if quantity.unit.is_none() =>
                {
                    quantity.unit = Unit::named(&sign.to_string())?;
                    self.at += 1;
                    self.at += (sign == '°' && self.temperature()) as usize;
                    continue;
                }
                Some('/') if last.is_some() || prose => true,
                Some('*' | '-')
                    if (last.is_some() || prose || self.hyphenated()) && self.word(1).is_some() =>
                {
                    false
                }
                Some(_) => return Some(()),
                None if self.word(0) == Some("per") => true,
                None => {
                    match self.unit_word(quantity, power, prose)? {
                        Taken::Unit(unit, power) => last = Some((unit, power)),
                        Taken::Word => prose = true,
                        Taken::Percent => {}
                        Taken::Nothing => return Some(()),
                    }
                    power = 1;
                    continue;
                }
            };
            let next =
                self.word(1).is_some_and(|word| self.is_unit(word, 1) || divides && word.len() > 1);
            if !next {
                return Some(());
            }
            self.at += 1;
            power = if divides { -1 } else { power };
        }
    }

    /// `5-year`: words behind a hyphen without spaces.
    fn hyphenated(&self) -> bool {
        self.sign(0) == Some('-')
            && !self.spaced(0)
            && !self.spaced(1)
            && self.word(1).is_some_and(|word| word.len() > 2)
    }

    /// A power of a unit, degrees or an ordinal's ending. `false` where it is none of these.
    fn raised_unit(
        &mut self,
        quantity: &mut Quantity,
        last: &mut Option<(Unit, i64)>,
    ) -> Option<bool> {
        let braced = self.sign(1) == Some('{');
        let inside = 1 + braced as usize;
        let after = inside + 1 + braced as usize;
        if braced && self.sign(inside + 1) != Some('}') {
            return Some(false);
        }
        let degrees = self.sign(inside) == Some('°');
        if degrees {
            quantity.unit = Unit::named("°")?;
        } else if let Some((unit, power)) = last.take()
            && let Some(exponent) = self.number(inside).and_then(|n| n.value.clone()?.to_integer())
        {
            quantity.unit = quantity.unit.times(&unit, power * (exponent - 1))?;
        } else if !self.word(inside).is_some_and(ordinal) {
            return Some(false);
        }
        self.at += after;
        self.at += (degrees && self.temperature()) as usize;
        Some(true)
    }

    /// Whether a scale of temperature is named here.
    fn temperature(&self) -> bool {
        matches!(self.word(0), Some("C" | "F" | "K" | "Celsius" | "Fahrenheit"))
    }

    /// `\frac{\text{m}}{\text{s}}`
    fn stacked_unit(&mut self) -> Option<Unit> {
        matches!(self.command(0), Some("frac" | "dfrac" | "tfrac")).then_some(())?;
        self.at += 1;
        let mut unit = Unit::none();
        for power in [1, -1] {
            self.take('{').then_some(())?;
            while !self.take('}') {
                let part =
                    self.word(0).filter(|word| self.is_unit(word, 0)).and_then(Unit::named)?;
                self.at += 1;
                let exponent = match self.take('^') {
                    true => {
                        let exponent = self.number(0)?.value.clone()?.to_integer()?;
                        self.at += 1;
                        exponent
                    }
                    false => 1,
                };
                let _ = self.take('*');
                unit = unit.times(&part, power * exponent)?;
            }
        }
        Some(unit)
    }

    fn is_unit(&self, word: &str, ahead: usize) -> bool {
        let attached = !self.spaced(ahead) && self.token(ahead).is_some_and(|token| !token.text);
        Unit::named(word).is_some() && !(attached && word.len() == 1 && !"mgshlL".contains(word))
    }

    /// Takes one word behind a number.
    fn unit_word(&mut self, quantity: &mut Quantity, power: i64, prose: bool) -> Option<Taken> {
        let Some(word) = self.word(0).map(String::from) else { return Some(Taken::Nothing) };
        if self.conjunction(0) {
            return Some(Taken::Nothing);
        }
        if word == "percent" {
            self.at += 1;
            quantity.percent = true;
            return Some(Taken::Percent);
        }
        let exponent = match word.as_str() {
            "sq" | "square" => 2,
            "cu" | "cubic" => 3,
            _ => 1,
        };
        // `sq. ft`
        let ahead = match exponent {
            1 => 0,
            _ => 1 + (self.sign(1) == Some('.')) as usize,
        };
        let unit = self.word(ahead).filter(|name| self.is_unit(name, ahead)).and_then(Unit::named);
        if let Some(unit) = unit {
            self.at += ahead + 1;
            let after = match self.word(0) {
                Some("squared") => 2,
                Some("cubed") => 3,
                _ => 1,
            };
            self.at += (after > 1) as usize;
            quantity.unit = quantity.unit.times(&unit, power * exponent * after)?;
            return Some(Taken::Unit(unit, power));
        }
        let (spaced, text) = (self.spaced(0), self.token(0).is_some_and(|token| token.text));
        let sentence = spaced && (says_something(&word) || prose && word.len() > 1);
        let taken = !spaced && ordinal(&word)
            || !word.is_ascii()
            || !self.prose && (text && !operates(&word) || sentence);
        self.at += taken as usize;
        Some(if taken { Taken::Word } else { Taken::Nothing })
    }
}

/// What a word behind a number was.
enum Taken {
    Unit(Unit, i64),
    /// No unit that is known, but none that matters: `apples`.
    Word,
    /// `percent`, which belongs to the number.
    Percent,
    /// Nothing that belongs to the quantity.
    Nothing,
}

/// Whether a word is no product of variables and no arithmetic.
fn says_something(word: &str) -> bool {
    let alphabet = "abcdefghijklmnopqrstuvwxyz".contains(&word.to_lowercase());
    word.len() > 2 && !alphabet && !operates(word)
}

/// Whether a word calculates with the number before it.
pub fn operates(word: &str) -> bool {
    matches!(
        word,
        "plus"
            | "minus"
            | "times"
            | "divided"
            | "multiplied"
            | "over"
            | "mod"
            | "modulo"
            | "squared"
            | "cubed"
            | "factorial"
            | "choose"
            | "to"
            | "through"
            | "out"
            | "more"
            | "less"
            | "or"
            | "and"
    )
}

fn ordinal(word: &str) -> bool {
    matches!(word, "st" | "nd" | "rd" | "th")
}
