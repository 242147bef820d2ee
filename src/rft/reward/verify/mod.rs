//! Verifiers: rewards that look at the text and the data row, and at nothing else.
//!
//! | verifier | right when | row fields |
//! |---|---|---|
//! | [`Numeric`] | the answer is the gold number, set, tuple or interval | `answer` |
//! | [`Exact`] | the answer is one of the golds, case and spacing aside | `answer` |
//! | [`Relative`] | the number is near the gold number; graded | `answer` |
//! | [`Placed`] | the answer is right, and stands where it belongs; graded | `answer` |
//! | [`Similar`] | the words are those of a gold; graded | `answer` |
//! | [`Set`] | the items are those of the gold; graded | `answer` |
//! | [`Options`] | the letters are those of the gold | `answer` |
//! | [`Format`] | the completion has a shape | none |
//! | [`XmlCount`] | each mark of the tags stands there once; graded | none |
//! | [`Json`] | the completion is JSON of a schema | `schema`, if there is one |
//! | [`ToolCall`] | the calls are the gold calls; graded by calls | `tool_calls` |
//! | [`ToolGraded`] | names, keys and values of the calls are the gold's; graded | `tool_calls` |
//! | [`Iou`] | the boxes lie on the gold boxes; graded | `boxes` |
//! | [`Detect`] | so they do, and their confidences say which; graded | `boxes` |
//! | [`Point`] | the point lies in a gold box | `boxes` |
//! | [`Interval`] | the two times are the gold's; graded | `interval` |
//! | [`Graph`] | the nodes are a path, or the neighbors of one; graded | `edges`, `path` or `node` |
//! | [`Checklist`] | the items of a list hold; graded | `checklist` |
//! | [`Length`] | there are as many words as asked for; graded | `length` |
//! | [`Diversity`] | the completion is unlike the prompt's others; graded | none |
//! | [`Countdown`] | the expression over the numbers makes the target | `nums` or `numbers`, `target` |
//! | [`Code`] | the program passes the tests; graded | `tests` or `test_code` |
//! | [`ChartCode`] | the program draws what the gold program draws; graded | `code` |
//!
//! Reasoning is no answer: all of them but [`Format`], [`XmlCount`] and [`Diversity`] judge the
//! [`conclusion`] of a completion, and a completion that is still reasoning at its end is one without
//! an answer.
//!
//! A completion is judged, never trusted: every verifier takes any text, does not panic, and needs
//! time linear in the text's length (regular expressions included). A wrong or unreadable
//! *completion* has the lowest score, which is 0 but where a verifier says otherwise. A wrong or missing *row field* is the data's fault, so it is a failed
//! call: `Err`, with the field's name.

mod answer;
mod chart_code;
mod checklist;
mod code;
mod countdown;
mod detect;
mod diversity;
mod exact;
#[cfg(unix)]
mod folder;
mod format;
mod graph;
mod interval;
mod iou;
mod json;
mod length;
mod matching;
mod math;
mod numbers;
mod numeric;
mod options;
mod placed;
mod point;
mod ratio;
mod reasoning;
mod relative;
#[cfg(unix)]
mod sandbox;
mod schema;
mod set;
mod similar;
mod tool_call;
mod tool_graded;
mod xml_count;

use std::borrow::Cow;
use std::collections::HashMap;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::{Outcome, Reward, RewardInput, RewardOutcome, guarded};

pub use answer::{boxed, final_answer, tagged};
pub use chart_code::ChartCode;
pub use checklist::Checklist;
pub use code::{Code, code_block};
pub use countdown::{Countdown, evaluate};
pub use detect::Detect;
pub use diversity::Diversity;
pub use exact::{Exact, normalize};
pub use format::Format;
pub use graph::Graph;
pub use interval::Interval;
pub use iou::{BoundingBox, Iou, parse_boxes};
pub use json::{Json, canonical};
pub use length::Length;
pub use math::Read as MathAnswer;
pub use numeric::Numeric;
pub use options::Options;
pub use placed::Placed;
pub use point::Point;
pub use ratio::Ratio;
pub use reasoning::conclusion;
pub use relative::Relative;
pub use schema::Schema;
pub use set::Set;
pub use similar::Similar;
pub use tool_call::{Call, ToolCall, parse_calls};
pub use tool_graded::ToolGraded;
pub use xml_count::XmlCount;

