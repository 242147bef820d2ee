//! A service as a reward, against a small server that misbehaves on purpose.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gradus_rft::reward::http::{HttpOptions, HttpReward, parse_answer};
use gradus_rft::reward::{Outcome, Reward, RewardInput, RewardOutcome, no_fields};
use serde_json::Value;

/// Credentials reach the service and nothing else.
#[test]
fn passwords_are_sent_and_not_shown() {
    let server = Server::new(&[Act::Score, Act::Say(401, "who?")]);
    let url = server.url.replace("http://", "http://judge:s3cr3t@");
    let reward = HttpReward::new(&format!("{url}?token=t0k3n&n=1"), quick()).unwrap();
    let input = RewardInput { prompt: "", completion: "ab", finished: true, fields: no_fields() };
    assert_eq!(reward.score(&[input]), [one(2.0)]);
    let head = server.heads.lock().unwrap()[0].clone();
    assert!(head.contains("authorization: Basic anVkZ2U6czNjcjN0\r\n"), "{head}");
    assert!(head.starts_with("POST /score?token=t0k3n&n=1 HTTP/1.1\r\n"), "{head}");
    let error = reward.score(&[input])[0].clone().unwrap_err();
    let shown = server.url.replace("http://", "http://***@") + "?token=***&n=1: status 401: who?";
    assert_eq!(error, shown);
    for wrong in ["http://judge:s3cr3t@", "ftp://judge:s3cr3t@host/", "http://judge:s3cr3t@a b/"] {
        let error = HttpReward::new(wrong, quick()).err().unwrap().to_string();
        assert!(error.contains("***") && !error.contains("s3cr3t"), "{error}");
    }
}

/// What the server does with one request.
#[derive(Clone, Copy)]
enum Act {
    /// Answers with this status and body.
    Say(u16, &'static str),
    /// Scores each sample by the length of its completion.
    Score,
    /// Takes its time.
    Slow,
    /// Hangs up in the middle of the answer.
    Break,
}

/// Serves the acts in order, the last one for ever. Keeps the requests' bodies.
struct Server {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn new(acts: &'static [Act]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/score", listener.local_addr().unwrap());
        let (heads, bodies) = (Arc::default(), Arc::new(Mutex::new(Vec::new())));
        let (lines, kept) = (Arc::clone(&heads), Arc::clone(&bodies));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let served = kept.lock().unwrap().len();
                let act = acts[served.min(acts.len() - 1)];
                let (lines, kept) = (Arc::clone(&lines), Arc::clone(&kept));
                thread::spawn(move || serve(stream.unwrap(), act, &lines, &kept));
            }
        });
        Server { url, heads, bodies }
    }

    fn requests(&self) -> usize {
        self.bodies.lock().unwrap().len()
    }

    fn ask(&self, completions: &[&str], options: HttpOptions) -> Vec<Outcome> {
        let reward = HttpReward::new(&self.url, options).unwrap();
        let input = |&completion| RewardInput {
            prompt: "p",
            completion,
            finished: true,
            fields: no_fields(),
        };
        reward.score(&completions.iter().map(input).collect::<Vec<_>>())
    }
}

fn serve(mut stream: TcpStream, act: Act, heads: &Mutex<Vec<String>>, bodies: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut length, mut head) = (0, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head += &line;
        if line.trim().is_empty() {
            break;
        }
    }
    heads.lock().unwrap().push(head);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let scores: Vec<usize> = body["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sample| sample["completion"].as_str().unwrap().len())
        .collect();
    bodies.lock().unwrap().push(body);
    let (status, text) = match act {
        Act::Say(status, text) => (status, text.to_string()),
        Act::Score | Act::Break => (200, format!("{{\"scores\":{scores:?}}}")),
        Act::Slow => {
            thread::sleep(Duration::from_secs(3));
            (200, format!("{{\"scores\":{scores:?}}}"))
        }
    };
    let length = text.len() + if matches!(act, Act::Break) { 10 } else { 0 };
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(text.as_bytes()));
}

fn quick() -> HttpOptions {
    HttpOptions {
        timeout: Duration::from_millis(1500),
        retries: 2,
        backoff: Duration::from_millis(5),
        max_answer: 1000,
        ..HttpOptions::default()
    }
}

fn one(value: f32) -> Outcome {
    Ok(RewardOutcome::Score(value))
}

