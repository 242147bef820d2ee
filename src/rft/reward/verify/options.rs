//! Multiple choice.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{field, parsed, said, scalar, unfit, verdict};
use crate::reward::{Outcome, RewardInput};

/// 1 if the letters that are chosen are the gold ones, no more and no fewer, else 0: the reward of
/// multiple choice in Curr-ReFT (arXiv:2503.07065).
///
/// Letters are read from the answer tag or the box, or else from all that follows the reasoning:
/// letters by themselves with anything but words between them (`A, C`, `(a) and (c)`), capital letters
/// in a row (`AC`), or one letter in front of its text (`B. Paris`). Anything else chooses nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The row's field with the gold: letters as in an answer, or a list of letters.
    pub field: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { field: "answer".into() }
    }
}

impl Options {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.gold(field(input.fields, &self.field)?)?;
        let said = said(input.completion).filter(|_| input.finished).and_then(letters);
        verdict(said == Some(gold))
    }

    /// Whether a row has letters.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.gold(field(fields, &self.field)?).map(|_| ())
    }

    fn gold(&self, value: &Value) -> Result<BTreeSet<char>, String> {
        let value = parsed(value);
        let text = match value.as_ref() {
            Value::Array(items) => {
                items.iter().map(scalar).collect::<Option<Vec<_>>>().map(|all| all.join(","))
            }
            one => scalar(one),
        };
        let letters = text.as_deref().and_then(letters);
        letters.ok_or_else(|| unfit(&self.field, &value, "letters as in `AC` or `A, C`"))
    }
}

/// The letters that `text` chooses, in upper case; none if it does not choose in a way that is
/// understood.
fn letters(text: &str) -> Option<BTreeSet<char>> {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let single = |word: &&str| {
        let mut chars = word.chars();
        let letter = chars.next().filter(char::is_ascii_alphabetic)?;
        chars.next().is_none().then(|| letter.to_ascii_uppercase())
    };
    let joins = |word: &&&str| !matches!(word.to_ascii_lowercase().as_str(), "and" | "or");
    let all: Option<BTreeSet<char>> = words.iter().filter(joins).map(single).collect();
    if let Some(all) = all.filter(|all| !all.is_empty()) {
        return Some(all);
    }
    match words.as_slice() {
        [row] if row.chars().all(|c| c.is_ascii_uppercase()) => Some(row.chars().collect()),
        [first, _, ..] => {
            // `(B) Paris`, `B. Paris`, `B: Paris`.
            let letter = single(first)?;
            let behind = text.split_once(*first)?.1;
            behind.starts_with([')', '.', ':']).then(|| BTreeSet::from([letter]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn letters_are_a_set() {
        for (completion, gold, score) in [
            ("<answer>C, A</answer>", json!("AC"), 1.0),
            ("(a) and (c)", json!(["A", "C"]), 1.0),
            ("CA", json!("A, C"), 1.0),
            ("\\boxed{B}", json!("B"), 1.0),
            ("B. Paris", json!("b"), 1.0),
            ("(B) A city", json!("B"), 1.0),
            ("A, B, C", json!("A,C"), 0.0),
            ("A", json!("A,C"), 0.0),
            ("A city", json!("A"), 0.0),
            ("CAB is", json!("A"), 0.0),
            ("<think>B", json!("B"), 0.0),
            ("", json!("A"), 0.0),
        ] {
            let got = ask(|i| Options::default().check(i), completion, &json!({"answer": gold}));
            assert_eq!(got, Ok(Score(score)), "{completion}");
        }
        for gold in [json!("Paris"), json!(3), json!([])] {
            let row = json!({"answer": gold});
            let error = Options::default().check_row(row.as_object().unwrap()).unwrap_err();
            assert!(error.contains("`answer`"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn order_does_not_count(mut chosen in prop::collection::vec("[A-F]", 1..6)) {
            let gold = chosen.join("");
            chosen.reverse();
            let row = json!({"answer": gold});
            let got = ask(|i| Options::default().check(i), &chosen.join(" and "), &row);
            prop_assert_eq!(got, Ok(Score(1.0)));
        }
    }
}
