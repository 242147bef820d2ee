//! Calls of tools.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::field;
use super::json::{canonical, parse_answer};
use crate::reward::{Outcome, RewardInput, RewardOutcome};

/// The share of calls that are right: a matched call has the name and the arguments of a gold call,
/// numbers by value (`1` is `1.0`) and the order of keys and of calls aside. Calls beyond the gold,
/// missing calls and malformed calls all lower the score: it is matched / max(said, gold). Where the
/// gold is no call at all, saying none scores 1 and saying any scores 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// The row's field with the gold: a call, a list of calls, or either as a JSON text.
    pub field: String,
}

impl Default for ToolCall {
    fn default() -> ToolCall {
        ToolCall { field: "tool_calls".into() }
    }
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.gold(field(input.fields, &self.field)?)?;
        let said = parse_calls(input.completion);
        let (matched, most) = (matches(&said, &gold), said.len().max(gold.len()));
        Ok(RewardOutcome::Score(if most == 0 { 1.0 } else { matched as f32 / most as f32 }))
    }

    fn gold(&self, value: &Value) -> Result<Vec<Call>, String> {
        let parsed = value.as_str().and_then(|text| serde_json::from_str(text).ok());
        let calls: Option<Vec<Call>> = match parsed.as_ref().unwrap_or(value) {
            Value::Array(items) => items.iter().map(Call::of).collect(),
            one => Call::of(one).map(|call| vec![call]),
        };
        calls.ok_or_else(|| {
            let got = crate::reward::excerpt(&value.to_string());
            format!(
                "row field `{}` is {got}, expected calls with `name` and `arguments`",
                self.field
            )
        })
    }
}

impl Call {
    /// Reads `{"name": …, "arguments": {…}}`. `parameters` is another name of the arguments, which
    /// may also be a JSON text or missing; `{"function": {…}}` around it is taken off.
    pub fn of(value: &Value) -> Option<Call> {
        let call = value.get("function").filter(|inner| inner.is_object()).unwrap_or(value);
        let name = call.get("name")?.as_str()?.to_string();
        let arguments = call.get("arguments").or_else(|| call.get("parameters"));
        let arguments = match arguments {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(Value::String(text)) => serde_json::from_str(text).ok()?,
            Some(_) => return None,
        };
        Some(Call { name, arguments })
    }

    fn key(&self) -> String {
        canonical(&Value::from(vec![
            Value::from(self.name.as_str()),
            Value::Object(self.arguments.clone()),
        ]))
    }
}

/// The calls in `text`, `None` for each that cannot be read: the blocks
/// `<tool_call>…</tool_call>` if there is one, else the completion as a JSON object or list.
/// A text without a block that is no JSON makes no calls.
pub fn parse_calls(text: &str) -> Vec<Option<Call>> {
    const OPEN: &str = "<tool_call>";
    if !text.contains(OPEN) {
        return match parse_answer(text) {
            Some(Value::Array(items)) => items.iter().map(Call::of).collect(),
            Some(object @ Value::Object(_)) => vec![Call::of(&object)],
            _ => Vec::new(),
        };
    }
    text.split(OPEN)
        .skip(1)
        .map(|block| {
            let (inside, _) = block.split_once("</tool_call>")?;
            Call::of(&serde_json::from_str(inside.trim()).ok()?)
        })
        .collect()
}

/// Size of the common part of two multisets of calls.
fn matches(said: &[Option<Call>], gold: &[Call]) -> usize {
    let mut left: HashMap<String, usize> = HashMap::new();
    gold.iter().for_each(|call| *left.entry(call.key()).or_default() += 1);
    let mut take = |call: &Call| match left.get_mut(&call.key()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    said.iter().flatten().filter(|&call| take(call)).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    const A: &str = r#"{"name": "add", "arguments": {"x": 1, "y": 2.5}}"#;
    const B: &str = r#"{"name": "stop"}"#;

    fn block(call: &str) -> String {
        format!("<tool_call>\n{call}\n</tool_call>")
    }

    #[test]
    fn order_and_spelling_do_not_matter_and_extras_cost() {
        let row = json!({"tool_calls": [
            {"function": {"name": "stop", "arguments": "{}"}, "type": "function"},
            {"name": "add", "parameters": {"y": 2.5, "x": 1.0}}
        ]});
        let (a, b) = (block(A), block(B));
        let check = |i: &RewardInput<'_>| ToolCall::default().check(i);
        for (completion, score) in [
            (format!("I call {a} and {b}"), 1.0),
            (format!("[{A}, {B}]"), 1.0),
            (A.to_string(), 0.5),
            (format!("{a}{a}"), 0.5),
            (format!("{a}{b}{b}{b}"), 0.5),
            (format!("{a}{b}<tool_call>{{"), 2.0 / 3.0),
            (format!("{a}{b}{}", block("{}")), 2.0 / 3.0),
            ("no call".to_string(), 0.0),
        ] {
            assert_eq!(ask(check, &completion, &row), Ok(Score(score)), "{completion}");
        }
    }

    #[test]
    fn no_call_can_be_right() {
        let row = json!({"tool_calls": []});
        let check = |i: &RewardInput<'_>| ToolCall::default().check(i);
        assert_eq!(ask(check, "Hello", &row), Ok(Score(1.0)));
        assert_eq!(ask(check, &block(B), &row), Ok(Score(0.0)));
        assert_eq!(ask(check, "<tool_call>", &row), Ok(Score(0.0)));
    }

    #[test]
    fn golds_may_be_text_and_must_be_calls() {
        let check = |i: &RewardInput<'_>| ToolCall::default().check(i);
        assert_eq!(ask(check, A, &json!({"tool_calls": A})), Ok(Score(1.0)));
        for row in
            [json!({"tool_calls": "add"}), json!({"tool_calls": [{"arguments": {}}]}), json!({})]
        {
            assert!(ask(check, A, &row).unwrap_err().contains("`tool_calls`"));
        }
    }
}
