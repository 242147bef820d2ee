//! A service as a reward: batches of samples, posted as JSON.
//!
//! ```text
//! {"samples":[{"prompt":"…","completion":"…","finished":true,"fields":{…}}, …]}
//! {"scores":[1.0, null, {"error":"too long"}, {"score":0.5,"parts":{"style":0.5},"feedback":"…"}, …]}
//! ```
//!
//! One score per sample, in order: a number, `null` to abstain, an object with `error`, which
//! fails that sample, or an object with `score` and, if the service likes, `parts` and `feedback`.
//! Parts are named numbers that the score is made of, whose means a run writes as metrics; feedback
//! is a text about the completion. A batch that cannot be had fails each of its samples with the reason, and
//! never scores 0: that goes for a service that is down, too slow, or answers with another number of
//! scores than it was asked for.
//!
//! Lost connections, timeouts and the statuses 429 and 5xx are tried again after a pause; any other
//! status, redirects included, and any other answer is final. A score that JSON does not have, such
//! as `NaN`, fails its sample alone. `https` needs the cargo feature `tls`. The proxy variables of the
//! environment are honored.
//!
//! A user and a password in the address are sent as basic authentication. They and the values of
//! parameters such as `api_key` appear in no message. They can be variables of the environment,
//! `http://$JUDGE_USER:$JUDGE_PASSWORD@host/`.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use ureq::{Agent, Error as Failure};

use super::command::{parse_score, strict_json};
use super::url::{Address, redacted};
use super::{Outcome, Reward, RewardInput, STOPPED, excerpt};
use crate::io::interrupt;
use gradus::error::{Error, Result};

/// How a service is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Most samples of one request, at least 1.
    pub batch: usize,
    /// Longest wait for one answer, from connecting to its last byte.
    pub timeout: Duration,
    /// How often a request is tried again.
    pub retries: u32,
    /// Pause before the first such attempt; each further one waits twice as long.
    pub backoff: Duration,
    /// Bytes of the longest answer.
    pub max_answer: u64,
    /// Headers to send, for example `Authorization`. They appear in no message.
    pub headers: Vec<(String, String)>,
}

impl Default for HttpOptions {
    fn default() -> HttpOptions {
        HttpOptions {
            batch: 256,
            timeout: Duration::from_secs(60),
            retries: 3,
            backoff: Duration::from_millis(500),
            max_answer: 16 << 20,
            headers: Vec::new(),
        }
    }
}

/// Scores completions by asking a service; the protocol is on [this page](self).
pub struct HttpReward {
    service: Arc<Service>,
}

/// What a request needs.
struct Service {
    address: Address,
    options: HttpOptions,
    agent: Agent,
}

#[derive(Serialize)]
struct Request<'a> {
    samples: Vec<Sample<'a>>,
}

#[derive(Serialize)]
struct Sample<'a> {
    prompt: &'a str,
    completion: &'a str,
    finished: bool,
    fields: &'a Map<String, Value>,
}

#[derive(Deserialize)]
struct Answer {
    scores: Vec<Value>,
}

/// What a failed attempt means for the next one.
enum Attempt {
    Again(String),
    Final(String),
}

