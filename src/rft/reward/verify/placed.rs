//! Right answers in the right place.

use serde_json::{Map, Value};

use super::math::Read;
use super::{boxed, conclusion, golds, normalize, tagged};
use crate::reward::{Outcome, RewardInput, RewardOutcome};

/// Scores a right answer by where it stands, as in MOTIF (arXiv:2507.02851): in a box within the last
/// `<answer>…</answer>`, in a box somewhere else, or nowhere. A box is `\boxed{…}`, its last one
/// counts, and what it holds is right if it is a gold as a number or as a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The row's field with the gold: a value, or a list of which any will do.
    pub field: String,
    /// Scores of a right answer in its place, of one in another place, and of none.
    pub scores: [f32; 3],
}

impl Default for Placed {
    fn default() -> Placed {
        Placed { field: "answer".into(), scores: [2.0, 1.0, 0.0] }
    }
}

impl Placed {
    /// The least and the largest score.
    pub fn bounds(&self) -> (f64, f64) {
        let scores = self.scores.map(f64::from);
        (
            scores.into_iter().fold(f64::INFINITY, f64::min),
            scores.into_iter().fold(f64::NEG_INFINITY, f64::max),
        )
    }

    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let golds = golds(input.fields, &self.field)?;
        let right = |text: &str| golds.iter().any(|gold| same(text, gold));
        let answer = conclusion(input.completion).filter(|_| input.finished);
        let in_place = answer.and_then(|text| tagged(text, "answer")).and_then(boxed);
        let place = match (in_place.is_some_and(right), answer.and_then(boxed).is_some_and(right)) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        };
        Ok(RewardOutcome::Score(self.scores[place]))
    }

    /// Whether a row has golds.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        golds(fields, &self.field).map(|_| ())
    }
}

fn same(said: &str, gold: &str) -> bool {
    let numbers = Read::gold(said).zip(Read::gold(gold));
    normalize(said) == normalize(gold) || numbers.is_some_and(|(a, b)| a.is(&b, 0.0, 0.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn the_place_counts() {
        let row = json!({"answer": "1/2"});
        let placed = Placed { scores: [2.0, 1.0, -0.5], ..Placed::default() };
        for (completion, score) in [
            ("<answer>so \\boxed{0.5}</answer>", 2.0),
            ("<think>?</think><answer>\\boxed{1/2}</answer> \\boxed{3}", 2.0),
            ("\\boxed{0.5} <answer>0.5</answer>", 1.0),
            ("<answer>\\boxed{3}</answer> \\boxed{0.5}", 1.0),
            ("<answer>0.5</answer>", -0.5),
            ("<think><answer>\\boxed{0.5}</answer>", -0.5),
            ("", -0.5),
        ] {
            assert_eq!(
                ask(|i| placed.check(i), completion, &row),
                Ok(Score(score)),
                "{completion}"
            );
        }
        let named = json!({"answer": "New York"});
        let completion = "<answer>\\boxed{new york}</answer>";
        assert_eq!(ask(|i| Placed::default().check(i), completion, &named), Ok(Score(2.0)));
    }
}
