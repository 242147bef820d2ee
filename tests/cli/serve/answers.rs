//! What answers are: rollouts, bit for bit, whole or streamed, under the adapter that is named.

use serde_json::{Value, json};

use super::*;

#[test]
fn answers_are_the_rollouts_of_their_seeds_whatever_runs_beside_them() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path());
    let server = Server::on(&folder, &["--slots", "6"]);
    assert!(server.line.starts_with("tiny at http://127.0.0.1:"), "{}", server.line);
    assert!(server.line.contains("4096 tokens, 6 slots, 64 waiting"), "{}", server.line);
    let model = model(&folder, None);
    let prompt = "What is 12 times 7? ".repeat(20);
    let body = json!({
        "model": "tiny", "prompt": prompt, "seed": 7, "n": 3, "temperature": 0.7,
        "max_tokens": 24, "return_token_ids": true, "logprobs": 2, "return_tokens_as_token_ids": true,
    });
    let expected = rolled(&model, &prompt, 3, &sampling(0.7, 24), 7);
    let check = || {
        let answer = server.complete(&body);
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 3);
        choices.iter().zip(&expected).for_each(|(choice, rollout)| expect(choice, rollout));
        let ids: Vec<i64> = prompt.bytes().map(i64::from).collect();
        assert_eq!(choices[2]["prompt_token_ids"], json!(ids));
        assert_eq!(answer["usage"]["prompt_tokens"], json!(ids.len()));
        assert_eq!(answer["usage"]["completion_tokens"], 72);
        answer
    };
    let alone = check();
    // The drawn token is among the likeliest, with the same log-prob.
    let ids = &expected[0].tokens;
    for ((name, logp, top), id) in places(&alone["choices"][0]).into_iter().zip(ids) {
        assert_eq!((&name, &top[&name]), (&format!("token_id:{id}"), &logp));
        let likelier = top.values().filter(|other| other.as_f64() > logp.as_f64()).count();
        assert_eq!(top.len(), if likelier < 2 { 2 } else { 3 });
    }
    let beside = |i: usize| {
        json!({
            "model": "tiny", "prompt": [vec![65 + i; 3 + 5 * i], vec![70; 2]], "max_tokens": 5 + 9 * i,
            "temperature": 0.3 * i as f64, "top_k": 5 * i, "top_p": 0.9, "seed": i,
            "return_token_ids": true, "logprobs": i,
        })
    };
    let each: Vec<Value> = (0..6).map(|i| server.complete(&beside(i))).collect();
    std::thread::scope(|scope| {
        let (server, beside) = (&server, &beside);
        let others: Vec<_> =
            (0..6).map(|i| scope.spawn(move || server.complete(&beside(i)))).collect();
        check();
        check();
        for (other, alone) in others.into_iter().zip(&each) {
            assert_eq!(other.join().unwrap()["choices"], alone["choices"]);
        }
    });
    // Without a seed two answers differ.
    let unseeded = json!({"model": "tiny", "prompt": "a", "max_tokens": 32, "temperature": 1});
    assert_ne!(server.complete(&unseeded)["choices"], server.complete(&unseeded)["choices"]);
}

/// Of each place of a completion's choice: the token, its log-prob, and the likeliest.
fn places(choice: &Value) -> Vec<(String, Value, serde_json::Map<String, Value>)> {
    let logprobs = &choice["logprobs"];
    let names = logprobs["tokens"].as_array().unwrap().iter();
    let logps = logprobs["token_logprobs"].as_array().unwrap().iter();
    let tops = logprobs["top_logprobs"].as_array().unwrap().iter();
    let each = names.zip(logps).zip(tops);
    each.map(|((name, logp), top)| {
        (name.as_str().unwrap().into(), logp.clone(), top.as_object().unwrap().clone())
    })
    .collect()
}

#[test]
fn a_chat_is_the_same_whole_and_streamed() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path());
    let server = Server::on(&folder, &["--name", "own name"]);
    assert_eq!(server.ask("GET", "/v1/models/own%20name", "").json()["id"], "own name");
    let mut body = json!({
        "model": "own name", "seed": 3, "n": 2, "max_completion_tokens": 40, "logprobs": true,
        "top_logprobs": 1, "return_token_ids": true, "temperature": 1, "user": "somebody",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"},
        ],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    });
    let whole = server.post("/v1/chat/completions", &body);
    assert_eq!(whole.status, 200, "{}", whole.body);
    let whole = whole.json();
    let tools = "tools:[{\"type\": \"function\", \"function\": {\"name\": \"look\"}}]\n";
    let prompt = format!("user:ab\nassistant:c\nuser:d\n{tools}assistant:");
    let ids: Vec<i64> = prompt.bytes().map(i64::from).collect();
    assert_eq!(whole["prompt_token_ids"], json!(ids));
    let expected = rolled(&model(&folder, None), &prompt, 2, &sampling(1.0, 40), 3);
    for (choice, rollout) in whole["choices"].as_array().unwrap().iter().zip(&expected) {
        assert_eq!(choice["token_ids"], json!(rollout.tokens));
        let bytes: Vec<u8> = rollout.tokens.iter().map(|&id| id as u8).collect();
        assert_eq!(choice["message"]["content"], json!(String::from_utf8_lossy(&bytes)));
        assert_eq!(choice["finish_reason"], "length");
        let content = choice["logprobs"]["content"].as_array().unwrap();
        let logp: Vec<f32> =
            content.iter().map(|token| token["logprob"].as_f64().unwrap() as f32).collect();
        assert_eq!(logp, rollout.logp);
        assert!(content.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 1));
    }

    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let streamed = server.post("/v1/chat/completions", &body);
    assert!(streamed.head.contains("text/event-stream"), "{}", streamed.head);
    let (events, done) = streamed.events();
    assert!(done);
    assert_eq!(events[0]["prompt_token_ids"], json!(ids));
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let own: Vec<&Value> = events
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap())
            .filter(|part| part["index"] == index)
            .collect();
        let text: String =
            own.iter().filter_map(|part| part["delta"]["content"].as_str()).collect();
        assert_eq!(json!(text), choice["message"]["content"]);
        let join = |of: fn(&Value) -> &Value| -> Value {
            own.iter().filter_map(|part| of(part).as_array()).flatten().cloned().collect()
        };
        assert_eq!(join(|part| &part["token_ids"]), choice["token_ids"]);
        assert_eq!(join(|part| &part["logprobs"]["content"]), choice["logprobs"]["content"]);
        assert_eq!(own.last().unwrap()["finish_reason"], "length");
    }
}