impl HttpReward {
    /// A reward that posts to `url`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Config` if `url` is none, names a variable that is not set, or is an https one in a build
    /// without the feature `tls`.
    pub fn new(url: &str, options: HttpOptions) -> Result<HttpReward> {
        let shown = redacted(url);
        let refused = |reason: &str| Error::config("reward", format!("`{shown}`: {reason}"));
        let address = Address::parse(url).map_err(|reason| refused(&reason))?;
        let parsed: ureq::http::Uri =
            address.url.parse().map_err(|error| refused(&format!("not a URL: {error}")))?;
        match parsed.scheme_str() {
            Some("http") => {}
            Some("https") if cfg!(feature = "tls") => {}
            Some("https") => {
                return Err(refused("https needs gradus built with the feature `tls`"));
            }
            _ => return Err(refused("expected http:// or https://")),
        }
        if parsed.host().is_none_or(str::is_empty) {
            return Err(refused("names no host"));
        }
        if options.batch == 0 {
            return Err(refused("a batch of 0 samples, expected at least 1"));
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build()
            .new_agent();
        Ok(HttpReward { service: Arc::new(Service { address, options, agent }) })
    }

    fn ask(&self, inputs: &[RewardInput<'_>]) -> std::result::Result<Vec<Outcome>, String> {
        let samples = inputs.iter().map(Sample::of).collect();
        let request = serde_json::to_string(&Request { samples }).map_err(|e| e.to_string())?;
        let (request, options) = (Arc::from(request), &self.service.options);
        let mut attempt = 0;
        loop {
            let answered = self.post(&request);
            if interrupt::check().is_err() {
                return Err(STOPPED.into());
            }
            match answered {
                Ok(answer) => {
                    return parse_answer(&answer, inputs.len()).map_err(|e| self.blame(&e));
                }
                Err(Attempt::Again(_)) if attempt < options.retries => {
                    interrupt::pause(options.backoff * 2u32.saturating_pow(attempt));
                    attempt += 1;
                }
                Err(Attempt::Final(reason)) => return Err(self.blame(&reason)),
                Err(Attempt::Again(reason)) => {
                    return Err(self.blame(&format!("{reason}, {} attempts", attempt + 1)));
                }
            }
        }
    }

    fn blame(&self, reason: &str) -> String {
        format!("{}: {reason}", self.service.address.shown)
    }

    /// One attempt, on a thread that is left to itself if a signal asks for a stop.
    fn post(&self, request: &Arc<str>) -> std::result::Result<String, Attempt> {
        let (done, answered) = sync_channel(1);
        let (service, request) = (Arc::clone(&self.service), Arc::clone(request));
        let asking = thread::Builder::new().spawn(move || {
            // Nobody listens any more after a stop.
            let _ = done.send(service.post(&request));
        });
        if let Err(error) = asking {
            return Err(Attempt::Again(format!("no thread to ask with: {error}")));
        }
        let late = self.service.options.timeout.saturating_add(LATE);
        let answer = interrupt::wait_for(late, |turn| match answered.recv_timeout(turn) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(Attempt::Final("the request panicked".into())))
            }
        });
        answer.unwrap_or_else(|| Err(Attempt::Again("no answer in time".into())))
    }
}

/// The request keeps to its own time limit; this is for one that does not.
const LATE: Duration = Duration::from_secs(5);

impl Service {
    fn post(&self, request: &str) -> std::result::Result<String, Attempt> {
        let mut post =
            self.agent.post(&self.address.url).header("content-type", "application/json");
        if let Some(authorization) = &self.address.authorization {
            post = post.header("authorization", authorization);
        }
        for (name, value) in &self.options.headers {
            post = post.header(name, value);
        }
        let mut response = post.send(request).map_err(attempt)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(self.options.max_answer);
        if status == 200 {
            return body.read_to_string().map_err(attempt);
        }
        let said = excerpt(body.read_to_string().unwrap_or_default().trim());
        let reason = format!("status {status}: {said}");
        Err(if status == 429 || status >= 500 { Attempt::Again } else { Attempt::Final }(reason))
    }
}

impl<'a> Sample<'a> {
    fn of(input: &RewardInput<'a>) -> Sample<'a> {
        let RewardInput { prompt, completion, finished, fields } = *input;
        Sample { prompt, completion, finished, fields }
    }
}

fn attempt(failure: Failure) -> Attempt {
    let reason = failure.to_string();
    match failure {
        Failure::Io(_) | Failure::Timeout(_) | Failure::ConnectionFailed => Attempt::Again(reason),
        Failure::Protocol(_) | Failure::HostNotFound => Attempt::Again(reason),
        _ => Attempt::Final(reason),
    }
}

/// Reads the answer about `count` samples.
///
/// # Errors
/// It is no JSON object with `scores`, or holds another number of them. A score that is wrong fails
/// its sample alone.
pub fn parse_answer(text: &str, count: usize) -> std::result::Result<Vec<Outcome>, String> {
    let wrong = |reason: &str| format!("answered `{}`: {reason}", excerpt(text.trim()));
    if !text.trim_start().starts_with('{') {
        return Err(wrong("not a JSON object"));
    }
    let answer: Answer =
        serde_json::from_str(&strict_json(text)).map_err(|error| wrong(&error.to_string()))?;
    match answer.scores.len() == count {
        true => Ok(answer.scores.iter().map(parse_score).collect()),
        false => Err(wrong(&format!("{} scores for {count} samples", answer.scores.len()))),
    }
}

impl Reward for HttpReward {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(inputs.len());
        for batch in inputs.chunks(self.service.options.batch) {
            match self.ask(batch) {
                Ok(answered) => outcomes.extend(answered),
                Err(reason) => outcomes.extend(batch.iter().map(|_| Err(reason.clone()))),
            }
        }
        outcomes
    }
}
