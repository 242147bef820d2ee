//! Numbers that need not be exact.

use serde_json::{Map, Value};

use super::math::{Read, Real};
use super::{conclusion, golds, graded, normalize, said, verdict};
use crate::reward::{Outcome, RewardInput};

/// How near a number comes to the gold number t: 1 / (1 + |p - t| / |t|), as in BigCharts-R1
/// (arXiv:2508.09804). It is 1 for the gold number and 1/2 for one that is off by all of it. For t = 0
/// only 0 is right. A gold that is no number is compared as a text, and scores 1 or 0.
///
/// The answer is found as [`Numeric`](super::Numeric) finds it; units are passed over, and a percent
/// sign on one side only may mean either of two things. Without a number in it a completion scores 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Relative {
    /// The row's field with the gold: a value, or a list of which any will do.
    pub field: String,
    /// Whether a completion that was cut off scores 0: its last number is an accident.
    pub finished: bool,
}

impl Default for Relative {
    fn default() -> Relative {
        Relative { field: "answer".into(), finished: true }
    }
}

impl Relative {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let golds = golds(input.fields, &self.field)?;
        if self.finished && !input.finished {
            return verdict(false);
        }
        let Some(answer) = conclusion(input.completion) else { return verdict(false) };
        let number = Read::completion(answer).and_then(|read| read.real());
        let text = said(answer).map(normalize);
        let score = |gold: &String| match Read::gold(gold).and_then(|read| read.real()) {
            Some(gold) => number.map_or(0.0, |said| nearness(said, gold)),
            None => (text.as_ref() == Some(&normalize(gold))) as u8 as f64,
        };
        graded(golds.iter().map(score).fold(0.0, f64::max))
    }

    /// Whether a row has golds.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        golds(fields, &self.field).map(|_| ())
    }
}

fn nearness(said: Real, gold: Real) -> f64 {
    let near = |p: f64, t: f64| match t == 0.0 {
        true => (p == 0.0) as u8 as f64,
        false => 1.0 / (1.0 + (p - t).abs() / t.abs()),
    };
    let same = near(said.value, gold.value);
    match (said.percent, gold.percent) {
        (true, false) => same.max(near(said.value / 100.0, gold.value)),
        (false, true) => same.max(near(said.value, gold.value / 100.0)),
        (true, true) | (false, false) => same,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    fn score(completion: &str, gold: Value) -> f32 {
        match ask(|i| Relative::default().check(i), completion, &json!({"answer": gold})) {
            Ok(Score(score)) => score,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_are_graded_and_texts_are_not() {
        for (completion, gold, expected) in [
            ("It is 50.", json!(50), 1.0),
            ("<answer>45</answer>", json!(50), 1.0 / 1.1),
            ("100", json!(50), 0.5),
            ("-50", json!(50), 1.0 / 3.0),
            ("0.5", json!("50%"), 1.0),
            ("50%", json!("50%"), 1.0),
            ("0", json!(0), 1.0),
            ("0.1", json!(0), 0.0),
            ("none", json!(50), 0.0),
            ("<think>50", json!(50), 0.0),
            (" new  york", json!("New York"), 1.0),
            ("Boston", json!("New York"), 0.0),
            ("7", json!([1, 7]), 1.0),
        ] {
            assert!(
                (score(completion, gold.clone()) - expected).abs() < 1e-6,
                "{completion} {gold}"
            );
        }
        assert!(Relative::default().check_row(&Map::new()).unwrap_err().contains("`answer`"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// The farther, the less; never out of bounds.
        #[test]
        fn nearer_is_better(t in -1000i32..1000, near in 0i32..500, more in 1i32..500) {
            let scores = [t + near, t + near + more].map(|p| score(&p.to_string(), json!(t)));
            prop_assert!((0.0..=1.0).contains(&scores[1]) && scores[0] <= 1.0);
            prop_assert!(scores[1] < scores[0] || t == 0 && scores[1] == 0.0, "{t}: {scores:?}");
        }
    }
}
