//! Answers with several items in any order.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{field, graded, jaccard, normalize, parsed, said, scalar, unfit, verdict};
use crate::reward::{Outcome, RewardInput};

/// The Jaccard index of the items that are said and the items of the gold: how many are in both, over
/// how many are in either. It is the graded reward for sets of nodes in G1 (arXiv:2505.18499).
///
/// Items stand between commas, semicolons or line ends, or else between spaces. Brackets, quotes and
/// a period around one are no part of it, case and spacing do not count, numbers count by value, and
/// an item that is said twice is said once.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// The row's field with the gold: a list, or a text with items as in an answer.
    pub field: String,
    /// Whether each letter and digit is an item.
    pub chars: bool,
}

impl Default for Set {
    fn default() -> Set {
        Set { field: "answer".into(), chars: false }
    }
}

impl Set {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.gold(field(input.fields, &self.field)?)?;
        match said(input.completion).filter(|_| input.finished) {
            Some(said) => graded(jaccard(&self.items(said), &gold)),
            None => verdict(false),
        }
    }

    /// Whether a row has items, or a list of none.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.gold(field(fields, &self.field)?).map(|_| ())
    }

    fn gold(&self, value: &Value) -> Result<BTreeSet<String>, String> {
        let value = parsed(value);
        let items = match value.as_ref() {
            Value::Array(items) => items.iter().map(|i| scalar(i).map(|i| item(&i))).collect(),
            one => scalar(one).map(|text| self.items(&text)),
        };
        items.ok_or_else(|| unfit(&self.field, &value, "a list of texts or numbers"))
    }

    fn items(&self, text: &str) -> BTreeSet<String> {
        if self.chars {
            let lower = text.to_lowercase();
            return lower.chars().filter(|c| c.is_alphanumeric()).map(String::from).collect();
        }
        let separators: &[char] = match text.contains([',', ';', '\n']) {
            true => &[',', ';', '\n'],
            false => &[' ', '\t'],
        };
        text.split(separators).map(item).filter(|item| !item.is_empty()).collect()
    }
}

/// One item in the spelling in which items are compared.
fn item(text: &str) -> String {
    let around = |c: char| c.is_whitespace() || "[](){}'\"`".contains(c);
    let bare = text.trim_matches(around).trim_end_matches('.').trim_matches(around);
    let text = normalize(bare);
    match text.parse::<f64>() {
        // 0 has a sign, and no other number has two spellings here.
        Ok(number) if number.is_finite() => (number + 0.0).to_string(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    fn score(set: &Set, completion: &str, gold: Value) -> f32 {
        match ask(|i| set.check(i), completion, &json!({"answer": gold})) {
            Ok(Score(score)) => score,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn items_in_either_and_in_both() {
        let set = Set::default();
        for (completion, gold, expected) in [
            ("<answer>[3, 1, 2]</answer>", json!([1, 2, 3]), 1.0),
            ("1, 2.0, 2", json!("{2, 1}"), 1.0),
            ("1,2", json!("[1, 2, 3, 4]"), 0.5),
            ("New York; boston.", json!(["Boston", "new  york"]), 1.0),
            ("a b", json!(["a", "c"]), 1.0 / 3.0),
            ("", json!([]), 1.0),
            ("a", json!([]), 0.0),
            ("", json!(["a"]), 0.0),
            ("<think>1", json!([1]), 0.0),
        ] {
            assert_eq!(score(&set, completion, gold.clone()), expected, "{completion} {gold}");
        }
        let chars = Set { chars: true, ..Set::default() };
        assert_eq!(score(&chars, "db", json!("b,d")), 1.0);
        assert_eq!(score(&chars, "bde", json!("bd")), 2.0 / 3.0);
        let error = ask(|i| set.check(i), "a", &json!({"answer": {"a": 1}})).unwrap_err();
        assert!(error.contains("`answer`"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn order_does_not_count(items in prop::collection::vec("[a-e]{1,2}", 0..8), gold in prop::collection::vec("[a-e]{1,2}", 0..8)) {
            let (set, back): (_, Vec<_>) = (Set::default(), items.iter().rev().cloned().collect());
            let forward = score(&set, &items.join(", "), json!(gold));
            prop_assert_eq!(forward, score(&set, &back.join(","), json!(gold)));
            prop_assert_eq!(forward, score(&set, &gold.join(","), json!(items)));
            prop_assert!((0.0..=1.0).contains(&forward));
        }
    }
}
