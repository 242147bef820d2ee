//! Prompts that end within the last message, for a model to go on with it.
//!
//! A template closes every message. To find where the last one's words end in the text, they are
//! followed by a mark, and the text is cut there: the same as transformers' `continue_final_message`.

use serde_json::Value;

use gradus::error::{Error, Result};

/// The space tells whether a template trims the message.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

fn refused(got: &str, expected: &str) -> Error {
    Error::invalid("chat_template", "continue_final_message", got, expected)
}

/// Marks the end of the last message and returns its text.
pub(super) fn mark(messages: &mut [Value]) -> Result<String> {
    let content = messages.last_mut().and_then(|last| last.get_mut("content"));
    let text = match content {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        other => other,
    };
    match text {
        Some(Value::String(text)) => {
            let words = text.clone();
            text.push_str(MARK);
            Ok(words)
        }
        _ => Err(refused("a last message without a text", "a message to go on with")),
    }
}

/// `text` up to the mark behind `words`.
pub(super) fn cut(text: &str, words: &str) -> Result<String> {
    let at = text.rfind(MARK.trim_end()).filter(|_| text.contains(words.trim()));
    let at = at.ok_or_else(|| {
        let got = format!("a last message `{}` that the chat template leaves out", words.trim());
        refused(&got, "a template that writes the last message whole")
    })?;
    let before = &text[..at];
    // A template that trims messages would have trimmed this one.
    Ok(if text[at..].starts_with(MARK) { before } else { before.trim_end() }.to_owned())
}
