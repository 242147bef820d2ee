//! JSON as an answer.

use serde_json::{Map, Number, Value};

use super::schema::Schema;
use super::{conclusion, tagged, verdict};
use crate::reward::{Outcome, RewardInput};

/// 1 if the answer is strict JSON, has the required keys, and satisfies the row's schema, else 0.
///
/// The answer is the content of the last answer tag, else of a code fence that is the whole
/// completion, else the completion itself. Nothing may stand around the JSON. Of repeated keys the
/// last counts; more than 128 levels are not accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Json {
    /// Keys that the object must have.
    pub keys: Vec<String>,
    /// The row's field with a [`Schema`]; a row without it asks for no schema.
    pub schema: String,
}

impl Default for Json {
    fn default() -> Json {
        Json { keys: Vec::new(), schema: "schema".into() }
    }
}

impl Json {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let schema = self.schema(input.fields)?;
        let value = conclusion(input.completion).and_then(parse_json);
        let Some(value) = value else { return verdict(false) };
        let has = |key: &String| value.get(key).is_some();
        verdict(self.keys.iter().all(has) && schema.is_none_or(|schema| schema.accepts(&value)))
    }

    /// Whether the schema of a row, if there is one, can be read.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.schema(fields).map(|_| ())
    }

    fn schema(&self, fields: &Map<String, Value>) -> Result<Option<Schema>, String> {
        match fields.get(&self.schema) {
            None | Some(Value::Null) => Ok(None),
            Some(schema) => {
                let read = Schema::parse(schema);
                Ok(Some(read.map_err(|e| format!("row field `{}`: {e}", self.schema))?))
            }
        }
    }
}

/// `value` with no entry of an object null, at any depth: columns of Parquet give every object the
/// keys of all rows, and null stands for what is absent.
pub(super) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(entries_without_nulls(map)),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        simple => simple.clone(),
    }
}

/// The entries of an object without those that are null, at any depth.
pub(super) fn entries_without_nulls(map: &Map<String, Value>) -> Map<String, Value> {
    let entries = map.iter().filter(|(_, value)| !value.is_null());
    entries.map(|(key, value)| (key.clone(), without_nulls(value))).collect()
}

/// The JSON that `text` answers with.
pub(super) fn parse_json(text: &str) -> Option<Value> {
    let answer = tagged(text, "answer").unwrap_or(text).trim();
    serde_json::from_str(unfenced(answer)).ok()
}

/// Content of a code fence around all of `text`, or `text`.
fn unfenced(text: &str) -> &str {
    let inside = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    match inside.and_then(|inside| inside.split_once('\n')) {
        Some((language, code)) if matches!(language.trim(), "" | "json") => code,
        _ => text,
    }
}

/// `value` in one spelling: sorted keys, no spaces, and numbers by value, so that `1` and `1.0` are
/// the same text. Two values are equal in the sense of the verifiers if these texts are.
pub fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Number(number) => text.push_str(&canonical_number(number)),
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write_canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|&(key, _)| key);
            text.push('{');
            for (key, item) in entries {
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(item, text);
                text.push(',');
            }
            text.push('}');
        }
        simple => text.push_str(&simple.to_string()),
    }
}

fn canonical_number(number: &Number) -> String {
    /// Doubles below this in size that are integers convert without loss.
    const EXACT: f64 = 1e38;
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(value), ..) => value.to_string(),
        (_, Some(value), _) => value.to_string(),
        (.., Some(value)) if value.fract() == 0.0 && value.abs() < EXACT => {
            (value as i128).to_string()
        }
        (.., Some(value)) => format!("{value:e}"),
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn strict_json_and_keys() {
        let plain = Json::default();
        let keyed = Json { keys: vec!["a".into()], ..Json::default() };
        for (completion, score, score_keyed) in [
            (r#"{"a": 1}"#, 1.0, 1.0),
            ("```json\n{\"a\": null}\n```", 1.0, 1.0),
            ("so <answer> {\"b\": 1} </answer>", 1.0, 0.0),
            ("[1]", 1.0, 0.0),
            ("{'a': 1}", 0.0, 0.0),
            ("{\"a\": 1,}", 0.0, 0.0),
            ("{\"a\": NaN}", 0.0, 0.0),
            ("Here: {\"a\": 1}", 0.0, 0.0),
            ("<think>{}</think>{\"a\": 1}", 1.0, 1.0),
            ("<think>{\"a\": 1}", 0.0, 0.0),
            ("```", 0.0, 0.0),
            ("", 0.0, 0.0),
        ] {
            let row = json!({});
            assert_eq!(ask(|i| plain.check(i), completion, &row), Ok(Score(score)), "{completion}");
            assert_eq!(ask(|i| keyed.check(i), completion, &row), Ok(Score(score_keyed)));
        }
        let deep = "[".repeat(100_000);
        assert_eq!(ask(|i| plain.check(i), &deep, &json!({})), Ok(Score(0.0)));
    }

    #[test]
    fn the_rows_schema_counts() {
        let row = json!({"schema": {"type": "object", "required": ["n"]}});
        let check = |i: &RewardInput<'_>| Json::default().check(i);
        assert_eq!(ask(check, r#"{"n": 1}"#, &row), Ok(Score(1.0)));
        assert_eq!(ask(check, r#"{"m": 1}"#, &row), Ok(Score(0.0)));
        let parquet = json!({"schema": {"type": "object", "required": ["n"], "enum": null}});
        assert_eq!(ask(check, r#"{"n": 1}"#, &parquet), Ok(Score(1.0)));
        let broken = json!({"schema": {"type": "objekt"}});
        assert!(ask(check, "1", &broken).unwrap_err().contains("`schema`"));
    }

    #[test]
    fn equal_values_have_one_spelling() {
        let same = |a: &str, b: &str| {
            let read = |text| canonical(&serde_json::from_str(text).unwrap());
            read(a) == read(b)
        };
        assert!(same(r#"{"a":1,"b":[2.0,-0.0]}"#, r#"{ "b": [2, 0], "a": 1.0 }"#));
        assert!(same("1e2", "100") && same("1.50", "1.5"));
        for (a, b) in [
            ("1", "1.5"),
            ("1", "\"1\""),
            ("[1,2]", "[2,1]"),
            ("9007199254740993", "9007199254740992.0"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }
}