/// Makes rewards of types with a `check` for one sample and a `check_row` for one row.
macro_rules! judge_each {
    ($($verifier:ty $(= $bounds:expr)?),*) => {$(
        impl Reward for $verifier {
            fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
                inputs.par_iter().map(|input| guarded(|i| self.check(i), input)).collect()
            }

            fn check_row(&self, fields: &Map<String, Value>) -> std::result::Result<(), String> {
                <$verifier>::check_row(self, fields)
            }

            fn bounds(&self) -> Option<(f64, f64)> {
                Some(bounds!(self $(, $bounds)?))
            }
        }
    )*};
}

/// The scores of a verifier: from 0 to 1, unless it says otherwise.
macro_rules! bounds {
    ($verifier:expr) => {
        (0.0, 1.0)
    };
    ($verifier:expr, $bounds:expr) => {
        $bounds($verifier)
    };
}

judge_each!(
    Exact,
    Relative,
    Placed = Placed::bounds,
    Similar,
    Set,
    Options,
    Json,
    ToolCall,
    ToolGraded = ToolGraded::bounds,
    Iou,
    Detect = Detect::bounds,
    Point,
    Interval,
    Graph,
    Checklist,
    Length,
    Countdown = Countdown::bounds,
    Code,
    ChartCode
);

/// Makes rewards of types that want nothing of the row.
macro_rules! judge_shapes {
    ($($verifier:ty $(= $bounds:expr)?),*) => {$(
        impl Reward for $verifier {
            fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
                inputs.par_iter().map(|input| guarded(|i| self.check(i), input)).collect()
            }

            fn bounds(&self) -> Option<(f64, f64)> {
                Some(bounds!(self $(, $bounds)?))
            }
        }
    )*};
}

judge_shapes!(Format = Format::bounds, XmlCount);

/// 1 or 0.
fn verdict(right: bool) -> Outcome {
    Ok(RewardOutcome::Score(right as u8 as f32))
}

/// A score from a computation in double precision.
fn graded(score: f64) -> Outcome {
    Ok(RewardOutcome::Score(score as f32))
}

/// The answer of a completion as a text: what its last answer tag or box holds, else all that follows
/// the reasoning.
fn said(completion: &str) -> Option<&str> {
    let answer = conclusion(completion)?;
    Some(final_answer(answer).unwrap_or(answer).trim())
}

/// Which samples give the same text as their answer, case and spacing aside: equal texts have equal
/// numbers. A sample that was cut off has no answer.
pub(super) fn same_texts(inputs: &[RewardInput<'_>]) -> Vec<Option<usize>> {
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut number = |input: &RewardInput<'_>| {
        let text = normalize(said(input.completion).filter(|_| input.finished)?);
        let next = known.len();
        Some(*known.entry(text).or_insert(next))
    };
    inputs.iter().map(&mut number).collect()
}

/// `value`, or the list or object that it holds as JSON text: columns of a data set may be texts.
fn parsed(value: &Value) -> Cow<'_, Value> {
    let text = value.as_str().filter(|text| text.trim_start().starts_with(['[', '{']));
    match text.and_then(|text| serde_json::from_str(text).ok()) {
        Some(parsed) => Cow::Owned(parsed),
        None => Cow::Borrowed(value),
    }
}

/// Why a row's field is of no use.
fn unfit(key: &str, value: &Value, expected: &str) -> String {
    let got = super::excerpt(&value.to_string());
    format!("row field `{key}` is {got}, expected {expected}")
}

/// Size of the intersection over that of the union; two empty sets are alike.
fn jaccard<T: Ord>(a: &std::collections::BTreeSet<T>, b: &std::collections::BTreeSet<T>) -> f64 {
    let common = a.intersection(b).count();
    let all = a.len() + b.len() - common;
    if all == 0 { 1.0 } else { common as f64 / all as f64 }
}

/// The row's field `key`, without which there is nothing to compare with.
fn field<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a Value, String> {
    match fields.get(key) {
        Some(Value::Null) => Err(format!("row field `{key}` is null, expected a value")),
        None => {
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
        _ => Err(unfit(key, value, "a text, a number or a list of these")),
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
