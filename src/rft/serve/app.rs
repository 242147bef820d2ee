//! What each address answers.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request as Http, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::adapters::Named;
use super::answer::Form;
use super::engine::{Command, Counters, Event, Job};
use super::fields::Fields;
use super::http::body;
use super::problem::{Problem, shown};
use super::request::{Defaults, Prompt, Request, Shape};
use super::stream::{Reply, Stream, whole};
use crate::pretrained::Adapter;
use crate::text::ChatTemplate;
use crate::train::task::Task;
use gradus::error::Error;

/// Adapters that are served at a time.
const MAX_ADAPTERS: usize = 64;

/// Longest name of an adapter, in bytes.
const MAX_NAME: usize = 200;

/// What the server answers from.
pub(super) struct App {
    pub task: Arc<dyn Task>,
    pub template: Option<ChatTemplate>,
    pub defaults: Defaults,
    /// Prompts that may wait.
    pub queue: usize,
    /// Bytes of a body.
    pub max_body: usize,
    /// Time for the head of a request, and for its body.
    pub read_time: Duration,
    /// Time for an answer.
    pub timeout: Duration,
    /// Whether clients may load adapters from folders of this machine.
    pub loads: bool,
    pub commands: Sender<Command>,
    pub counters: Arc<Counters>,
    pub names: Mutex<Vec<Arc<Named>>>,
    /// Number of the next adapter or answer.
    pub next: AtomicUsize,
    pub open: Arc<AtomicUsize>,
}

type Answered = Result<Response<Reply>, Problem>;

