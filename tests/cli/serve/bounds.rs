//! What is refused, and where a server ends: arguments, sizes, times, clients that go, signals.

use std::io::{Read, Write};
use std::time::Instant;

use serde_json::{Value, json};

use super::super::runs::{gradus, latest, must};
use super::*;

const CHAT: &str = "/v1/chat/completions";
const COMPLETE: &str = "/v1/completions";

/// A server for requests that are refused.
fn strict(place: &Path) -> Server {
    Server::on(&folder(place), &["--context", "128", "--slots", "4"])
}

/// `body` with an argument more is refused for it.
fn refuses(server: &Server, path: &str, body: &Value, (name, value): (&str, Value)) {
    let mut body = body.clone();
    body[name] = value;
    let answer = server.post(path, &body);
    assert_eq!(answer.status, 400, "{body}: {}", answer.body);
    let error = &answer.json()["error"];
    assert_eq!(error["param"], name, "{body}: {error}");
    assert_eq!(error["type"], "invalid_request_error", "{error}");
    let words = error["message"].as_str().unwrap();
    assert!(words.contains(&format!("`{name}`")) && words.contains("expected"), "{words}");
}

#[test]
fn a_wrong_argument_of_a_chat_is_named() {
    let place = tempfile::tempdir().unwrap();
    let server = strict(place.path());
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}]});
    for wrong in [
        ("temperature", json!("hot")),
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e-30)),
        ("top_p", json!(0)),
        ("top_k", json!(-2)),
        ("n", json!(5)),
        ("n", json!(1.5)),
        ("seed", json!(-1)),
        ("max_tokens", json!(0)),
        ("stop", json!("")),
        ("stop", json!([1])),
        ("stop_token_ids", json!([256])),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("top_logprobs", json!(2)),
        ("logprobs", json!(2)),
        ("messages", json!([])),
        ("messages", json!("a")),
        ("tools", json!("look")),
        ("tool_choice", json!("required")),
        ("response_format", json!({"type": "json_object"})),
        ("logit_bias", json!({"50": 1})),
        ("frequency_penalty", json!(0.5)),
        ("presence_penalty", json!(0.5)),
        ("reasoning_effort", json!("high")),
        ("prompt", json!("a")),
    ] {
        refuses(&server, CHAT, &body, wrong);
    }
}

#[test]
fn a_wrong_argument_of_a_completion_is_named() {
    let place = tempfile::tempdir().unwrap();
    let server = strict(place.path());
    let body = json!({"model": "tiny", "prompt": "a"});
    for wrong in [
        ("prompt", json!([])),
        ("prompt", json!("")),
        ("prompt", json!([1, 256])),
        ("prompt", json!([1, "a"])),
        ("prompt", json!({"a": 1})),
        ("echo", json!(true)),
        ("best_of", json!(2)),
        ("suffix", json!("end")),
        ("logprobs", json!(21)),
        ("max_tokens", json!(129)),
        ("guided_json", json!({})),
    ] {
        refuses(&server, COMPLETE, &body, wrong);
    }
    // Arguments that ask for nothing are no error.
    let neutral = json!({
        "model": "tiny", "prompt": "a", "max_tokens": 1, "frequency_penalty": 0.0, "logit_bias": null,
        "best_of": 1, "echo": false, "unknown": null, "user": "me",
    });
    server.complete(&neutral);
}

