//! The two lines of the protocol.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

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
/// What is wrong with the line, for a message: it is no JSON object, belongs to another request, or
/// says neither `score` nor `error`. A score that is no finite number is refused with its sample.
pub fn parse_reply(line: &[u8], id: u64) -> Result<Reply, String> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    // A reply is an object; a list would be read as one, in the order of the fields.
    let response: Response = match text.starts_with('{') {
        true => {
            let strict = strict_json(text);
            serde_json::from_str(&strict).map_err(|e| format!("`{}`: {e}", excerpt(text)))?
        }
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
        // The answer is to the right sample: a score that is none is this sample's fault alone.
        (Some(score), None) => Ok(parse_score(&score).map_or_else(Reply::Refused, Reply::Outcome)),
        (None, None) => Err(format!("`{}` has neither `score` nor `error`", excerpt(text))),
    }
}

/// `text` with every word and number in it that JSON does not have, such as Python's `NaN` or 1e999,
/// replaced by an object whose `error` names it: what holds it can be read, and is no score.
pub fn strict_json(text: &str) -> Cow<'_, str> {
    let (mut strict, mut copied, mut at) = (String::new(), 0, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let begin = at;
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            byte if is_word(byte) => {
                at += bytes[at..].iter().take_while(|&&byte| is_word(byte)).count();
                let word = &text[begin..at];
                if serde_json::from_str::<Value>(word).is_err() {
                    let error = format!("score {}, expected a finite number", excerpt(word));
                    strict += &text[copied..begin];
                    strict += &json!({ "error": error }).to_string();
                    copied = at;
                }
            }
            _ => at += 1,
        }
    }
    match copied {
        0 => text.into(),
        _ => (strict + &text[copied..]).into(),
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-._".contains(&byte)
}

/// Where the string that begins at `at` is over.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

/// A score as JSON: a number that is finite in single precision, or null for no opinion.
///
/// # Errors
/// What it is instead, or what an object says as its `error`.
pub fn parse_score(score: &Value) -> Result<RewardOutcome, String> {
    match score.get("error") {
        Some(Value::String(reason)) => return Err(excerpt(reason)),
        Some(reason) => return Err(excerpt(&reason.to_string())),
        None => {}
    }
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
            (r#"{"id":NaN,"score":1}"#, "NaN"),
            (r#"{id:7,"score":1}"#, "key must be a string"),
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

    #[test]
    fn scores_that_are_none_are_the_samples_fault() {
        for (score, word) in [
            ("NaN", "score NaN, expected a finite number"),
            ("-Infinity", "score -Infinity, expected a finite number"),
            ("nan", "score nan"),
            ("None", "score None"),
            ("1e999", "score 1e999"),
            ("1e39", "finite"),
            (r#""1""#, "finite number"),
            ("true", "true"),
            (r#"{"error":"too long"}"#, "too long"),
        ] {
            let line = format!("{{\"id\":7,\"score\":{score}}}");
            let Ok(Reply::Refused(error)) = parse_reply(line.as_bytes(), 7) else {
                panic!("{line}: {:?}", parse_reply(line.as_bytes(), 7));
            };
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn only_words_outside_of_texts_are_replaced() {
        let good = r#"{"a": [1, -2.5e+3, true, null, "NaN \" NaN", "\\"], "é": "NaN"}"#;
        assert_eq!(strict_json(good), good);
        let read: Value = serde_json::from_str(&strict_json(r#"[NaN,"NaN",-Infinity]"#)).unwrap();
        assert!(read[0]["error"].as_str().unwrap().contains("NaN") && read[1] == "NaN");
        assert!(read[2]["error"].is_string());
        for open in ["\"", "\"\\", "[\"NaN", "é", ""] {
            assert_eq!(strict_json(open), open);
        }
    }
}
