//! Units of quantities.

use std::collections::BTreeMap;

use super::super::ratio::Ratio;

/// What a quantity is measured in. Words that are no known unit (`apples`) leave no trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Powers of base units.
    dimensions: BTreeMap<&'static str, i64>,
    /// The unit in base units.
    scale: Ratio,
}

/// Spellings of a unit, its dimension with the power, and its size in the base unit of that.
type Row = (&'static [&'static str], &'static str, i64, i128, i128);

const UNITS: &[Row] = &[
    (&["m", "meter", "meters", "metre", "metres"], "m", 1, 1, 1),
    (&["km", "kilometer", "kilometers", "kilometre", "kilometres"], "m", 1, 1000, 1),
    (&["dm", "decimeter", "decimeters"], "m", 1, 1, 10),
    (&["cm", "centimeter", "centimeters", "centimetre", "centimetres"], "m", 1, 1, 100),
    (&["mm", "millimeter", "millimeters", "millimetre", "millimetres"], "m", 1, 1, 1000),
    (&["nm", "nanometer", "nanometers"], "m", 1, 1, 1_000_000_000),
    (&["inch", "inches"], "m", 1, 127, 5000),
    (&["ft", "foot", "feet"], "m", 1, 381, 1250),
    (&["yd", "yds", "yard", "yards"], "m", 1, 1143, 1250),
    (&["mi", "mile", "miles"], "m", 1, 201_168, 125),
    (&["s", "sec", "secs", "second", "seconds"], "s", 1, 1, 1),
    (&["ms", "millisecond", "milliseconds"], "s", 1, 1, 1000),
    (&["min", "mins", "minute", "minutes"], "s", 1, 60, 1),
    (&["h", "hr", "hrs", "hour", "hours"], "s", 1, 3600, 1),
    (&["day", "days"], "s", 1, 86_400, 1),
    (&["week", "weeks"], "s", 1, 604_800, 1),
    (&["month", "months"], "month", 1, 1, 1),
    (&["year", "years", "yr", "yrs"], "month", 1, 12, 1),
    (&["g", "gram", "grams", "gramme", "grammes"], "g", 1, 1, 1),
    (&["kg", "kgs", "kilogram", "kilograms", "kilogramme", "kilogrammes"], "g", 1, 1000, 1),
    (&["mg", "milligram", "milligrams"], "g", 1, 1, 1000),
    (&["lb", "lbs"], "lb", 1, 1, 1),
    (&["oz", "ounce", "ounces"], "oz", 1, 1, 1),
    (&["l", "L", "liter", "liters", "litre", "litres"], "m", 3, 1, 1000),
    (&["ml", "mL", "milliliter", "milliliters", "millilitre", "millilitres"], "m", 3, 1, 1_000_000),
    (&["gal", "gallon", "gallons"], "gal", 1, 1, 1),
    (&["dollar", "dollars", "USD", "$"], "USD", 1, 1, 1),
    (&["cent", "cents", "¢"], "USD", 1, 1, 100),
    (&["euro", "euros", "EUR", "€"], "EUR", 1, 1, 1),
    (&["GBP", "£"], "GBP", 1, 1, 1),
    (&["yen", "JPY", "¥"], "JPY", 1, 1, 1),
    (&["rupee", "rupees", "INR", "₹"], "INR", 1, 1, 1),
    (&["degree", "degrees", "deg", "°"], "degree", 1, 1, 1),
    (&["rad", "rads", "radian", "radians"], "radian", 1, 1, 1),
    (&["Hz", "hertz"], "s", -1, 1, 1),
];

/// Units that are several others.
const COMPOSED: &[(&str, &str, &str)] =
    &[("mph", "mile", "hour"), ("kph", "km", "hour"), ("kmh", "km", "hour")];

impl Unit {
    pub fn none() -> Unit {
        Unit { dimensions: BTreeMap::new(), scale: Ratio::integer(1) }
    }

    /// The unit with this name.
    pub fn named(name: &str) -> Option<Unit> {
        if let Some((_, over, under)) = COMPOSED.iter().find(|(composed, ..)| *composed == name) {
            return Unit::named(over)?.times(&Unit::named(under)?, -1);
        }
        // `Meters` at the start of a sentence; letters alone differ by their case.
        let lower = name.to_lowercase();
        let is = |spelling: &str| spelling == name || name.len() > 2 && spelling == lower;
        let row = UNITS.iter().find(|(names, ..)| names.iter().any(|&spelling| is(spelling)))?;
        let &(_, dimension, power, up, down) = row;
        Some(Unit { dimensions: [(dimension, power)].into(), scale: Ratio::new(up, down)? })
    }

    /// `self · other^power`.
    pub fn times(&self, other: &Unit, power: i64) -> Option<Unit> {
        let mut dimensions = self.dimensions.clone();
        for (dimension, by) in &other.dimensions {
            *dimensions.entry(dimension).or_default() += by * power;
        }
        dimensions.retain(|_, power| *power != 0);
        let scale = self.scale.checked_mul(&other.scale.checked_pow(power)?)?;
        Some(Unit { dimensions, scale })
    }

    pub fn is_none(&self) -> bool {
        self.dimensions.is_empty()
    }

    pub fn is(&self, dimension: &str) -> bool {
        self.dimensions.len() == 1 && self.dimensions.get(dimension) == Some(&1)
    }

    /// This unit in `other`s, if both measure the same.
    pub fn over(&self, other: &Unit) -> Option<Ratio> {
        (self.dimensions == other.dimensions).then(|| self.scale.checked_div(&other.scale))?
    }
}

/// What a word multiplies the number before it with.
pub fn multiple(word: &str) -> Option<i128> {
    Some(match word {
        "dozen" => 12,
        "hundred" => 100,
        "thousand" => 1000,
        "million" => 1_000_000,
        "billion" => 1_000_000_000,
        "trillion" => 1_000_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_unit() {
        let names: Vec<&str> = UNITS.iter().flat_map(|(names, ..)| names.iter().copied()).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name}");
            assert!(Unit::named(name).is_some_and(|unit| !unit.is_none()));
        }
        let (kmh, mps) = (Unit::named("kmh").unwrap(), Unit::named("m").unwrap());
        let mps = mps.times(&Unit::named("s").unwrap(), -1).unwrap();
        assert_eq!(kmh.over(&mps), Ratio::new(5, 18));
        assert_eq!(kmh.over(&Unit::none()), None);
        assert!(Unit::named("apples").is_none() && Unit::named("M").is_none());
    }
}