#[test]
fn what_is_missing_or_elsewhere_is_named() {
    let place = tempfile::tempdir().unwrap();
    let server = strict(place.path());
    let (load, unload) = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter");
    let message = json!([{"role": "user", "content": "a"}]);
    let parts = json!([{"role": "user", "content": [{"type": "image_url"}]}]);
    let roleless = json!([{"content": "a"}]);
    let long = json!({"model": "tiny", "prompt": "a".repeat(100), "max_tokens": 29});
    let twice = json!({"lora_name": "tiny", "lora_path": "/"});
    let nowhere = json!({"lora_name": "a", "lora_path": "/no/such"});
    for (method, path, body, status, words) in [
        ("POST", CHAT, json!({"messages": message}), 400, "`model` is missing"),
        ("POST", CHAT, json!({"model": "tiny"}), 400, "`messages` is missing"),
        ("POST", COMPLETE, json!({"model": "tiny"}), 400, "`prompt` is missing"),
        ("POST", CHAT, json!({"model": "tiny", "messages": parts}), 400, "`messages[0].content`"),
        ("POST", CHAT, json!({"model": "tiny", "messages": roleless}), 400, "`messages[0].role`"),
        ("POST", COMPLETE, json!({"model": "huge", "prompt": "a"}), 404, "one of: tiny"),
        ("POST", COMPLETE, long, 400, "at most 128"),
        ("POST", COMPLETE, json!([1]), 400, "expected a JSON object"),
        ("GET", COMPLETE, json!({}), 405, "expected POST"),
        ("POST", "/v1/models", json!({}), 405, "expected GET"),
        ("GET", "/v1/models/huge", json!({}), 404, "`huge`"),
        ("POST", "/v1/embeddings", json!({}), 404, "nothing at /v1/embeddings"),
        ("POST", load, json!({"lora_name": "a"}), 400, "`lora_path` is missing"),
        ("POST", load, twice, 400, "served already"),
        ("POST", load, nowhere, 400, "/no/such"),
        ("POST", unload, json!({"lora_name": "a"}), 404, "nothing is loaded"),
        ("POST", unload, json!({"lora_name": "tiny"}), 400, "a loaded adapter"),
    ] {
        let answer = server.ask(method, path, &body.to_string());
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
        let error = answer.json();
        let told = error["error"]["message"].as_str().unwrap();
        assert!(told.contains(words), "{path} {body}: {told}");
    }
}

#[test]
fn what_is_no_request_is_refused_and_what_is_one_is_answered() {
    let place = tempfile::tempdir().unwrap();
    let server = strict(place.path());
    let post = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let kind = "content-type: application/json\r\n";
    for (head, status) in [
        (format!("{post}content-length: 2\r\n\r\n{{}}"), 415),
        (format!("{post}{kind}content-length: 4\r\n\r\n{{\"a\""), 400),
        ("what is this\r\n\r\n".into(), 400),
    ] {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        let answer = read(stream);
        assert_eq!(answer.status, status, "{head}: {}", answer.body);
    }
    assert_eq!(server.ask("GET", "/health", "").status, 200);
    let models = server.ask("GET", "/v1/models", "").json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(server.ask("GET", "/v1/models/tiny", "").json()["id"], "tiny");
}

