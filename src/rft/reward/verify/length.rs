//! Texts of a wanted length.

use serde_json::{Map, Value};

use super::{conclusion, field, graded, parsed, unfit, verdict};
use crate::reward::{Outcome, RewardInput};

/// How near the length of the answer comes to the wanted one: the smaller of the two over the larger.
/// Within a wanted range it is 1, outside the nearer end counts. Lengths are words, which white space
/// separates, or characters. Reasoning does not count.
#[derive(Clone, Debug, PartialEq)]
pub struct Length {
    /// The row's field with the wanted length: a number above 0, or `[least, most]`.
    pub field: String,
    /// Whether characters are counted and not words.
    pub chars: bool,
}

impl Default for Length {
    fn default() -> Length {
        Length { field: "length".into(), chars: false }
    }
}

impl Length {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let [least, most] = self.wanted(field(input.fields, &self.field)?)?;
        let Some(answer) = conclusion(input.completion) else { return verdict(false) };
        let length = match self.chars {
            true => answer.trim().chars().count(),
            false => answer.split_whitespace().count(),
        } as f64;
        graded((length / least).min(most / length).min(1.0))
    }

    /// Whether a row has a length.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.wanted(field(fields, &self.field)?).map(|_| ())
    }

    fn wanted(&self, value: &Value) -> Result<[f64; 2], String> {
        let value = parsed(value);
        let ends = match value.as_ref() {
            Value::Array(items) => items.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>(),
            Value::String(text) => text.trim().parse().ok().map(|one| vec![one, one]),
            one => one.as_f64().map(|one| vec![one, one]),
        };
        match ends.as_deref() {
            Some(&[least, most]) if 0.0 < least && least <= most && most.is_finite() => {
                Ok([least, most])
            }
            Some(_) | None => Err(unfit(&self.field, &value, "a number above 0, or [least, most]")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    fn score(length: &Length, completion: &str, wanted: Value) -> f32 {
        match ask(|i| length.check(i), completion, &json!({"length": wanted})) {
            Ok(Score(score)) => score,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn words_characters_and_ranges() {
        let words = Length::default();
        for (completion, wanted, expected) in [
            ("one two", json!(2), 1.0),
            ("one", json!("2"), 0.5),
            ("a b c d", json!(2), 0.5),
            ("<think>a b c</think> one two", json!(2), 1.0),
            ("a b c", json!([2, 4]), 1.0),
            ("a", json!([2, 4]), 0.5),
            ("a b c d e f g h", json!("[2, 4]"), 0.5),
            ("", json!(2), 0.0),
            ("<think>a b", json!(2), 0.0),
        ] {
            assert_eq!(score(&words, completion, wanted), expected, "{completion}");
        }
        assert_eq!(score(&Length { chars: true, ..words.clone() }, " été ", json!(3)), 1.0);
        for wanted in [json!(0), json!([3, 2]), json!("long"), json!([1])] {
            let row = json!({"length": wanted});
            assert!(words.check_row(row.as_object().unwrap()).unwrap_err().contains("`length`"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn nearer_is_better(wanted in 1usize..40, off in 0usize..40, more in 1usize..20) {
            let of = |n: usize| score(&Length::default(), &"w ".repeat(n), json!(wanted));
            prop_assert!(of(wanted + off + more) < of(wanted + off));
            prop_assert!((0.0..=1.0).contains(&of(off)));
            let (far, near) = (wanted.saturating_sub(off + more), wanted.saturating_sub(off));
            prop_assert!(of(far) < of(near) || far == near);
        }
    }
}
