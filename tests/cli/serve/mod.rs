//! `gradus serve` over a socket: answers and their bits, refusals, bounds, adapters, signals.
#![cfg(all(unix, feature = "serve"))]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use gradus::Device;
use gradus::rng::Purpose;
use gradus_rft::model::Decoder;
use gradus_rft::pretrained::{Adapter, LoadOptions, Pretrained};
use gradus_rft::train::rollout::{Rollout, RolloutKey, Sampling, rollout};
use serde_json::{Value, json};

use super::runs::gradus;

mod answers;
mod bounds;

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}\
                        {% if tools %}tools:{{ tools | tojson }}\n{% endif %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

fn golden() -> PathBuf {
    crate::common::root().join("tests/golden/models/qwen3")
}

/// A folder of the golden model with a chat template, room for long answers, and no token that ends one.
fn folder(at: &Path) -> PathBuf {
    let folder = at.join("tiny");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(golden().join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let config = std::fs::read(golden().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["max_position_embeddings"] = json!(60_000);
    config["eos_token_id"] = Value::Null;
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let tokens = json!({"chat_template": TEMPLATE}).to_string();
    std::fs::write(folder.join("tokenizer_config.json"), tokens).unwrap();
    folder
}

/// A server, which ends with the test.
struct Server {
    child: Child,
    at: SocketAddr,
    line: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer: status, head, body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The JSON of server-sent events, and whether the last one says that all are there.
    fn events(&self) -> (Vec<Value>, bool) {
        let body = unchunked(&self.body);
        let mut all: Vec<&str> = body.split("\n\n").filter(|event| !event.is_empty()).collect();
        let done = all.pop_if(|last| *last == "data: [DONE]").is_some();
        let parse = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap());
        (all.into_iter().map(|event| parse(event).unwrap()).collect(), done)
    }
}

/// The bytes of a chunked body.
fn unchunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out += &rest[..size];
        body = &rest[size + 2..];
        if size == 0 {
            break;
        }
    }
    out
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let mut all = vec!["serve", "--port", "0"];
        all.extend(arguments);
        let mut child = gradus(&all).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let at = line.split_once("http://").and_then(|(_, rest)| rest.split_once("/v1"));
        let Some(at) = at.and_then(|(at, _)| at.parse().ok()) else {
            let mut told = String::new();
            let _ = child.kill();
            child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
            panic!("{line}{told}");
        };
        Server { child, at, line }
    }

    fn on(model: &Path, more: &[&str]) -> Server {
        let mut all = vec!["--model", model.to_str().unwrap(), "--set", "threads=2"];
        all.extend(more);
        Server::start(&all)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// A connection on which a request was sent.
    fn sent(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let (kind, length) = ("content-type: application/json", body.len());
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{kind}\r\n");
        write!(stream, "{head}content-length: {length}\r\n\r\n{body}").unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        read(self.sent(method, path, body))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &body.to_string())
    }

    /// A completion that has to come.
    fn complete(&self, body: &Value) -> Value {
        let answer = self.post("/v1/completions", body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    fn running(&self) -> usize {
        let body = self.ask("GET", "/metrics", "").body;
        let line = body.lines().find(|line| line.starts_with("gradus_choices_running "));
        line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    fn await_running(&self, count: usize) {
        let begun = Instant::now();
        while self.running() != count {
            assert!(begun.elapsed() < Duration::from_secs(30), "not {count} running");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.into() }
}

fn model(folder: &Path, adapter: Option<&Path>) -> Decoder {
    let mut folder = Pretrained::open(folder).unwrap();
    let mut model = folder.load(Device::Cpu, &LoadOptions::default()).unwrap();
    if let Some(adapter) = adapter {
        Adapter::load(adapter).unwrap().attach(&mut model).unwrap();
    }
    model
}

fn sampling(temperature: f64, max_new_tokens: usize) -> Sampling {
    Sampling {
        temperature,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        greedy: false,
        max_new_tokens,
        stops: [].into(),
        slots: 8,
        longest_prompt: 64,
        cache_percent: 100,
    }
}

fn rolled(model: &Decoder, prompt: &str, n: usize, sampling: &Sampling, seed: u64) -> Vec<Rollout> {
    let ids: Vec<i32> = prompt.bytes().map(i32::from).collect();
    let key = RolloutKey { seed, purpose: Purpose::Sample, step: 0 };
    rollout(model, &[ids], n, sampling, key).unwrap().remove(0)
}

/// Ids and log-probs of a choice of a completion.
fn told(choice: &Value) -> (Vec<i32>, Vec<f32>) {
    let ids = choice["token_ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32);
    let logp = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    (ids.collect(), logp.iter().map(|logp| logp.as_f64().unwrap() as f32).collect())
}

fn expect(choice: &Value, rollout: &Rollout) {
    assert_eq!(told(choice), (rollout.tokens.clone(), rollout.logp.clone()));
}

/// A request that takes far longer than a test.
fn endless() -> Value {
    json!({"model": "tiny", "prompt": "a", "max_tokens": 50_000, "stream": true, "seed": 1})
}
