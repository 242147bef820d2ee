//! The two lines of the protocol.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::reward::{Judgment, RewardInput, RewardOutcome, excerpt};

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
    parts: Option<Value>,
    feedback: Option<Value>,
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
        (Some(score), None) => {
            let (parts, feedback) = (response.parts.as_ref(), response.feedback.as_ref());
            let outcome = parse_score(&score).and_then(|score| with_more(score, parts, feedback));
            Ok(outcome.map_or_else(Reply::Refused, Reply::Outcome))
        }
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

/// A score as JSON: a number that is finite in single precision, null for no opinion, or an object
/// with such a `score` and, if it likes, with `parts` and `feedback`.
///
/// # Errors
/// What it is instead, or what an object says as its `error`.
pub fn parse_score(score: &Value) -> Result<RewardOutcome, String> {
    if let Value::Object(answer) = score {
        return match (answer.get("error"), answer.get("score")) {
            (Some(Value::String(reason)), _) => Err(excerpt(reason)),
            (Some(reason), _) if !reason.is_null() => Err(excerpt(&reason.to_string())),
            (_, Some(score)) if !score.is_object() => {
                with_more(parse_score(score)?, answer.get("parts"), answer.get("feedback"))
            }
            _ => Err(no_score(score)),
        };
    }
    match (score, finite(score)) {
        (Value::Null, _) => Ok(RewardOutcome::Abstain),
        (_, Some(value)) => Ok(RewardOutcome::Score(value)),
        (_, None) => Err(no_score(score)),
    }
}

fn no_score(score: &Value) -> String {
    format!("score {}, expected a finite number or null", excerpt(&score.to_string()))
}

fn finite(value: &Value) -> Option<f32> {
    value.as_f64().map(|value| value as f32).filter(|value| value.is_finite())
}

/// Most parts of a score, and bytes of the name of one: they become columns of a run's metrics.
const PARTS: usize = 64;
const PART_NAME: usize = 64;

/// `outcome` with the parts and the feedback of a reply; null is none.
fn with_more(
    outcome: RewardOutcome,
    parts: Option<&Value>,
    feedback: Option<&Value>,
) -> Result<RewardOutcome, String> {
    let parts = match parts {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(parts)) if parts.len() <= PARTS => {
            parts.iter().map(|(name, value)| part(name, value)).collect::<Result<_, _>>()?
        }
        Some(other) => {
            let got = excerpt(&other.to_string());
            return Err(format!("parts {got}, expected an object of at most {PARTS} numbers"));
        }
    };
    let feedback = match feedback {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => {
            return Err(format!("feedback {}, expected a text", excerpt(&other.to_string())));
        }
    };
    Ok(match outcome.score() {
        Some(score) => Judgment { score, parts, feedback }.into(),
        None => RewardOutcome::Abstain,
    })
}

fn part(name: &str, value: &Value) -> Result<(String, f32), String> {
    let named = (1..=PART_NAME).contains(&name.len()) && !name.contains(char::is_control);
    match finite(value) {
        Some(value) if named => Ok((name.to_string(), value)),
        Some(_) => {
            Err(format!("a part named `{}`, expected 1 to {PART_NAME} bytes", excerpt(name)))
        }
        None => {
            let (name, value) = (excerpt(name), excerpt(&value.to_string()));
            Err(format!("part `{name}` is {value}, expected a finite number"))
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
    fn parts_and_feedback_come_with_a_score() {
        let parse = |line: &str| parse_reply(line.as_bytes(), 7);
        let judged = Judgment {
            score: 0.5,
            parts: vec![("short".into(), 1.0), ("true".into(), 0.0)],
            feedback: Some("line 3: x is not defined".into()),
        };
        let more = r#""parts":{"short":1,"true":0.0},"feedback":"line 3: x is not defined""#;
        let reply = Reply::Outcome(RewardOutcome::Judged(judged.clone()));
        assert_eq!(parse(&format!(r#"{{"id":7,"score":0.5,{more}}}"#)), Ok(reply));
        let of_a_service: Value =
            serde_json::from_str(&format!(r#"{{"score":0.5,{more}}}"#)).unwrap();
        assert_eq!(parse_score(&of_a_service), Ok(RewardOutcome::Judged(judged)));
        // Nothing more is a plain score, and a sample without a score has no parts.
        let plain = r#"{"id":7,"score":2,"parts":null,"feedback":null}"#;
        assert_eq!(parse(plain), Ok(Reply::Outcome(RewardOutcome::Score(2.0))));
        let none = format!(r#"{{"id":7,"score":null,{more}}}"#);
        assert_eq!(parse(&none), Ok(Reply::Outcome(RewardOutcome::Abstain)));
        for (more, word) in [
            (r#""parts":[1]"#, "parts [1], expected an object"),
            (r#""parts":{"a":NaN}"#, "part `a` is"),
            (r#""parts":{"a":"1"}"#, "expected a finite number"),
            (r#""parts":{"":1}"#, "a part named"),
            (r#""parts":{"a\n":1}"#, "a part named"),
            (r#""feedback":1"#, "feedback 1, expected a text"),
        ] {
            let line = format!(r#"{{"id":7,"score":1,{more}}}"#);
            let Ok(Reply::Refused(error)) = parse(&line) else { panic!("{line}") };
            assert!(error.contains(word), "{line}: {error}");
        }
        let many: Map<String, Value> = (0..65).map(|i| (format!("p{i}"), json!(i))).collect();
        assert!(
            parse_score(&json!({"score": 1, "parts": many})).unwrap_err().contains("at most 64")
        );
        assert!(parse_score(&json!({"score": {"score": 1}})).is_err());
        assert!(parse_score(&json!({"parts": {}})).is_err());
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
