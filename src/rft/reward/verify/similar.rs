//! Texts that share their words.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{golds, graded, said, verdict};
use crate::reward::{Outcome, RewardInput};

/// The F1 of the words that the answer shares with a gold, the best of the golds: 2 · common words /
/// (words of one + words of the other). A word is letters and digits, in lower case; it counts as
/// often as it stands there, and order does not count. With a threshold it is 1 from there on, else 0,
/// as for the typed text of a UI action in UI-Venus (arXiv:2508.10833), which has 0.5.
#[derive(Clone, Debug, PartialEq)]
pub struct Similar {
    /// The row's field with the gold: a text, or a list of which any will do.
    pub field: String,
    /// From which F1 on a text counts as the gold.
    pub threshold: Option<f64>,
}

impl Default for Similar {
    fn default() -> Similar {
        Similar { field: "answer".into(), threshold: None }
    }
}

impl Similar {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let golds = golds(input.fields, &self.field)?;
        let Some(said) = said(input.completion) else { return verdict(false) };
        let best = golds.iter().map(|gold| f1(said, gold)).fold(0.0, f64::max);
        match self.threshold {
            Some(threshold) => verdict(best >= threshold),
            None => graded(best),
        }
    }

    /// Whether a row has golds.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        golds(fields, &self.field).map(|_| ())
    }
}

/// The words of `text` with how often each stands there, and how many there are.
fn words(text: &str) -> (HashMap<String, usize>, usize) {
    let lower = text.to_lowercase();
    let mut counts = HashMap::new();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let total = words.map(|word| *counts.entry(word.to_string()).or_default() += 1).count();
    (counts, total)
}

fn f1(a: &str, b: &str) -> f64 {
    let ((a, all_a), (b, all_b)) = (words(a), words(b));
    if all_a + all_b == 0 {
        return 1.0;
    }
    let common = |(word, &n): (&String, &usize)| n.min(b.get(word).copied().unwrap_or(0));
    2.0 * a.iter().map(common).sum::<usize>() as f64 / (all_a + all_b) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn words_are_counted() {
        let row = json!({"answer": ["the red box", "a box"]});
        for (completion, score) in [
            ("Red box, the!", 1.0),
            ("<answer>red</answer>", 0.5),
            ("the the the", 1.0 / 3.0),
            ("box", 2.0 / 3.0),
            ("<think>the red box", 0.0),
            ("", 0.0),
        ] {
            let got = ask(|i| Similar::default().check(i), completion, &row);
            assert_eq!(got, Ok(Score(score)), "{completion}");
        }
        let half = Similar { threshold: Some(0.5), ..Similar::default() };
        assert_eq!(ask(|i| half.check(i), "red", &row), Ok(Score(1.0)));
        assert_eq!(ask(|i| half.check(i), "the the the", &row), Ok(Score(0.0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn order_does_not_count_and_sides_are_equal(a in "[a-c ]{0,12}", b in "[a-c ]{0,12}") {
            let back: String = a.chars().rev().collect();
            // Words of one letter: turned around, the text has the same words.
            let spaced = |text: &str| text.chars().map(|c| format!("{c} ")).collect::<String>();
            prop_assert_eq!(f1(&spaced(&a), &spaced(&b)), f1(&spaced(&back), &spaced(&b)));
            prop_assert_eq!(f1(&a, &b), f1(&b, &a));
            prop_assert!((0.0..=1.0).contains(&f1(&a, &b)) && f1(&a, &a) == 1.0);
        }
    }
}
