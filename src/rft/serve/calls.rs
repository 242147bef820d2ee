//! Calls of tools in an answer, as OpenAI's clients read them.

use serde_json::{Value, json};

use crate::reward::verify::parse_calls;

/// What an answer begins a call with.
const OPEN: &str = "<tool_call>";

/// The message that an answer is: its text, and the calls `<tool_call>…</tool_call>` behind it, which are named
/// after `id`. Without a call, and with one that cannot be read, all of it is text: nothing is lost.
pub(super) struct Message {
    /// The text; none where there are calls alone.
    pub content: Option<String>,
    /// The calls, each with an id, a name and its arguments as a JSON text.
    pub calls: Vec<Value>,
}

impl Message {
    pub fn of(answer: &str, id: &str) -> Message {
        let plain = || Message { content: Some(answer.to_string()), calls: Vec::new() };
        let Some(at) = answer.find(OPEN) else { return plain() };
        let Some(found) = parse_calls(answer).into_iter().collect::<Option<Vec<_>>>() else {
            return plain();
        };
        let call = |(i, call): (usize, &crate::reward::verify::Call)| {
            let arguments = Value::Object(call.arguments.clone()).to_string();
            let function = json!({"name": call.name, "arguments": arguments});
            json!({"id": format!("call_{id}_{i}"), "type": "function", "function": function})
        };
        let before = answer[..at].trim();
        Message {
            content: (!before.is_empty()).then(|| before.to_string()),
            calls: found.iter().enumerate().map(call).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_taken_out_of_the_text_or_left_in_it() {
        let call = |name: &str, x: i32| {
            format!(
                "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"x\": {x}}}}}\n</tool_call>"
            )
        };
        let answer = format!("I look.\n{}\n{}", call("look", 1), call("take", 2));
        let Message { content, calls } = Message::of(&answer, "a-0");
        assert_eq!(content.as_deref(), Some("I look."));
        assert_eq!(calls.len(), 2);
        assert_eq!(
            calls[1],
            json!({"id": "call_a-0_1", "type": "function",
                "function": {"name": "take", "arguments": "{\"x\":2}"}})
        );
        assert_eq!(Message::of(&call("look", 1), "b").content, None);
        for plain in ["words", "", "{\"name\": \"look\"}", "<tool_call>{\"name\": </tool_call>"] {
            let Message { content, calls } = Message::of(plain, "c");
            assert_eq!((content.as_deref(), calls.len()), (Some(plain), 0));
        }
        let broken = format!("{} <tool_call>{{", call("look", 1));
        assert_eq!(Message::of(&broken, "d").content, Some(broken));
    }
}