/// Every sample fails with `word`, after so many requests.
fn all_fail(acts: &'static [Act], word: &str, requests: usize) {
    let server = Server::new(acts);
    for outcome in server.ask(&["a", "b"], quick()) {
        let error = outcome.unwrap_err();
        assert!(error.contains(word) && error.contains("http://127.0.0.1"), "{error}");
    }
    assert_eq!(server.requests(), requests, "{word}");
}

#[test]
fn samples_go_out_in_batches_and_come_back_in_order() {
    let server = Server::new(&[Act::Score]);
    let outcomes = server.ask(&["a", "bb", "ccc"], HttpOptions { batch: 2, ..quick() });
    assert_eq!(outcomes, [one(1.0), one(2.0), one(3.0)]);
    let bodies = server.bodies.lock().unwrap();
    let expected = serde_json::json!({"samples": [
        {"prompt": "p", "completion": "ccc", "finished": true, "fields": {}}
    ]});
    assert_eq!((bodies.len(), &bodies[1]), (2, &expected));
    drop(bodies);
    assert_eq!(server.ask(&[], quick()), []);
}

#[test]
fn each_score_stands_for_itself() {
    let answer =
        r#"{"scores": [0.5, null, {"error": "too long"}, "1", 1e39, NaN, -Infinity, 1e999]}"#;
    let outcomes = parse_answer(answer, 8).unwrap();
    assert_eq!(outcomes[..3], [one(0.5), Ok(RewardOutcome::Abstain), Err("too long".into())]);
    assert!(outcomes[3..].iter().all(|o| o.clone().unwrap_err().contains("finite number")));
}

#[test]
fn what_may_pass_is_tried_again() {
    for acts in [
        &[Act::Say(500, "oops"), Act::Score][..],
        &[Act::Say(429, "slowly"), Act::Say(503, ""), Act::Score],
        &[Act::Break, Act::Score],
        &[Act::Slow, Act::Score],
    ] {
        let server = Server::new(acts);
        assert_eq!(server.ask(&["a", "bb"], quick()), [one(1.0), one(2.0)]);
        assert_eq!(server.requests(), acts.len());
    }
}

#[test]
fn what_does_not_pass_fails_every_sample() {
    all_fail(&[Act::Say(500, "out of memory")], "status 500: out of memory, 3 attempts", 3);
    all_fail(&[Act::Say(404, "no such judge")], "status 404: no such judge", 1);
    all_fail(&[Act::Say(302, "")], "status 302", 1);
    all_fail(&[Act::Say(200, r#"{"scores":[1]}"#)], "1 scores for 2 samples", 1);
    all_fail(&[Act::Say(200, r#"{"scores":1}"#)], "invalid type", 1);
    all_fail(&[Act::Say(200, "[1, 2]")], "not a JSON object", 1);
    all_fail(&[Act::Say(200, "<html>")], "`<html>`", 1);
    let begun = Instant::now();
    all_fail(&[Act::Break], "3 attempts", 3);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn long_answers_and_closed_doors() {
    const LONG: &str =
        concat!("{\"scores\":[1,2],\"x\":\"", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\"}");
    let server = Server::new(&[Act::Say(200, LONG)]);
    let error = server.ask(&["a", "b"], HttpOptions { max_answer: 30, ..quick() })[0].clone();
    assert!(error.unwrap_err().contains("limit"));
    assert_eq!(server.requests(), 1);
    // Bound and let go: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let reward = HttpReward::new(&format!("http://{address}/"), quick()).unwrap();
    let input = RewardInput { prompt: "", completion: "", finished: true, fields: no_fields() };
    let error = reward.score(&[input])[0].clone().unwrap_err();
    assert!(error.contains("3 attempts"), "{error}");
}

#[test]
fn urls_are_checked_before_anything_is_sent() {
    for url in ["", "ftp://host/", "http://", "http:///x", "host/path", "http://a b/"] {
        let error = HttpReward::new(url, quick()).err().unwrap().to_string();
        assert!(error.contains("config `reward`"), "{url}: {error}");
    }
    let https = HttpReward::new("https://host/", quick());
    if cfg!(feature = "tls") {
        assert!(https.is_ok());
    } else {
        assert!(https.err().unwrap().to_string().contains("feature `tls`"));
    }
    assert!(HttpReward::new("http://host/", HttpOptions { batch: 0, ..quick() }).is_err());
}
