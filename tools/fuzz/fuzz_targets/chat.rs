//! Chat templates: a source and messages; whatever it is, a render ends, and within its limits.
#![no_main]

use gradus_rft::text::{ChatOptions, ChatTemplate};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

fuzz_target!(|data: &[u8]| {
    // A panic inside the engine is an error to the caller, and none here.
    std::panic::set_hook(Box::new(|_| ()));
    let Ok(source) = std::str::from_utf8(data) else { return };
    let tokens = Map::from_iter([("bos_token".to_owned(), Value::from("<s>"))]);
    let Ok(template) = ChatTemplate::new("fuzz", source, tokens) else { return };
    let call = json!([{ "function": { "name": "f", "arguments": { "x": 1.5, "y": [null] } } }]);
    let messages = [
        json!({ "role": "system", "content": " s " }),
        json!({ "role": "user", "content": [{ "type": "text", "text": "u" }] }),
        json!({ "role": "assistant", "content": "<think>\na\n</think>\n\nb", "tool_calls": call }),
    ];
    let options = ChatOptions { tools: Some(json!([{ "name": "f" }])), ..ChatOptions::default() };
    if let Ok(text) = template.render(&messages, &options) {
        assert!(text.len() <= 16 << 20);
    }
});
