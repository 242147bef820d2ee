//! Verifiers: rewards that look at the text and the data row, and at nothing else.
//!
//! | verifier | right when | row fields |
//! |---|---|---|
//! | [`Numeric`] | the answer is the gold number, set, tuple or interval | `answer` |
//! | [`Exact`] | the answer is one of the golds, case and spacing aside | `answer` |
//! | [`Format`] | the completion has a shape | none |
//! | [`Json`] | the completion is JSON of a schema | `schema`, if there is one |
//! | [`ToolCall`] | the calls are the gold calls; graded | `tool_calls` |
//! | [`Iou`] | the boxes lie on the gold boxes; graded | `boxes` |
//! | [`Countdown`] | the expression over the numbers makes the target | `nums` or `numbers`, `target` |
//! | [`Code`] | the program passes the tests; graded | `tests` or `test_code` |
//!
//! Reasoning is no answer: all of them but [`Format`] judge the [`conclusion`] of a completion, and
//! a completion that is still reasoning at its end is one without an answer.
//!
//! A completion is judged, never trusted: every verifier takes any text, does not panic, and needs
//! time linear in the text's length (regular expressions included). A wrong or unreadable
//! *completion* scores 0. A wrong or missing *row field* is the data's fault, so it is a failed
//! call: `Err`, with the field's name.

mod answer;
mod code;
mod countdown;
mod exact;
#[cfg(unix)]
mod folder;
mod format;
mod iou;
mod json;
mod matching;
mod math;
mod numeric;
mod ratio;
mod reasoning;
#[cfg(unix)]
mod sandbox;
mod schema;
mod tool_call;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::{Outcome, Reward, RewardInput, RewardOutcome, guarded};

pub use answer::{boxed, final_answer, tagged};
pub use code::{Code, code_block};
pub use countdown::{Countdown, evaluate};
pub use exact::{Exact, normalize};
pub use format::Format;
pub use iou::{BoundingBox, Iou, parse_boxes};
pub use json::{Json, canonical};
pub use math::Read as MathAnswer;
pub use numeric::Numeric;
pub use ratio::Ratio;
pub use reasoning::conclusion;
pub use schema::Schema;
pub use tool_call::{Call, ToolCall, parse_calls};

/// Makes rewards of types with a `check` for one sample and a `check_row` for one row.
macro_rules! judge_each {
    ($($verifier:ty),*) => {$(
        impl Reward for $verifier {
            fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
                inputs.par_iter().map(|input| guarded(|i| self.check(i), input)).collect()
            }

            fn check_row(&self, fields: &Map<String, Value>) -> std::result::Result<(), String> {
                <$verifier>::check_row(self, fields)
            }
        }
    )*};
}

judge_each!(Numeric, Exact, Json, ToolCall, Iou, Countdown, Code);

/// Of the row it wants nothing.
impl Reward for Format {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        inputs.par_iter().map(|input| guarded(|i| self.check(i), input)).collect()
    }
}

/// 1 or 0.
fn verdict(right: bool) -> Outcome {
    Ok(RewardOutcome::Score(right as u8 as f32))
}

/// The row's field `key`, without which there is nothing to compare with.
fn field<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a Value, String> {
    match fields.get(key) {
        None | Some(Value::Null) => {
            let known: Vec<&str> = fields.keys().map(String::as_str).collect();
            Err(format!("the row has no field `{key}`; it has [{}]", known.join(", ")))
        }
        Some(value) => Ok(value),
    }
}

/// The text of a field that may hold a string, a number or a truth value.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// The golds of field `key`: one value, or a list of which any will do.
fn golds(fields: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let value = field(fields, key)?;
    let all = match value {
        Value::Array(items) => items.iter().filter(|item| !item.is_null()).map(scalar).collect(),
        one => scalar(one).map(|text| vec![text]),
    };
    match all {
        Some(golds) if !golds.is_empty() => Ok(golds),
        _ => Err(format!(
            "row field `{key}` is {}, expected a text, a number or a list of these",
            super::excerpt(&value.to_string())
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `check` says about `completion` to a row.
    pub fn ask(
        check: impl Fn(&RewardInput<'_>) -> Outcome,
        completion: &str,
        row: &Value,
    ) -> Outcome {
        let fields = row.as_object().cloned().unwrap_or_default();
        check(&RewardInput { prompt: "", completion, finished: true, fields: &fields })
    }
}
