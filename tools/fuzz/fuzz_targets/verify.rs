//! Completions as no model should write them, judged by every verifier that runs nothing. The first
//! byte says whether the text is also the gold.
#![no_main]

use gradus_rft::reward::verify::{
    Countdown, Exact, Format, Iou, Json, MathAnswer, Numeric, Schema, ToolCall, code_block,
    conclusion,
};
use gradus_rft::reward::{Outcome, RewardInput, RewardOutcome};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

fn in_range(outcome: Outcome) {
    match outcome {
        Ok(RewardOutcome::Score(score)) => assert!((0.0..=1.0).contains(&score), "{score}"),
        Ok(RewardOutcome::Abstain) => panic!("no verifier abstains"),
        Err(reason) => assert!(!reason.is_empty()),
    }
}

fn row(text: &str, gold: bool) -> Map<String, Value> {
    // Where the text is JSON it is a gold as it is, else a text that may hold one.
    let given = || serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    let row = match gold {
        true => json!({
            "answer": given(), "numbers": given(), "target": given(), "boxes": given(),
            "tool_calls": given(), "schema": given()
        }),
        false => json!({
            "answer": ["1/2", "x"], "numbers": [1, 2, 3], "target": 6,
            "boxes": [[0, 0, 2, 2], [1, 1, 3, 3]], "tool_calls": [{"name": "f"}, {"name": "g"}],
            "schema": {"type": "object", "properties": {"a": {"enum": [1, "b"]}}}
        }),
    };
    row.as_object().cloned().unwrap_or_default()
}

fuzz_target!(|data: &[u8]| {
    let (gold, text) = data.split_first().map_or((0, data), |(gold, text)| (*gold, text));
    let text = &String::from_utf8_lossy(text);
    let fields = &row(text, gold % 2 == 1);
    let input = &RewardInput { prompt: "", completion: text, finished: true, fields };
    in_range(Numeric { relative: 0.01, ..Numeric::default() }.check(input));
    in_range(Exact::default().check(input));
    in_range(Format::think_answer().check(input));
    in_range(Json::default().check(input));
    in_range(ToolCall::default().check(input));
    in_range(Iou::default().check(input));
    in_range(Iou { threshold: Some(0.5), ..Iou::default() }.check(input));
    in_range(Countdown { partial: 0.1, ..Countdown::default() }.check(input));
    // What can be read is itself, unless comparing takes too long; a gold is read in a completion too.
    for read in [MathAnswer::gold(text), MathAnswer::completion(text)].into_iter().flatten() {
        read.is(&read, 0.0, 0.01);
    }
    assert!(conclusion(text).is_none_or(|answer| text.ends_with(answer)));
    if let Ok(schema) = Schema::parse(&Value::Object(fields.clone())) {
        schema.accepts(&json!({"a": 1}));
    }
    assert!(code_block(text).is_none_or(|block| text.contains(block)));
});
