//! Intervals of time.

use serde_json::{Map, Value};

use super::numbers::numbers;
use super::{field, graded, parsed, said, unfit, verdict};
use crate::reward::{Outcome, RewardInput};

/// How well an interval lies on the gold interval: the length of their intersection over that of their
/// union, which videos call temporal IoU (LOVE-R1, arXiv:2509.24786). With a threshold it is 1 from
/// there on, else 0.
///
/// The interval is the last two numbers of the answer: `[12.5, 20]`, `12.5-20`, `from 12.5s to 20s`,
/// `0:12 to 0:20`. One that ends before it begins overlaps nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// The row's field with the gold: `[start, end]`, or a text with two numbers.
    pub field: String,
    /// From which overlap on an interval counts as found.
    pub threshold: Option<f64>,
}

impl Default for Interval {
    fn default() -> Interval {
        Interval { field: "interval".into(), threshold: None }
    }
}

impl Interval {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.gold(field(input.fields, &self.field)?)?;
        let numbers = said(input.completion).filter(|_| input.finished).map(numbers);
        let overlap = match numbers.as_deref() {
            Some([.., start, end]) => overlap([*start, *end], gold),
            Some(_) | None => 0.0,
        };
        match self.threshold {
            Some(threshold) => verdict(overlap >= threshold),
            None => graded(overlap),
        }
    }

    /// Whether a row has an interval.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.gold(field(fields, &self.field)?).map(|_| ())
    }

    fn gold(&self, value: &Value) -> Result<[f64; 2], String> {
        let value = parsed(value);
        let ends: Option<Vec<f64>> = match value.as_ref() {
            Value::Array(items) => items.iter().map(Value::as_f64).collect(),
            Value::String(text) => Some(numbers(text)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
        };
        match ends.as_deref() {
            Some(&[start, end]) if start < end => Ok([start, end]),
            Some(_) | None => {
                Err(unfit(&self.field, &value, "[start, end] with the start before the end"))
            }
        }
    }
}

fn overlap(said: [f64; 2], gold: [f64; 2]) -> f64 {
    let length = |[start, end]: [f64; 2]| (end - start).max(0.0);
    let common = length([said[0].max(gold[0]), said[1].min(gold[1])]);
    let overlap = common / (length(said) + length(gold) - common);
    // Ends may be huge.
    if (0.0..=1.0).contains(&overlap) { overlap } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    fn score(interval: &Interval, completion: &str, gold: Value) -> f32 {
        match ask(|i| interval.check(i), completion, &json!({"interval": gold})) {
            Ok(Score(score)) => score,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn intervals_in_every_spelling() {
        let interval = Interval::default();
        for (completion, expected) in [
            ("[10, 20]", 1.0),
            ("<answer>from 10.0s to 20.0s</answer>", 1.0),
            ("10-15", 0.5),
            ("0:05 to 0:15", 1.0 / 3.0),
            ("[30, 40]", 0.0),
            ("[20, 10]", 0.0),
            ("I saw 7 of them; 10 to 20", 1.0),
            ("12", 0.0),
            ("<think>10-20", 0.0),
            ("", 0.0),
        ] {
            let got = score(&interval, completion, json!([10, 20]));
            assert!((got - expected).abs() < 1e-6, "{completion}: {got}");
        }
        assert_eq!(score(&interval, "10-20", json!("0:10 to 0:20")), 1.0);
        let half = Interval { threshold: Some(0.5), ..interval.clone() };
        assert_eq!(score(&half, "10-15", json!([10, 20])), 1.0);
        assert_eq!(score(&half, "10-14", json!([10, 20])), 0.0);
        for gold in [json!([2, 1]), json!([1]), json!(3), json!("soon")] {
            let row = json!({"interval": gold});
            let error = interval.check_row(row.as_object().unwrap()).unwrap_err();
            assert!(error.contains("`interval`"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// An interval that is moved farther away overlaps less.
        #[test]
        fn nearer_is_better(start in 0u32..50, length in 1u32..50, by in 0u32..60, more in 1u32..20) {
            let at = |by: u32| {
                let said = format!("{}-{}", start + by, start + by + length);
                score(&Interval::default(), &said, json!([start, start + length]))
            };
            prop_assert!((0.0..=1.0).contains(&at(by)));
            prop_assert!(at(by + more) < at(by) || at(by + more) == 0.0);
        }
    }
}
