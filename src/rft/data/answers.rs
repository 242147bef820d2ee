//! Answers that a row already has, with what each is worth.

use serde_json::Value;

use super::jsonl::kind;
use super::{Row, columns};

/// The answers of a row and their scores: `completions` with `scores`, `chosen` (1) and `rejected` (0),
/// or `completion` with `label`. A text may also be a list of messages that ends in the assistant's.
/// `completions` without `scores` have NaN for theirs.
///
/// # Errors
/// In words, for a row that has none of these, or columns that do not fit each other.
pub fn answers(row: &Row) -> Result<Vec<(String, f32)>, String> {
    let column = |name: &str| row.get(name).filter(|value| !value.is_null());
    let one = |name: &str, value: &Value| {
        text(value).ok_or_else(|| {
            let wanted = "expected a text, or messages that end in the assistant's";
            format!("`{name}` is {}, {wanted}", kind(value))
        })
    };
    if let Some(value) = column("completions") {
        let texts = list("completions", value)?;
        let texts: Vec<String> =
            texts.iter().map(|text| one("completions", text)).collect::<Result<_, _>>()?;
        let scores = match column("scores") {
            None => vec![f32::NAN; texts.len()],
            Some(value) => {
                let scores = list("scores", value)?;
                scores.iter().map(|value| score("scores", value)).collect::<Result<_, _>>()?
            }
        };
        if texts.len() != scores.len() {
            let (texts, scores) = (texts.len(), scores.len());
            return Err(format!("{texts} `completions` and {scores} `scores`: one for each"));
        }
        return Ok(texts.into_iter().zip(scores).collect());
    }
    if let (Some(chosen), Some(rejected)) = (column("chosen"), column("rejected")) {
        return Ok(vec![(one("chosen", chosen)?, 1.0), (one("rejected", rejected)?, 0.0)]);
    }
    if let (Some(completion), Some(label)) = (column("completion"), column("label")) {
        return Ok(vec![(one("completion", completion)?, score("label", label)?)]);
    }
    Err("no answers with scores: `completions` with `scores`, `chosen` with `rejected`, or \
         `completion` with `label`"
        .into())
}

/// The messages or texts of a row's column `contexts`.
///
/// # Errors
/// In words, for a row without that column, or with something else than a list of texts in it.
pub fn contexts(row: &Row) -> Result<Vec<String>, String> {
    let value = row.get("contexts").ok_or("there is no column `contexts`")?;
    let texts = list("contexts", value)?;
    let wrong = |value: &Value| format!("`contexts` holds {}, not a text", kind(value));
    texts.iter().map(|v| v.as_str().map(String::from).ok_or_else(|| wrong(v))).collect()
}

fn list(name: &str, value: &Value) -> Result<Vec<Value>, String> {
    let value = columns::parsed(value);
    match value.as_ref() {
        Value::Array(items) if !items.is_empty() => Ok(items.clone()),
        Value::Array(_) => Err(format!("`{name}` is an empty list")),
        other => Err(format!("`{name}` is {}, not a list", kind(other))),
    }
}

fn score(name: &str, value: &Value) -> Result<f32, String> {
    let number = match value {
        Value::Bool(right) => return Ok(*right as u8 as f32),
        value => value.as_f64().map(|x| x as f32),
    };
    match number {
        Some(number) if number.is_finite() => Ok(number),
        Some(_) => {
            Err(format!("`{name}` holds {value}, out of the range of f32, {:e} at most", f32::MAX))
        }
        None => Err(format!(
            "`{name}` holds {value}, expected a number, true or false; leave an answer out whose score \
             is not known"
        )),
    }
}

/// The text of an answer, which may stand in the last of some messages.
fn text(value: &Value) -> Option<String> {
    let value = columns::parsed(value);
    match value.as_ref() {
        Value::String(text) => Some(text.clone()),
        Value::Array(messages) => {
            let last = messages.last().filter(|last| last["role"] == "assistant")?;
            last["content"].as_str().map(String::from)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(row: &str) -> Result<Vec<(String, f32)>, String> {
        answers(serde_json::from_str::<Value>(row).unwrap().as_object().unwrap())
    }

    #[test]
    fn rows_hold_scored_answers_in_three_forms() {
        let of = |x: &[(&str, f32)]| -> Result<Vec<(String, f32)>, String> {
            Ok(x.iter().map(|(text, score)| (text.to_string(), *score)).collect())
        };
        let scored = r#"{"completions": ["a", "b", "c"], "scores": [1, -0.5, true]}"#;
        assert_eq!(read(scored), of(&[("a", 1.0), ("b", -0.5), ("c", 1.0)]));
        let pair = r#"{"chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}"#;
        assert_eq!(read(pair), of(&[("a", 1.0), ("b", 0.0)]));
        assert_eq!(read(r#"{"completion": "a", "label": false}"#), of(&[("a", 0.0)]));
        let unknown = read(r#"{"completions": "[\"a\", \"b\"]"}"#).unwrap();
        assert!(unknown.iter().all(|(_, score)| score.is_nan()), "{unknown:?}");
    }

    #[test]
    fn rows_that_do_not_fit_say_why() {
        for (row, says) in [
            (r#"{"completion": "a"}"#, "no answers with scores"),
            (r#"{"completions": ["a"], "scores": [1, 2]}"#, "1 `completions` and 2 `scores`"),
            (r#"{"completions": [], "scores": []}"#, "an empty list"),
            (
                r#"{"completions": [3], "scores": [1]}"#,
                "`completions` is a number, expected a text",
            ),
            (
                r#"{"completion": "a", "label": "good"}"#,
                "`label` holds \"good\", expected a number",
            ),
            (
                r#"{"completions": ["a", "b"], "scores": [1, null]}"#,
                "`scores` holds null, expected",
            ),
            (
                r#"{"completions": ["a"], "scores": [1e39]}"#,
                "`scores` holds 1e+39, out of the range",
            ),
            (r#"{"completions": ["a"], "scores": [-1e39]}"#, "range of f32, 3.4028235e38 at most"),
            (r#"{"completion": 5, "label": true}"#, "`completion` is a number, expected a text"),
            (r#"{"completions": ["a"], "scores": 1}"#, "`scores` is a number, not a list"),
            (r#"{"chosen": [{"role": "user", "content": "b"}], "rejected": "a"}"#, "`chosen`"),
        ] {
            let error = read(row).unwrap_err();
            assert!(error.contains(says), "{row}: {error}");
        }
    }
}
