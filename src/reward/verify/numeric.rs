//! The final number of a completion.

use super::answer::{Marker, final_answer};
use super::number::{Number, numbers};
use super::{golds, verdict};
use crate::reward::{Outcome, RewardInput};

/// 1 if the completion's final number is the gold number, else 0.
///
/// The number is looked for where [`final_answer`] finds a marked answer: in a tag or a box the
/// whole content, or else the last number in it; after `####` or a phrase the first number on the
/// line. Without a mark it is the last number of the completion. The gold is read in the same way,
/// so that the worked solutions of GSM8K can stand in `answer` as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Numeric {
    /// The row's field with the gold: a number, a text, or a list of which any will do.
    pub field: String,
    /// Allowed distance from the gold. With this and `relative` at 0 the comparison is exact.
    pub absolute: f64,
    /// Allowed distance as a share of the gold.
    pub relative: f64,
    /// Whether a completion that was cut off scores 0: its last number is an accident.
    pub finished: bool,
}

impl Default for Numeric {
    fn default() -> Numeric {
        Numeric { field: "answer".into(), absolute: 0.0, relative: 0.0, finished: true }
    }
}

impl Numeric {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let golds = golds(input.fields, &self.field)?;
        let read = |text: &String| {
            Numeric::extract(text)
                .ok_or_else(|| format!("row field `{}` holds no number: `{text}`", self.field))
        };
        let golds = golds.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if self.finished && !input.finished {
            return verdict(false);
        }
        let said = Numeric::extract(input.completion);
        verdict(said.is_some_and(|said| golds.iter().any(|gold| self.accepts(&said, gold))))
    }

    fn accepts(&self, said: &Number, gold: &Number) -> bool {
        let tolerant = self.absolute > 0.0 || self.relative > 0.0;
        said.equals(gold) || tolerant && said.is_near(gold, self.absolute, self.relative)
    }

    /// The final number of `text`.
    pub fn extract(text: &str) -> Option<Number> {
        match final_answer(text) {
            Some((Marker::Tag | Marker::Boxed, inside)) => {
                Number::parse(inside).or_else(|| numbers(inside).pop())
            }
            Some((Marker::Hashes | Marker::Phrase, rest)) => numbers(rest).into_iter().next(),
            None => Number::parse(text).or_else(|| numbers(text).pop()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn gsm8k_rows() {
        let row = json!({"answer": "She sold 48/2 = 24.\n#### 1,072"});
        let verifier = Numeric::default();
        for (completion, score) in [
            ("... so 536 * 2 = 1072.", 1.0),
            ("#### 1072 dollars", 1.0),
            ("The answer is $1,072.00.", 1.0),
            ("<answer>1072</answer> or 5", 1.0),
            ("\\boxed{x = 1072}", 1.0),
            ("1072, no: 1073", 0.0),
            ("", 0.0),
            ("none", 0.0),
        ] {
            assert_eq!(
                ask(|i| verifier.check(i), completion, &row),
                Ok(Score(score)),
                "{completion}"
            );
        }
    }

    #[test]
    fn golds_of_every_kind() {
        let verifier = Numeric::default();
        for gold in
            [json!(0.5), json!("1/2"), json!("\\frac{1}{2}"), json!(["7", 0.5]), json!("50%")]
        {
            let row = json!({"answer": gold});
            assert_eq!(ask(|i| verifier.check(i), "It is 0.50", &row), Ok(Score(1.0)), "{gold}");
        }
        for gold in [json!(null), json!("none"), json!([]), json!({"a": 1})] {
            let error = ask(|i| verifier.check(i), "1", &json!({"answer": gold})).unwrap_err();
            assert!(error.contains("`answer`"), "{error}");
        }
    }

    #[test]
    fn tolerance_and_ends() {
        let near = Numeric { relative: 0.01, ..Numeric::default() };
        assert_eq!(ask(|i| near.check(i), "2.53", &json!({"answer": 2.51})), Ok(Score(1.0)));
        let row = json!({"answer": 4}).as_object().unwrap().clone();
        let cut = RewardInput { prompt: "", completion: "4", finished: false, fields: &row };
        assert_eq!(Numeric::default().check(&cut), Ok(Score(0.0)));
        let lenient = Numeric { finished: false, ..Numeric::default() };
        assert_eq!(lenient.check(&cut), Ok(Score(1.0)));
    }
}