/// Counts a request as long as its answer lives.
pub(super) struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Open {
        count.fetch_add(1, Ordering::Relaxed);
        Open(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request with its model and the ids of its prompts.
struct Prepared {
    request: Request,
    named: Arc<Named>,
    prompts: Vec<Vec<i32>>,
}

impl App {
    /// Requests without a complete answer.
    pub fn open_requests(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The answer to a request, whatever it is.
    pub async fn answer(self: Arc<App>, request: Http<Incoming>) -> Response<Reply> {
        let _open = Open::new(&self.open);
        self.route(request).await.unwrap_or_else(|problem| refusal(&problem))
    }

    async fn route(self: Arc<App>, request: Http<Incoming>) -> Answered {
        let path = request.uri().path().to_string();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match (path.as_str(), reads) {
            ("/health", true) => Ok(text(StatusCode::OK, String::new())),
            ("/metrics", true) => Ok(text(StatusCode::OK, self.metrics())),
            ("/v1/models", true) => {
                let models: Vec<Value> = self.names().iter().map(model).collect();
                Ok(json_of(StatusCode::OK, &json!({"object": "list", "data": models})))
            }
            ("/v1/chat/completions", false) => self.complete(Shape::Chat, request).await,
            ("/v1/completions", false) => self.complete(Shape::Completion, request).await,
            ("/v1/load_lora_adapter", false) => self.load(request).await,
            ("/v1/unload_lora_adapter", false) => self.unload(request).await,
            (path, _) => self.other(path, reads, request.method()),
        }
    }

    /// One model, a wrong method, or nothing.
    fn other(&self, path: &str, reads: bool, method: &Method) -> Answered {
        if let Some(name) = path.strip_prefix("/v1/models/").filter(|_| reads) {
            let name = percent_decode_str(name).decode_utf8_lossy();
            return self.named("model", &name).map(|named| json_of(StatusCode::OK, &model(&named)));
        }
        let get = ["/health", "/metrics", "/v1/models"].contains(&path);
        let post = [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
        ];
        if get || post.contains(&path) {
            let expected = if get { "GET" } else { "POST" };
            let message = format!("{path} is asked with {method}, expected {expected}");
            return Err(Problem::new(405, message));
        }
        Err(Problem::new(404, format!("there is nothing at {path}")))
    }

    fn names(&self) -> MutexGuard<'_, Vec<Arc<Named>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self, param: &str, name: &str) -> Result<Arc<Named>, Problem> {
        let names = self.names();
        let known = || names.iter().map(|named| named.name.clone()).collect::<Vec<_>>();
        let found = names.iter().find(|named| named.name == name).cloned();
        found.ok_or_else(|| Problem::no_model(param, name, &known()))
    }

    /// The bytes of a body that says that it is JSON: no page of a browser sends one to another host unasked.
    async fn json(&self, request: Http<Incoming>) -> Result<Vec<u8>, Problem> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or("missing").to_string();
        let plain = kind.split(';').next().unwrap_or_default().trim();
        if !plain.eq_ignore_ascii_case("application/json") {
            let message = format!("the content type is {kind}, expected application/json");
            return Err(Problem::new(415, message));
        }
        body(request.into_body(), self.max_body, self.read_time).await
    }

    async fn complete(self: Arc<App>, shape: Shape, request: Http<Incoming>) -> Answered {
        let deadline = Instant::now() + self.timeout;
        let bytes = self.json(request).await?;
        let app = self.clone();
        // A template and a tokenizer may take a while, in which others are served.
        let prepared = spawn_blocking(move || app.prepare(shape, &bytes)).await;
        let Prepared { request, named, prompts } =
            prepared.map_err(|_| Problem::new(500, "the request cannot be read"))??;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let kind = if shape == Shape::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{kind}-{:016x}-{number}", RandomState::new().hash_one(number));
        let form = Form::of(&request, id, now(), prompts);
        let events = self.submit(&request, &named, &form)?;
        if request.stream {
            let open = Open::new(&self.open);
            let stream = Stream::new(form, self.task.clone(), events, deadline, open);
            let mut response = Response::new(Reply::Stream(Box::new(stream)));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert("cache-control", HeaderValue::from_static("no-cache"));
            return Ok(response);
        }
        let answer = whole(&form, self.task.codec(), events, deadline).await?;
        Ok(json_of(StatusCode::OK, &answer))
    }

    /// Understands a body, and encodes its prompts.
    fn prepare(&self, shape: Shape, body: &[u8]) -> Result<Prepared, Problem> {
        let mut request = Request::parse(shape, body, &self.defaults)?;
        let named = self.named("model", &request.model)?;
        let asked = std::mem::take(&mut request.prompts);
        let prompts = asked.into_iter().map(|prompt| self.encode(prompt));
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
        let (param, context) = (param(shape), self.defaults.context);
        for ids in &prompts {
            let room = context.saturating_sub(ids.len());
            let least = request.max_tokens.unwrap_or(1);
            if ids.is_empty() {
                return Err(Problem::argument(param, "empty", "at least one token"));
            }
            if room < least {
                let got = format!("{} tokens, with {least} more to draw", ids.len());
                let expected = format!("at most {context} tokens together");
                let code = Some("context_length_exceeded");
                return Err(Problem { code, ..Problem::argument(param, got, &expected) });
            }
        }
        Ok(Prepared { request, named, prompts })
    }

    fn encode(&self, prompt: Prompt) -> Result<Vec<i32>, Problem> {
        let codec = self.task.codec();
        let refused = |param: &'static str| {
            move |error: Error| match error {
                // A template refuses messages by an error of its own.
                Error::InvalidArgument { .. } | Error::Format { .. } => {
                    Problem { param: Some(param.into()), ..Problem::new(400, error.to_string()) }
                }
                error => Problem::new(500, error.to_string()),
            }
        };
        match prompt {
            Prompt::Ids(ids) => codec.check_ids(&ids).map(|()| ids).map_err(refused("prompt")),
            Prompt::Text(text) => codec.encode(&text).map_err(refused("prompt")),
            Prompt::Chat { messages, options } => {
                let Some(template) = &self.template else {
                    let expected = "a model with a chat template: ask this one at /v1/completions";
                    return Err(Problem::argument("messages", "a conversation", expected));
                };
                let text = template.render(&messages, &options).map_err(refused("messages"))?;
                codec.encode_rendered(&text).map_err(refused("messages"))
            }
        }
    }

    /// Gives the engine a job for each prompt.
    fn submit(
        &self,
        request: &Request,
        named: &Arc<Named>,
        form: &Form,
    ) -> Result<UnboundedReceiver<Event>, Problem> {
        let (prompts, waiting) = (form.prompts.len(), &self.counters.waiting);
        let fits = |n: usize| (n + prompts <= self.queue).then_some(n + prompts);
        if let Err(n) = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            let message = format!(
                "{n} prompts wait and {prompts} more would, expected at most {} together: try later",
                self.queue
            );
            return Err(Problem { code: Some("queue_full"), ..Problem::new(429, message) });
        }
        let (sender, events) = unbounded_channel();
        let seed = request.seed.unwrap_or_else(|| RandomState::new().hash_one(&form.id) >> 1);
        let stops = self.task.codec().stops().iter().chain(&request.stop_ids);
        let stops: Vec<i32> = stops.copied().collect();
        for (prompt, ids) in form.prompts.iter().enumerate() {
            let job = Job {
                named: named.clone(),
                ids: ids.clone(),
                first: prompt * request.n,
                choices: request.n,
                sampling: request.sampling.clone(),
                seed,
                prompt: prompt as u32,
                allowed: request.max_tokens.unwrap_or(self.defaults.context - ids.len()),
                stops: stops.clone(),
                stop: request.stop.clone(),
                spelled: request.spelled,
                top: request.logprobs.unwrap_or(0),
                events: sender.clone(),
            };
            if self.commands.send(Command::Answer(Box::new(job))).is_err() {
                return Err(Problem::new(503, "the server is stopping"));
            }
        }
        Ok(events)
    }

    async fn load(self: Arc<App>, request: Http<Incoming>) -> Answered {
        let mut fields = Fields::parse(&self.json(request).await?)?;
        let expected = format!("a name of 1 to {MAX_NAME} bytes without control characters");
        let fits =
            |name: &str| (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control);
        let name = fields.read("lora_name", &expected, |value| {
            value.as_str().filter(|name| fits(name)).map(String::from)
        })?;
        let name = name.ok_or_else(|| Problem::argument("lora_name", "missing", &expected))?;
        let expected = "the folder of an adapter on the server's machine";
        let path = fields.text("lora_path")?;
        let path = path.ok_or_else(|| Problem::argument("lora_path", "missing", expected))?;
        let replaces = fields.flag("load_inplace")?.unwrap_or(false);
        fields.finish()?;
        if !self.loads {
            let message = "adapters are not loaded for clients of other machines, unless the server \
                           was started with --allow-adapters";
            return Err(Problem::new(403, message));
        }
        self.check_name(&name, replaces)?;
        let named = self.take_in(&name, &path).await?;
        let mut names = self.names();
        // Somebody else may have been faster.
        let others = names.iter().position(|known| known.name == name && known.id != 0);
        match others {
            Some(at) if replaces => names[at] = named,
            Some(_) => return Err(taken(&name)),
            None => names.push(named),
        }
        Ok(text(StatusCode::OK, format!("Success: LoRA adapter '{name}' added successfully.")))
    }

    fn check_name(&self, name: &str, replaces: bool) -> Result<(), Problem> {
        let names = self.names();
        let known = names.iter().find(|known| known.name == name);
        if known.is_some_and(|known| known.id == 0 || !replaces) {
            return Err(taken(name));
        }
        if known.is_none() && names.len() > MAX_ADAPTERS {
            let message =
                format!("{MAX_ADAPTERS} adapters are served, expected to unload one first");
            return Err(Problem::new(400, message));
        }
        Ok(())
    }

    /// Reads an adapter and gives it to the engine.
    async fn take_in(&self, name: &str, path: &str) -> Result<Arc<Named>, Problem> {
        let refused = |error: Error| Problem {
            param: Some("lora_path".into()),
            ..Problem::new(400, error.to_string())
        };
        let folder = path.to_string();
        let adapter = spawn_blocking(move || Adapter::load(Path::new(&folder))).await;
        let adapter = adapter.map_err(|_| Problem::new(500, "the adapter cannot be read"))?;
        let adapter = adapter.map_err(refused)?;
        if adapter.config.saves_whole() {
            let got = format!("`{path}`, which has whole modules (modules_to_save)");
            let expected = "low-rank updates alone: merge it into the model (gradus merge)";
            return Err(Problem::argument("lora_path", got, expected));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) as u64;
        let (name, path) = (name.to_string(), Some(path.to_string()));
        let named = Arc::new(Named { id, name, path, created: now() });
        let (reply, loaded) = oneshot::channel();
        let load = Command::Load { named: named.clone(), adapter: Box::new(adapter), reply };
        let stopping = || Problem::new(503, "the server is stopping");
        self.commands.send(load).map_err(|_| stopping())?;
        loaded.await.map_err(|_| stopping())?.map_err(refused)?;
        Ok(named)
    }

    async fn unload(self: Arc<App>, request: Http<Incoming>) -> Answered {
        let mut fields = Fields::parse(&self.json(request).await?)?;
        let expected = "the name of a loaded adapter";
        let name = fields.text("lora_name")?;
        let name = name.ok_or_else(|| Problem::argument("lora_name", "missing", expected))?;
        fields.finish()?;
        let mut names = self.names();
        let Some(at) = names.iter().position(|known| known.name == name && known.id != 0) else {
            let loaded = names.iter().filter(|known| known.id != 0);
            let loaded: Vec<String> = loaded.map(|known| known.name.clone()).collect();
            if names.iter().any(|known| known.name == name) {
                return Err(Problem::argument("lora_name", shown(&json!(name)), expected));
            }
            return Err(Problem::no_model("lora_name", &name, &loaded));
        };
        names.remove(at);
        Ok(text(StatusCode::OK, format!("Success: LoRA adapter '{name}' removed successfully.")))
    }

    /// In the text format of Prometheus.
    fn metrics(&self) -> String {
        let c = &self.counters;
        let gauges = [
            ("requests_waiting", "gauge", c.waiting.load(Ordering::Relaxed) as u64),
            ("choices_running", "gauge", c.running.load(Ordering::Relaxed) as u64),
            ("prompt_tokens_total", "counter", c.read.load(Ordering::Relaxed)),
            ("generated_tokens_total", "counter", c.generated.load(Ordering::Relaxed)),
        ];
        let line =
            |(name, kind, value)| format!("# TYPE gradus_{name} {kind}\ngradus_{name} {value}\n");
        gauges.map(line).concat()
    }
}

fn taken(name: &str) -> Problem {
    let got = format!("`{name}`, which is served already");
    Problem::argument("lora_name", got, "a new name, or that of an adapter with `load_inplace`")
}

fn param(shape: Shape) -> &'static str {
    match shape {
        Shape::Chat => "messages",
        Shape::Completion => "prompt",
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn model(named: &Arc<Named>) -> Value {
    json!({
        "id": named.name, "object": "model", "created": named.created, "owned_by": "gradus",
        "root": named.path,
    })
}

fn text(status: StatusCode, text: String) -> Response<Reply> {
    let mut response = Response::new(Reply::text(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn json_of(status: StatusCode, value: &Value) -> Response<Reply> {
    let mut response = Response::new(Reply::text(value.to_string()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn refusal(problem: &Problem) -> Response<Reply> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = json_of(status, &problem.json());
    let headers = response.headers_mut();
    if problem.status == 429 {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    // What is left of the body is not read.
    if matches!(problem.status, 408 | 413 | 415) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
