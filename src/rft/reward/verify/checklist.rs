//! Lists of things that a text must have.

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::{conclusion, field, graded, normalize, parsed, unfit, verdict};
use crate::reward::{Outcome, RewardInput};

/// The share of the items of a row's list that hold for the answer, as for the checklists of ACE-RL
/// (arXiv:2509.04903), whose items a judge decides; these are decided by looking at the text.
///
/// An item is a text that the answer must contain, case and spacing aside, or an object with one key:
/// `contains` with such a text, `lacks` with one that it must not contain, or `matches` with a regular
/// expression that it must match. Reasoning does not count, and where it has no end nothing holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Checklist {
    /// The row's field with the list.
    pub field: String,
}

impl Default for Checklist {
    fn default() -> Checklist {
        Checklist { field: "checklist".into() }
    }
}

/// What must hold.
enum Item {
    Contains(String),
    Lacks(String),
    Matches(Regex),
}

/// Most memory of a compiled pattern and of the cache of one search, each.
const SIZE_LIMIT: usize = 1 << 20;

impl Checklist {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let items = self.items(field(input.fields, &self.field)?)?;
        let Some(answer) = conclusion(input.completion) else { return verdict(false) };
        let text = normalize(answer);
        let holds = |item: &&Item| match item {
            Item::Contains(part) => text.contains(part),
            Item::Lacks(part) => !text.contains(part),
            Item::Matches(pattern) => pattern.is_match(answer.trim()),
        };
        graded(items.iter().filter(holds).count() as f64 / items.len() as f64)
    }

    /// Whether a row has a list of items that can be read.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.items(field(fields, &self.field)?).map(|_| ())
    }

    fn items(&self, value: &Value) -> Result<Vec<Item>, String> {
        let value = parsed(value);
        let items = value.as_array().filter(|items| !items.is_empty());
        let items = items.ok_or_else(|| unfit(&self.field, &value, "a list of items"))?;
        let item = |(i, value): (usize, &Value)| {
            Item::of(value)
                .map_err(|reason| format!("row field `{}`: item {i} {reason}", self.field))
        };
        items.iter().enumerate().map(item).collect()
    }
}

impl Item {
    fn of(value: &Value) -> Result<Item, String> {
        let wrong = || {
            let got = crate::reward::excerpt(&value.to_string());
            format!("is {got}, expected a text, or an object with contains, lacks or matches")
        };
        if let Some(text) = value.as_str() {
            return Item::text(text).map(Item::Contains).ok_or_else(wrong);
        }
        // A null is the key of another item in the same column of a Parquet file.
        let entries = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        match entries.collect::<Vec<_>>().as_slice() {
            [(key, Value::String(text))] => match (key.as_str(), Item::text(text)) {
                ("contains", Some(text)) => Ok(Item::Contains(text)),
                ("lacks", Some(text)) => Ok(Item::Lacks(text)),
                ("matches", Some(_)) => pattern(text).map(Item::Matches),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }

    /// A text that can be looked for: everything contains an empty one.
    fn text(text: &str) -> Option<String> {
        Some(normalize(text)).filter(|text| !text.is_empty())
    }
}

fn pattern(text: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(text);
    builder.dot_matches_new_line(true).size_limit(SIZE_LIMIT).dfa_size_limit(SIZE_LIMIT);
    builder.build().map_err(|error| format!("has a pattern that is none: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn items_hold_or_not() {
        let row = json!({"checklist": [
            "the Moon", {"contains": "tide"}, {"lacks": "cheese", "matches": null}, {"matches": "^Dear"}
        ]});
        for (completion, score) in [
            ("Dear all, the  moon makes the tides.", 1.0),
            ("the moon makes the tides", 0.75),
            ("<think>the moon</think> cheese", 0.0),
            ("nothing", 0.25),
            ("<think>Dear all, the moon makes the tides.", 0.0),
        ] {
            let got = ask(|i| Checklist::default().check(i), completion, &row);
            assert_eq!(got, Ok(Score(score)), "{completion}");
        }
    }

    #[test]
    fn items_that_cannot_be_read_are_refused() {
        for (list, word) in [
            (json!([]), "a list of items"),
            (json!("moon"), "a list of items"),
            (json!(["a", 3]), "item 1 is 3"),
            (json!([" "]), "item 0"),
            (json!([{"has": "a"}]), "expected a text"),
            (json!([{"contains": "a", "lacks": "b"}]), "expected a text"),
            (json!([{"matches": "("}]), "pattern"),
        ] {
            let row = json!({"checklist": list});
            let error = Checklist::default().check_row(row.as_object().unwrap()).unwrap_err();
            assert!(error.contains("`checklist`") && error.contains(word), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Items count each for itself: their order does not matter.
        #[test]
        fn order_does_not_count(mut items in prop::collection::vec("[a-d]{1,2}", 1..6), text in "[a-d ]{0,12}") {
            let score = |items: &[String]| ask(
                |i| Checklist::default().check(i), &text, &json!({"checklist": items}),
            );
            let forward = score(&items);
            items.reverse();
            prop_assert_eq!(&forward, &score(&items));
            prop_assert!(matches!(forward, Ok(Score(score)) if (0.0..=1.0).contains(&score)));
        }
    }
}
