//! The two lines of the protocol.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::reward::{RewardInput, RewardOutcome, excerpt};

/// What a worker said about the sample that it was asked about.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A finite score, or no opinion.
    Outcome(RewardOutcome),
    /// It could not judge this sample, and why.
    Refused(String),
}

#[derive(Serialize)]
struct Request<'a> {
    id: u64,
    prompt: &'a str,
    completion: &'a str,
    finished: bool,
    fields: &'a Map<String, Value>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(default, deserialize_with = "present")]
    id: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    score: Option<Value>,
    error: Option<Value>,
}

/// Tells `null` from nothing.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The request about `input`, with its line end.
pub fn request_line(id: u64, input: &RewardInput<'_>) -> String {
    let RewardInput { prompt, completion, finished, fields } = *input;
    let request = Request { id, prompt, completion, finished, fields };
    // Texts, numbers and maps with text keys: there is nothing that JSON could not hold.
    let mut line = serde_json::to_string(&request).unwrap_or_default();
    line.push('\n');
    line
}

/// Reads the reply to request `id`.
///
/// # Errors
/// What is wrong with the line, for a message: it is no JSON object, belongs to another request,
/// says neither `score` nor `error`, or says a score that is no finite number.
pub fn parse_reply(line: &[u8], id: u64) -> Result<Reply, String> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    // A reply is an object; a list would be read as one, in the order of the fields.
    let response: Response = match text.starts_with('{') {
        true => serde_json::from_str(text).map_err(|e| format!("`{}`: {e}", excerpt(text)))?,
        false => return Err(format!("`{}` is not a JSON object", excerpt(text))),
    };
    match &response.id {
        Some(found) if found.as_u64() == Some(id) => {}
        Some(found) => {
            return Err(format!(
                "an answer to request {}, expected {id}",
                excerpt(&found.to_string())
            ));
        }
        None => return Err(format!("`{}` has no `id`", excerpt(text))),
    }
    match (response.score, response.error) {
        (_, Some(Value::String(reason))) => Ok(Reply::Refused(excerpt(&reason))),
        (_, Some(reason)) => Ok(Reply::Refused(excerpt(&reason.to_string()))),
        (Some(score), None) => parse_score(&score).map(Reply::Outcome),
        (None, None) => Err(format!("`{}` has neither `score` nor `error`", excerpt(text))),
    }
}

/// A score as JSON: a number that is finite in single precision, or null for no opinion.
pub fn parse_score(score: &Value) -> Result<RewardOutcome, String> {
    match (score, score.as_f64().map(|value| value as f32)) {
        (Value::Null, _) => Ok(RewardOutcome::Abstain),
        (_, Some(value)) if value.is_finite() => Ok(RewardOutcome::Score(value)),
        _ => {
            Err(format!("score {}, expected a finite number or null", excerpt(&score.to_string())))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_one_line() {
        let fields = json!({"answer": "4\n2"}).as_object().unwrap().clone();
        let input = RewardInput {
            prompt: "a\nb",
            completion: "\u{2028}\"",
            finished: true,
            fields: &fields,
        };
        let line = request_line(7, &input);
        assert_eq!((line.matches('\n').count(), line.ends_with('\n')), (1, true));
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            read,
            json!({"id": 7, "prompt": "a\nb", "completion": "\u{2028}\"", "finished": true,
                   "fields": {"answer": "4\n2"}})
        );
    }

    #[test]
    fn replies() {
        let parse = |line: &str| parse_reply(line.as_bytes(), 7);
        assert_eq!(parse(r#"{"id":7,"score":0.5}"#), Ok(Reply::Outcome(RewardOutcome::Score(0.5))));
        assert_eq!(
            parse("{\"id\":7,\"score\":1,\"x\":2}\r\n"),
            Ok(Reply::Outcome(RewardOutcome::Score(1.0)))
        );
        assert_eq!(parse(r#"{"id":7,"score":null}"#), Ok(Reply::Outcome(RewardOutcome::Abstain)));
        assert_eq!(
            parse(r#"{"id":7,"score":1,"error":"down"}"#),
            Ok(Reply::Refused("down".into()))
        );
        assert_eq!(
            parse(r#"{"id":7,"score":1,"error":null}"#),
            Ok(Reply::Outcome(RewardOutcome::Score(1.0)))
        );
        for (line, word) in [
            ("", "not a JSON object"),
            ("hello", "`hello`"),
            ("[7, 1, null]", "not a JSON object"),
            (r#"{"id":7"#, "EOF"),
            (r#"{"id":7,"score":NaN}"#, "NaN"),
            (r#"{"id":7,"score":1e999}"#, "out of range"),
            (r#"{"id":7,"score":1e39}"#, "finite"),
            (r#"{"id":7,"score":"1"}"#, "finite number"),
            (r#"{"id":7,"score":true}"#, "true"),
            (r#"{"id":7}"#, "neither"),
            (r#"{"score":1}"#, "no `id`"),
            (r#"{"id":6,"score":1}"#, "request 6, expected 7"),
            (r#"{"id":null,"score":1}"#, "request null"),
            (r#"{"id":7,"score":0,"score":1}"#, "duplicate"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
