//! The answer as a text.

use serde_json::{Map, Value};

use super::answer::final_answer;
use super::{conclusion, golds, verdict};
use crate::reward::{Outcome, RewardInput};

/// 1 if the answer is one of the golds after [`normalize`], else 0. The answer is the content of
/// the last answer tag or box; without one, the whole completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Exact {
    /// The row's field with the gold: a value, or a list of which any will do.
    pub field: String,
    /// Whether a completion that was cut off scores 0.
    pub finished: bool,
}

impl Default for Exact {
    fn default() -> Exact {
        Exact { field: "answer".into(), finished: true }
    }
}

impl Exact {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let golds = golds(input.fields, &self.field)?;
        if self.finished && !input.finished {
            return verdict(false);
        }
        let Some(answer) = conclusion(input.completion) else { return verdict(false) };
        let said = normalize(final_answer(answer).unwrap_or(answer));
        verdict(golds.iter().any(|gold| normalize(gold) == said))
    }

    /// Whether a row has golds.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        golds(fields, &self.field).map(|_| ())
    }
}

/// `text` in lower case, without spaces around it and with one space between words.
pub fn normalize(text: &str) -> String {
    let lower = text.to_lowercase();
    lower.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn spacing_and_case_do_not_matter() {
        let row = json!({"answer": ["New York", "NYC"]});
        let check = |i: &RewardInput<'_>| Exact::default().check(i);
        for (completion, score) in [
            ("  new\n YORK ", 1.0),
            ("I say <answer>nyc</answer>", 1.0),
            ("\\boxed{New York}", 1.0),
            ("<think>Boston?</think>\nNew York", 1.0),
            ("Boston?</think>NYC", 1.0),
            ("<think>NYC", 0.0),
            ("New York City", 0.0),
            ("", 0.0),
        ] {
            assert_eq!(ask(check, completion, &row), Ok(Score(score)), "{completion}");
        }
        assert_eq!(ask(check, "True", &json!({"answer": true})), Ok(Score(1.0)));
        assert!(ask(check, "x", &json!({"gold": 1})).unwrap_err().contains("[gold]"));
    }
}
