//! `tool`: a calculator. An answer asks for a value as `<<12*7>>`, or with a call of the tool `calculator`
//! whose argument is `expression`; the value of the last such expression is said. An answer without one ends
//! the episode.

use super::{Environment, Reply, Turn};
use crate::reward::verify::{Call, Ratio, conclusion, evaluate, parse_calls};

/// The tool's name in calls.
const NAME: &str = "calculator";

/// The calculator. It has no state.
pub(super) struct Calculator;

impl Environment for Calculator {
    /// Whether a value helped is for the reward to say.
    fn scores(&self) -> bool {
        false
    }

    fn step(&self, turns: &[Turn<'_>]) -> Vec<Result<Reply, String>> {
        let reply = |turn: &Turn<'_>| match asked(turn.answer()) {
            Some(asked) => Reply::says(asked.map_or_else(|error| error, |text| value(&text))),
            None => Reply::done(0.0),
        };
        turns.iter().map(|turn| Ok(reply(turn))).collect()
    }
}

/// The expression that an answer asks for, or what is wrong with its call; nothing if it asks for none.
/// Reasoning asks for nothing.
fn asked(answer: &str) -> Option<Result<String, String>> {
    let said = conclusion(answer)?;
    let marked = said.rsplit_once("<<").and_then(|(_, rest)| rest.split_once(">>"));
    if let Some((expression, _)) = marked {
        return Some(Ok(expression.to_string()));
    }
    match parse_calls(said).pop()? {
        Some(call) => Some(of_call(&call)),
        // A text that is a list or an object is a call only where it says so.
        None => said.contains("<tool_call>").then(|| Err("error: no call can be read".into())),
    }
}

fn of_call(call: &Call) -> Result<String, String> {
    if call.name != NAME {
        let name: String = call.name.chars().take(40).collect();
        return Err(format!("error: there is no tool `{name}`, only `{NAME}`"));
    }
    let expression = call.arguments.get("expression").and_then(|text| text.as_str());
    expression.map(String::from).ok_or_else(|| "error: `expression` is no text".into())
}

/// Whole numbers and fractions, exactly.
fn value(expression: &str) -> String {
    let parts = |ratio: Ratio| ratio.parts();
    match evaluate(expression).map(|(value, _)| value.and_then(parts)) {
        Some(Some((number, 1))) => number.to_string(),
        Some(Some((up, down))) => format!("{up}/{down}"),
        Some(None) => "error: no value".into(),
        None => "error: no expression".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_found_and_valued() {
        let reply = |answer: &str| match asked(answer) {
            None => "done".to_string(),
            Some(asked) => asked.map_or_else(|error| error, |text| value(&text)),
        };
        let call = |arguments: &str| {
            format!("<tool_call>{{\"name\":\"calculator\",\"arguments\":{arguments}}}</tool_call>")
        };
        for (answer, said) in [
            ("<<12*7>>", "84"),
            ("so <<1+1>> and <<7/2>> it", "7/2"),
            ("<think><<1+1>></think>33", "done"),
            ("<think><<1+1>>", "done"),
            ("<think>a</think><<2*(3-5)>>", "-4"),
            ("<<1/0>>", "error: no value"),
            ("<<x>>", "error: no expression"),
            ("<<>>", "error: no expression"),
            ("<<1+1", "done"),
            ("33", "done"),
            ("", "done"),
            ("{\"a\": 1}", "done"),
            ("<tool_call>oops", "error: no call can be read"),
            ("{\"name\":\"search\"}", "error: there is no tool `search`, only `calculator`"),
            (&call("{\"expression\":\"3*4\"}"), "12"),
            (&call("{\"expression\":3}"), "error: `expression` is no text"),
        ] {
            assert_eq!(reply(answer), said, "{answer}");
        }
    }
}
