//! Calls of tools.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::json::{canonical, entries_without_nulls, parse_json};
use super::{conclusion, field};
use crate::reward::{Outcome, RewardInput, RewardOutcome};

/// The share of calls that are right: a matched call has the name and the arguments of a gold call,
/// numbers by value (`1` is `1.0`) and the order of keys and of calls aside. An argument that is
/// null is one that is absent, on both sides, since columns of Parquet give every call the keys of
/// all. Calls beyond the gold,
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
        // Reasoning without an end has called nothing, which is no decision against a call.
        let Some(answer) = answer(input.completion) else { return Ok(RewardOutcome::Score(0.0)) };
        let said = parse_calls(answer);
        let (matched, most) = (matches(&said, &gold), said.len().max(gold.len()));
        Ok(RewardOutcome::Score(if most == 0 { 1.0 } else { matched as f32 / most as f32 }))
    }

    /// Whether a row has calls, or a list of none.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.gold(field(fields, &self.field)?).map(|_| ())
    }

    pub(super) fn gold(&self, value: &Value) -> Result<Vec<Call>, String> {
        let parsed = value.as_str().and_then(|text| serde_json::from_str(text).ok());
        let calls: Option<Vec<Call>> = match parsed.as_ref().unwrap_or(value) {
            Value::Array(items) => items.iter().filter(|i| !i.is_null()).map(Call::of).collect(),
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
        let given = |key: &str| call.get(key).filter(|value| !value.is_null());
        let arguments = match given("arguments").or_else(|| given("parameters")) {
            None => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(Value::String(text)) => {
                serde_json::from_str::<Option<Map<String, Value>>>(text).ok()?.unwrap_or_default()
            }
            Some(_) => return None,
        };
        Some(Call { name, arguments })
    }

    fn key(&self) -> String {
        canonical(&Value::from(vec![
            Value::from(self.name.as_str()),
            Value::Object(entries_without_nulls(&self.arguments)),
        ]))
    }
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Broken blocks after which further blocks are not read but counted, so that reading takes time
/// linear in the text.
const BROKEN: usize = 64;

/// A block: where it begins, and its JSON with where it ends, if it is whole.
struct Block {
    start: usize,
    whole: Option<(Value, usize)>,
}

/// The blocks `<tool_call>…</tool_call>`. One ends where its JSON does, whatever stands in strings.
fn blocks(text: &str) -> Vec<Block> {
    let (mut found, mut at, mut broken) = (Vec::new(), 0, 0);
    while let Some(ahead) = text[at..].find(OPEN) {
        let start = at + ahead;
        at = start + OPEN.len();
        let whole = if broken < BROKEN { content(&text[at..]) } else { None };
        let whole = whole.map(|(value, length)| (value, at + length));
        match &whole {
            Some((_, end)) => at = *end,
            None => broken += 1,
        }
        found.push(Block { start, whole });
    }
    found
}

/// The JSON that a block begins with, and the length with its closing mark.
fn content(text: &str) -> Option<(Value, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok()?;
    let rest = &text[values.byte_offset()..];
    let close = rest.trim_start().strip_prefix(CLOSE)?;
    Some((value, text.len() - close.len()))
}

/// What a completion concludes with. Marks of reasoning in the strings of a call are none.
pub(super) fn answer(completion: &str) -> Option<&str> {
    let mut masked = completion.to_string();
    for block in blocks(completion) {
        if let Some((_, end)) = block.whole {
            masked.replace_range(block.start..end, &" ".repeat(end - block.start));
        }
    }
    let length = conclusion(&masked)?.len();
    Some(&completion[completion.len() - length..])
}

/// The calls in `text`, `None` for each that cannot be read: the blocks
/// `<tool_call>…</tool_call>` if there is one, else the text as a JSON object or list. A text
/// without a block that is no JSON makes no calls.
pub fn parse_calls(text: &str) -> Vec<Option<Call>> {
    let blocks = blocks(text);
    if !blocks.is_empty() {
        return blocks.iter().map(|block| Call::of(&block.whole.as_ref()?.0)).collect();
    }
    match parse_json(text) {
        Some(Value::Array(items)) => items.iter().map(Call::of).collect(),
        Some(object @ Value::Object(_)) => vec![Call::of(&object)],
        _ => Vec::new(),
    }
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
    fn marks_in_strings_are_text() {
        let score = |completion: &str, argument: &str| {
            let row = json!({"tool_calls": {"name": "say", "arguments": {"s": argument}}});
            ask(|i| ToolCall::default().check(i), completion, &row)
        };
        for argument in ["</tool_call>", "<tool_call>", "</think>", "<think>", "\"}</tool_call>"] {
            let call = block(&json!({"name": "say", "arguments": {"s": argument}}).to_string());
            assert_eq!(score(&call, argument), Ok(Score(1.0)), "{argument}");
            let thought = format!("<think>{}</think>{call}", block(B));
            assert_eq!(score(&thought, argument), Ok(Score(1.0)), "{argument}");
            assert_eq!(score(&format!("<think>{call}"), argument), Ok(Score(0.0)), "{argument}");
            assert_eq!(score(&format!("{call}<tool_call>{{"), argument), Ok(Score(0.5)));
        }
    }

    #[test]
    fn null_is_absent() {
        let check = |i: &RewardInput<'_>| ToolCall::default().check(i);
        let row = json!({"tool_calls": [null, {"name": "f", "function": null, "parameters": null,
            "arguments": {"x": 1, "y": null, "z": {"a": null, "b": [null]}}}]});
        for (arguments, score) in [
            (json!({"x": 1, "z": {"b": [null]}}), 1.0),
            (json!({"x": 1, "w": null, "z": {"b": [null]}}), 1.0),
            (json!({"x": 1, "z": {"b": []}}), 0.0),
            (json!({"x": 1, "y": 2, "z": {"b": [null]}}), 0.0),
        ] {
            let call = json!({"name": "f", "arguments": arguments}).to_string();
            assert_eq!(ask(check, &call, &row), Ok(Score(score)), "{call}");
        }
        let row = json!({"tool_calls": {"name": "f", "arguments": null, "parameters": {"x": 1}}});
        assert_eq!(ask(check, r#"{"name": "f", "arguments": {"x": 1}}"#, &row), Ok(Score(1.0)));
    }

    #[test]
    fn no_call_can_be_right() {
        let row = json!({"tool_calls": []});
        let check = |i: &RewardInput<'_>| ToolCall::default().check(i);
        assert_eq!(ask(check, "Hello", &row), Ok(Score(1.0)));
        assert_eq!(ask(check, &block(B), &row), Ok(Score(0.0)));
        assert_eq!(ask(check, "<tool_call>", &row), Ok(Score(0.0)));
        assert_eq!(ask(check, "<think>a <tool_call></think>Hello", &row), Ok(Score(1.0)));
        assert_eq!(ask(check, "<think>Hello", &row), Ok(Score(0.0)));
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
