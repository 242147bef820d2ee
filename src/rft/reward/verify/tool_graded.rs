//! Calls of tools, graded by what is right in them.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::json::{canonical, entries_without_nulls};
use super::tool_call::{Call, ToolCall, answer, parse_calls};
use super::{field, graded};
use crate::reward::{Outcome, RewardInput};

/// From -3 to 3, the correctness reward of ToolRL (arXiv:2504.13958): 6 S / S_max - 3.
///
/// S is the Jaccard index of the two multisets of names, and for each gold call, in order, what the
/// best call of its name that is still free adds: the Jaccard index of the keys of their arguments, and
/// 1 for each argument with the gold's value. S_max is 1 and, for each gold call, 1 more than it has
/// arguments. Values are equal as JSON, numbers by value; an argument that is null is one that is
/// absent, on both sides. The order of keys does not count.
///
/// A call that cannot be read, no call where there is a gold one, and reasoning without an end score
/// -3. Where the gold is no call at all, saying none scores 3 and saying any scores -3; ToolRL gives
/// such rows 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolGraded {
    /// The row's field with the gold: a call, a list of calls, or either as a JSON text.
    pub field: String,
}

impl Default for ToolGraded {
    fn default() -> ToolGraded {
        ToolGraded { field: ToolCall::default().field }
    }
}

/// The least and the largest score.
const BOUNDS: (f64, f64) = (-3.0, 3.0);

impl ToolGraded {
    /// The least and the largest score.
    pub fn bounds(&self) -> (f64, f64) {
        BOUNDS
    }

    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.reader().gold(field(input.fields, &self.field)?)?;
        let said = answer(input.completion).map(parse_calls);
        let said: Option<Vec<Call>> = said.and_then(|calls| calls.into_iter().collect());
        let share = match said {
            Some(said) if said.is_empty() && !gold.is_empty() => 0.0,
            Some(said) => share(&said, &gold),
            None => 0.0,
        };
        graded(BOUNDS.0 + (BOUNDS.1 - BOUNDS.0) * share)
    }

    /// Whether a row has calls, or a list of none.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.reader().check_row(fields)
    }

    fn reader(&self) -> ToolCall {
        ToolCall { field: self.field.clone() }
    }
}

/// S / S_max.
fn share(said: &[Call], gold: &[Call]) -> f64 {
    let names = |calls: &[Call]| counts(calls.iter().map(|call| call.name.clone()));
    let said_values: Vec<_> = said.iter().map(values).collect();
    let (mut used, mut score) = (vec![false; said.len()], jaccard(&names(said), &names(gold)));
    let mut most = 1.0;
    for call in gold {
        let wanted = values(call);
        most += 1.0 + wanted.len() as f64;
        let free = (0..said.len()).filter(|&i| !used[i] && said[i].name == call.name);
        // Of equally good calls the first.
        let best = free
            .map(|i| (i, agreement(&said_values[i], &wanted)))
            .reduce(|best, next| if next.1 > best.1 { next } else { best });
        if let Some((i, more)) = best.filter(|(_, more)| *more > 0.0) {
            (used[i], score) = (true, score + more);
        }
    }
    score / most
}

/// The arguments of a call, each in the spelling in which values are compared.
fn values(call: &Call) -> HashMap<String, String> {
    let all = entries_without_nulls(&call.arguments);
    all.into_iter().map(|(key, value)| (key, canonical(&value))).collect()
}

fn agreement(said: &HashMap<String, String>, gold: &HashMap<String, String>) -> f64 {
    let keys = |of: &HashMap<String, String>| counts(of.keys().cloned());
    let equal = gold.iter().filter(|(key, value)| said.get(*key) == Some(value)).count();
    jaccard(&keys(said), &keys(gold)) + equal as f64
}

fn counts(items: impl Iterator<Item = String>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    items.for_each(|item| *counts.entry(item).or_default() += 1);
    counts
}

/// Of two multisets; two empty ones are alike.
fn jaccard(a: &HashMap<String, usize>, b: &HashMap<String, usize>) -> f64 {
    let size = |of: &HashMap<String, usize>| of.values().sum::<usize>();
    let common = |(item, &n): (&String, &usize)| n.min(b.get(item).copied().unwrap_or(0));
    let common: usize = a.iter().map(common).sum();
    let all = size(a) + size(b) - common;
    if all == 0 { 1.0 } else { common as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    fn score(said: &str, gold: &Value) -> f32 {
        match ask(|i| ToolGraded::default().check(i), said, &json!({"tool_calls": gold})) {
            Ok(Score(score)) => score,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_keys_and_values_count() {
        let gold = json!([{"name": "f", "arguments": {"x": 1, "y": "a"}}, {"name": "g"}]);
        // S_max = 1 + (1 + 2) + (1 + 0) = 5.
        for (said, s) in [
            (json!([{"name": "g"}, {"name": "f", "arguments": {"y": "a", "x": 1.0}}]), 5.0),
            (json!([{"name": "f", "arguments": {"x": 2, "y": "a"}}, {"name": "g"}]), 4.0),
            (json!([{"name": "f", "arguments": {"x": 1}}, {"name": "g"}]), 1.0 + 0.5 + 1.0 + 1.0),
            (json!([{"name": "g", "arguments": {"x": null}}]), 0.5 + 1.0),
            (json!([{"name": "h"}]), 0.0),
            (json!([{"name": "f", "arguments": {"z": 1}}]), 0.5),
        ] {
            let (got, expected) = (score(&said.to_string(), &gold), 6.0 * s / 5.0 - 3.0);
            assert!((got - expected).abs() < 1e-6, "{said}: {got}, expected {expected}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_worst() {
        let gold = json!({"name": "f"});
        for said in ["", "no call", "<tool_call>{", "<think>{\"name\": \"f\"}"] {
            assert_eq!(score(said, &gold), -3.0, "{said}");
        }
        assert_eq!(score("<tool_call>{\"name\": \"f\"}</tool_call>", &gold), 3.0);
        assert_eq!(score("no call", &json!([])), 3.0);
        assert_eq!(score("{\"name\": \"f\"}", &json!([])), -3.0);
        assert!(ToolGraded::default().check_row(&Map::new()).unwrap_err().contains("`tool_calls`"));
    }

    /// The best of equal names is taken, each call once.
    #[test]
    fn calls_are_paired_by_what_agrees() {
        let gold =
            json!([{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 2}}]);
        let said =
            json!([{"name": "f", "arguments": {"x": 2}}, {"name": "f", "arguments": {"x": 1}}]);
        assert_eq!(score(&said.to_string(), &gold), 3.0);
        let twice =
            json!([{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 1}}]);
        // 1 for the names, 2 for the first, 1 for the keys of the second, of 5.
        assert!((score(&twice.to_string(), &gold) - (6.0 * 4.0 / 5.0 - 3.0)).abs() < 1e-6);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn scores_keep_to_their_bounds_and_the_gold_is_best(
            said in prop::collection::vec(("[fg]", prop::collection::btree_map("[xyz]", 0..3i32, 0..3)), 0..4),
            gold in prop::collection::vec(("[fg]", prop::collection::btree_map("[xyz]", 0..3i32, 0..3)), 0..4),
        ) {
            let calls = |all: &[(String, _)]| -> Value {
                all.iter().map(|(name, arguments)| json!({"name": name, "arguments": arguments})).collect()
            };
            let (said, gold) = (calls(&said), calls(&gold));
            prop_assert!((-3.0..=3.0).contains(&score(&said.to_string(), &gold)));
            prop_assert_eq!(score(&gold.to_string(), &gold), 3.0);
        }
    }
}