#[test]
fn bodies_queues_and_clients_have_bounds() {
    let place = tempfile::tempdir().unwrap();
    let bounds = ["--slots", "1", "--queue", "2", "--max-body", "2000", "--read-time", "1"];
    let server =
        Server::on(&folder(place.path()), &[&bounds[..], &["--context", "60000"]].concat());
    let short = json!({"model": "tiny", "prompt": "a", "max_tokens": 2});
    let big = json!({"model": "tiny", "prompt": "a".repeat(3000)});
    let answer = server.post("/v1/completions", &big);
    assert_eq!(answer.status, 413, "{}", answer.body);
    assert!(answer.body.contains("2000 bytes") && answer.head.contains("connection: close"));
    // A body, and a head, that do not come.
    let mut slow = server.connect();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    write!(slow, "{head}content-length: 50\r\n\r\n{{\"model\"").unwrap();
    let answer = read(slow);
    assert_eq!((answer.status, answer.body.contains("within 1 s")), (408, true), "{}", answer.body);
    let mut slow = server.connect();
    slow.write_all(head.as_bytes()).unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();

    // More prompts than may wait, at once.
    let many = json!({"model": "tiny", "prompt": ["a", "b", "c"], "max_tokens": 2});
    let answer = server.post("/v1/completions", &many);
    assert_eq!(answer.status, 429, "{}", answer.body);
    assert!(answer.head.contains("retry-after") && answer.body.contains("at most 2 together"));
    // One that runs, two that wait, and a fourth.
    let mut client = server.sent("POST", "/v1/completions", &endless().to_string());
    let mut some = [0; 200];
    client.read_exact(&mut some).unwrap();
    server.await_running(1);
    let waiting = [(); 2].map(|()| server.sent("POST", "/v1/completions", &short.to_string()));
    let begun = Instant::now();
    while !server.ask("GET", "/metrics", "").body.contains("requests_waiting 2\n") {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    let answer = server.post("/v1/completions", &short);
    assert_eq!(answer.status, 429, "{}", answer.body);
    // A client that goes away leaves its slot to those that wait.
    drop(client);
    for stream in waiting {
        let answer = read(stream);
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    server.await_running(0);
    // One that waits for a whole answer, too.
    let mut whole = endless();
    whole["stream"] = json!(false);
    let client = server.sent("POST", "/v1/completions", &whole.to_string());
    server.await_running(1);
    drop(client);
    server.await_running(0);
    server.complete(&short);
}

#[test]
fn an_answer_has_its_time() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::on(&folder(place.path()), &["--context", "60000", "--timeout", "1"]);
    let (events, done) = server.post("/v1/completions", &endless()).events();
    assert!(!done && events.len() > 1);
    let error = &events.last().unwrap()["error"];
    assert_eq!(error["type"], "server_error", "{error}");
    let mut whole = endless();
    whole["stream"] = json!(false);
    let answer = server.post("/v1/completions", &whole);
    assert_eq!(answer.status, 504, "{}", answer.body);
    server.await_running(0);
}

#[test]
fn a_signal_ends_the_server_and_its_answers() {
    let place = tempfile::tempdir().unwrap();
    let mut server = Server::on(&folder(place.path()), &["--context", "60000"]);
    let streamed = server.sent("POST", "/v1/completions", &endless().to_string());
    let mut whole = endless();
    whole["stream"] = json!(false);
    let whole = server.sent("POST", "/v1/completions", &whole.to_string());
    server.await_running(2);
    // SAFETY: a plain system call; the child is not reaped yet.
    assert_eq!(unsafe { libc::kill(server.child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let begun = Instant::now();
    let answer = read(whole);
    assert_eq!(
        (answer.status, answer.body.contains("is stopping")),
        (503, true),
        "{}",
        answer.body
    );
    let (events, done) = read(streamed).events();
    assert!(!done && events.last().unwrap()["error"]["message"] == "the server is stopping");
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_run_is_served_and_wrong_words_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("runs");
    let mut train = gradus(&["train", "--out", out.to_str().unwrap()]);
    for set in
        ["phases=rl", "model.layers=1", "rl.steps=1", "rl.prompts=2", "rl.group=2", "threads=2"]
    {
        train.args(["--set", set]);
    }
    must(train);
    let run = latest(&out);
    let server = Server::start(&["--run", run.to_str().unwrap(), "--name", "run"]);
    let body =
        json!({"model": "run", "prompt": "4729=15:", "max_tokens": 4, "return_token_ids": true});
    let answer = server.complete(&body);
    assert!(!answer["choices"][0]["token_ids"].as_array().unwrap().is_empty());
    // A vocabulary of its own, and no template.
    let body = json!({"model": "run", "prompt": "what?", "max_tokens": 4});
    let answer = server.post("/v1/completions", &body);
    assert_eq!((answer.status, answer.body.contains("`w`")), (400, true), "{}", answer.body);
    let body = json!({"model": "run", "messages": [{"role": "user", "content": "1"}]});
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!((answer.status, answer.body.contains("/v1/completions")), (400, true));
    let port = server.at.port().to_string();
    let run = run.to_str().unwrap();
    for (arguments, words) in [
        (&["--run", run, "--port", &port][..], "cannot be had"),
        (&["--run", run, "--port", "0", "--slots", "0"], "expected at least 1"),
        (&["--run", run, "--port", "0", "--context", "9999"], "positions"),
        (&["--run", run, "--port", "0", "--temperature", "-1"], "temperature"),
        (&["--model", golden().to_str().unwrap(), "--set", "seed=3"], "does not read it"),
    ] {
        let output = gradus(&[&["serve"], arguments].concat()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), told.contains(words)), (Some(2), true), "{told}");
    }
}

#[test]
fn clients_of_other_machines_load_no_adapters_unless_they_may() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path());
    let load = json!({"lora_name": "tuned", "lora_path": golden().join("adapter")});
    for (more, status) in [(&[][..], 403), (&["--allow-adapters"], 200)] {
        let server = Server::on(&folder, &[&["--host", "0.0.0.0"], more].concat());
        let answer = server.post("/v1/load_lora_adapter", &load);
        assert_eq!(answer.status, status, "{}", answer.body);
    }
}