#[test]
fn a_text_ends_an_answer_and_is_left_out() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::on(&folder(place.path()), &[]);
    let mut body = json!({
        "model": "tiny", "prompt": "x", "seed": 1, "max_tokens": 40, "temperature": 1,
        "return_token_ids": true,
    });
    let whole = server.complete(&body)["choices"][0].clone();
    // Two neighboring characters of the answer that come for the first time.
    let text: Vec<char> = whole["text"].as_str().unwrap().chars().collect();
    let string = |chars: &[char]| chars.iter().collect::<String>();
    let whole_text = string(&text);
    let at = (8..text.len() - 2)
        .find(|&at| {
            let pair = string(&text[at..at + 2]);
            !pair.contains(char::REPLACEMENT_CHARACTER)
                && whole_text.find(&pair) == Some(string(&text[..at]).len())
        })
        .unwrap();
    body["stop"] = json!(["never there", string(&text[at..at + 2])]);
    let ended = server.complete(&body)["choices"][0].clone();
    assert_eq!(ended["finish_reason"], "stop");
    assert_eq!(ended["text"], json!(string(&text[..at])));
    // Its tokens are told with it: ids only grow.
    let (ids, all) =
        (ended["token_ids"].as_array().unwrap(), whole["token_ids"].as_array().unwrap());
    assert!(ids.len() < all.len() && ids[..] == all[..ids.len()]);
    // As a token, the same.
    body["stop"] = Value::Null;
    body["stop_token_ids"] = json!([ids[ids.len() - 1]]);
    let ended = server.complete(&body)["choices"][0].clone();
    assert_eq!(ended["finish_reason"], "stop");
    assert!(ended["token_ids"].as_array().unwrap().len() <= ids.len());
}

#[test]
fn requests_finish_with_the_adapter_that_they_began_with() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path());
    let path = golden().join("adapter");
    let server = Server::on(&folder, &[]);
    let load = json!({"lora_name": "tuned", "lora_path": path});
    let answer = server.post("/v1/load_lora_adapter", &load);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.contains("'tuned' added"), "{}", answer.body);
    assert_eq!(server.post("/v1/load_lora_adapter", &load).status, 400);
    let models = server.ask("GET", "/v1/models", "").json();
    assert_eq!(models["data"][1]["id"], "tuned");
    assert_eq!(models["data"][1]["root"], json!(path));

    let body = |model: &str, tokens: usize| {
        json!({
            "model": model, "prompt": "abc", "seed": 5, "max_tokens": tokens, "temperature": 0.9,
            "return_token_ids": true, "logprobs": 0,
        })
    };
    let (base, tuned) = (model(&folder, None), model(&folder, Some(&path)));
    let of_base = rolled(&base, "abc", 1, &sampling(0.9, 60), 5);
    let of_tuned = rolled(&tuned, "abc", 1, &sampling(0.9, 600), 5);
    assert_ne!(of_base[0].tokens[..], of_tuned[0].tokens[..60]);
    let long = server.sent("POST", "/v1/completions", &body("tuned", 600).to_string());
    server.await_running(1);
    // The name is gone while the answer goes on; the base model answers in between.
    let answer = server.post("/v1/unload_lora_adapter", &json!({"lora_name": "tuned"}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(server.post("/v1/completions", &body("tuned", 5)).status, 404);
    expect(&server.complete(&body("tiny", 60))["choices"][0], &of_base[0]);
    expect(&read(long).json()["choices"][0], &of_tuned[0]);
    // Under the same name again, in the place of itself.
    assert_eq!(server.post("/v1/load_lora_adapter", &load).status, 200);
    let again = json!({"lora_name": "tuned", "lora_path": path, "load_inplace": true});
    assert_eq!(server.post("/v1/load_lora_adapter", &again).status, 200);
    expect(&server.complete(&body("tuned", 600))["choices"][0], &of_tuned[0]);
    expect(&server.complete(&body("tiny", 60))["choices"][0], &of_base[0]);
    // An adapter of another model changes nothing.
    let other = crate::common::root().join("tests/golden/models/llama/adapter");
    let wrong = json!({"lora_name": "other", "lora_path": other});
    let answer = server.post("/v1/load_lora_adapter", &wrong);
    assert_eq!(answer.status, 400, "{}", answer.body);
    expect(&server.complete(&body("tuned", 600))["choices"][0], &of_tuned[0]);
}
