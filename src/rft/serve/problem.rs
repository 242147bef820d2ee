//! What is wrong with a request, in OpenAI's words.

use serde_json::{Value, json};

/// Why a request is refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub status: u16,
    /// The argument that is wrong.
    pub param: Option<String>,
    pub message: String,
    pub code: Option<&'static str>,
}

impl Problem {
    /// A problem with no argument in particular.
    pub fn new(status: u16, message: impl Into<String>) -> Problem {
        Problem { status, param: None, message: message.into(), code: None }
    }

    /// An argument that is not what it should be.
    pub fn argument(param: &str, got: impl std::fmt::Display, expected: &str) -> Problem {
        let message = format!("`{param}` is {got}, expected {expected}");
        Problem { param: Some(param.into()), ..Problem::new(400, message) }
    }

    /// A model or an adapter that is not there.
    pub fn no_model(param: &str, name: &str, known: &[String]) -> Problem {
        let expected = match known.is_empty() {
            true => "and nothing is loaded".to_string(),
            false => format!("expected one of: {}", known.join(", ")),
        };
        let message = format!("`{param}` is `{name}`, which is not served, {expected}");
        let code = Some("model_not_found");
        Problem { status: 404, param: Some(param.into()), message, code }
    }

    /// As the client reads it.
    pub fn json(&self) -> Value {
        let kind = match self.status {
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            0..500 => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        }})
    }
}

/// A value in a message: whole if it is short.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
