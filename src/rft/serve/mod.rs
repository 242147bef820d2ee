//! `gradus serve`: a model over HTTP, as OpenAI's clients ask for it.
//!
//! | address | what it answers |
//! |---|---|
//! | `POST /v1/chat/completions`, `/v1/completions` | answers, whole or as server-sent events |
//! | `GET /v1/models`, `/v1/models/NAME` | the model, and the adapters that are loaded |
//! | `POST /v1/load_lora_adapter`, `/v1/unload_lora_adapter` | adapters by name, in vLLM's shape |
//! | `GET /health`, `/metrics` | whether it answers; counts, in the text format of Prometheus |
//!
//! Requests take slots of one KV cache as they come (continuous batching): all running answers get their next
//! token together, and one that is done leaves its slot to the next. Rows of the model do not depend on the
//! batch, so that an answer has the bits that it has alone. Sample s of prompt p of a request with `seed` is
//! what [`rollout`](crate::train::rollout::rollout) draws as sample s of prompt p under that seed, at step 0 for
//! [`Purpose::Sample`](gradus::rng::Purpose::Sample): sampler and trainer have the same log-probs, bit for bit.
//! Log-probs are those of the full vocabulary at the sampling temperature (at 1 where it is 0).
//!
//! With `return_token_ids` an answer tells the ids of its prompt and its own. A prompt of `/v1/completions` may be
//! ids, so that who drives an episode appends to ids and never encodes an answer again.
//!
//! An argument that is not built is refused with its name, never ignored. The server has no authentication, and
//! is for one's own machine; [`ServeOptions`] has its bounds.

mod adapters;
mod answer;
mod app;
mod calls;
mod engine;
mod fields;
mod http;
mod problem;
mod request;
mod running;
mod stream;
mod text;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::io::interrupt;
use crate::pretrained::Pretrained;
use crate::text::ChatTemplate;
use crate::train::config::{ModelDtype, RunConfig};
use crate::train::infer::{in_words, sampling};
use crate::train::progress::line;
use crate::train::run::on_threads;
use crate::train::task::dataset::chat_options;
use crate::train::{RunOrModel, Trainer};
use adapters::Named;
use app::{App, now};
use engine::{Counters, Engine};
use gradus::dtype::{Float, bf16};
use gradus::error::{Error, Result};
use gradus::escape::escaped;
use request::Defaults;

/// Where a server listens, and its bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeOptions {
    /// Address; one that other machines reach is not the default, as there is no authentication.
    pub host: IpAddr,
    /// Port; 0 for one that is free.
    pub port: u16,
    /// What requests call the model; the name of its folder without it.
    pub name: Option<String>,
    /// Tokens of the longest prompt with its answer; 4096, or what the model has, without it.
    pub context: Option<usize>,
    /// Answers that are decoded together. The cache has room for all of them at their longest.
    pub slots: usize,
    /// Prompts that may wait for slots; more are refused with 429.
    pub queue: usize,
    /// Bytes of a request's body; a longer one is refused with 413.
    pub max_body: usize,
    /// Time for the head of a request, and for its body; 408 after it. An idle connection is closed as late.
    pub read_time: Duration,
    /// Time for an answer, waiting included; 504 after it.
    pub timeout: Duration,
    /// Sampling temperature where a request names none, 0 for the most likely token.
    pub temperature: Option<f64>,
    /// Loads adapters from folders for clients of other machines too.
    pub allow_adapters: bool,
}

impl Default for ServeOptions {
    fn default() -> ServeOptions {
        ServeOptions {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8000,
            name: None,
            context: None,
            slots: 16,
            queue: 64,
            max_body: 8 << 20,
            read_time: Duration::from_secs(30),
            timeout: Duration::from_secs(600),
            temperature: None,
            allow_adapters: false,
        }
    }
}

/// Tokens of a sequence, if nobody says.
const CONTEXT: usize = 4096;

/// Serves a run or a model until a signal asks for a stop. `print` gets one line once requests are answered.
///
/// # Errors
/// `Interrupted` by the signal; `Config` for an address that cannot be had and bounds that are none; what opening
/// the model says; `OutOfMemory` for a cache of `slots` · `context` tokens.
pub fn serve(
    what: &RunOrModel,
    options: &ServeOptions,
    print: impl Fn(&str) -> Result<()> + Sync,
) -> Result<()> {
    options.check()?;
    let _listening = interrupt::listen()?;
    let config = what.config()?;
    let listener = options.bind()?;
    on_threads(config.threads, || match config.model.dtype {
        ModelDtype::Bf16 => {
            answer(what.trainer::<bf16>(config.clone())?, what, options, listener, &print)
        }
        ModelDtype::F32 => {
            answer(what.trainer::<f32>(config.clone())?, what, options, listener, &print)
        }
    })
}

impl ServeOptions {
    fn check(&self) -> Result<()> {
        let positive = [
            ("--slots", self.slots),
            ("--queue", self.queue),
            ("--max-body", self.max_body),
            ("--context", self.context.unwrap_or(1)),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::config(name, "0, expected at least 1"));
        }
        match self.name.as_deref() {
            Some(name) if name.is_empty() || name.contains(char::is_control) => {
                let reason = format!("`{}`, expected a name", name.escape_debug());
                Err(Error::config("--name", reason))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn bind(&self) -> Result<TcpListener> {
        let address = SocketAddr::new(self.host, self.port);
        TcpListener::bind(address)
            .map_err(|error| Error::config("--port", format!("{address} cannot be had: {error}")))
    }
}

/// What requests call the model.
fn name(what: &RunOrModel, options: &ServeOptions) -> String {
    let folder = match what {
        RunOrModel::Run(folder) => folder.as_path(),
        RunOrModel::Model(config) => Path::new(&config.model.path),
    };
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let own = || folder.file_name().map(|name| name.to_string_lossy().into_owned());
    options.name.clone().or_else(own).unwrap_or_else(|| "gradus".into())
}

/// Makes the model's rotary table as long as sequences may get.
fn cover<T: Float>(trainer: &mut Trainer<T>, options: &ServeOptions) -> Result<usize> {
    let most = match trainer.config.model.path.as_str() {
        // A fresh model has the positions that its run has.
        "" => trainer.model.config.max_positions,
        path => Pretrained::open(path.as_ref())?.config.model.max_positions,
    };
    let context = options.context.unwrap_or(most.min(CONTEXT));
    if context > most {
        let reason = format!("{context} tokens, the model has {most} positions");
        return Err(Error::config("--context", reason));
    }
    if trainer.model.config.max_positions < context {
        trainer.model.cover(context)?;
    }
    Ok(context)
}

/// The template of the folder that the model comes from, if it has one.
fn template(config: &RunConfig) -> Result<Option<ChatTemplate>> {
    match config.model.path.as_str() {
        "" => Ok(None),
        path => ChatTemplate::load(path.as_ref()),
    }
}

fn answer<T: Float>(
    mut trainer: Trainer<T>,
    what: &RunOrModel,
    options: &ServeOptions,
    listener: TcpListener,
    print: &(impl Fn(&str) -> Result<()> + Sync),
) -> Result<()> {
    let sampling = sampling(&trainer, options.temperature)?;
    let context = cover(&mut trainer, options)?;
    let (path, created) = (None, now());
    let own = Arc::new(Named { id: 0, name: name(what, options), path, created });
    let counters = Arc::new(Counters::default());
    let (commands, asked) = channel();
    let (task, vocab) = (trainer.task.clone(), trainer.model.config.vocab);
    line(&format!("  without a word from a request: {}", in_words(&sampling)));
    let address = listener.local_addr().map_err(Error::io("the server's socket"))?;
    let local = address.ip().is_loopback();
    if !local {
        line("  other machines reach this address, and there is no authentication");
    }
    let app = App {
        task: task.clone(),
        template: template(&trainer.config)?,
        defaults: Defaults { sampling, chat: chat_options(), slots: options.slots, context, vocab },
        queue: options.queue,
        max_body: options.max_body,
        read_time: options.read_time,
        timeout: options.timeout,
        loads: local || options.allow_adapters,
        commands,
        counters: counters.clone(),
        names: Mutex::new(vec![own.clone()]),
        next: AtomicUsize::new(1),
        open: Arc::default(),
    };
    let shape = (options.slots, context);
    let engine = Engine::new(&mut trainer.model, task.codec(), own.clone(), shape, counters)?;
    let (stop, stopped) = oneshot::channel();
    let serving = thread::Builder::new().name("http".into());
    let serving = serving.spawn(move || http::serve(listener, Arc::new(app), stopped));
    let serving = serving.map_err(Error::io("the server's thread"))?;
    let told = print(&format!(
        "{} at http://{address}/v1: {context} tokens, {} slots, {} waiting, bodies of {} bytes, {} s an answer\n",
        escaped(&own.name),
        options.slots,
        options.queue,
        options.max_body,
        options.timeout.as_secs()
    ));
    let ran = told.and_then(|()| engine.run(&asked));
    drop((stop, asked));
    match serving.join() {
        Ok(served) => ran.and(served),
        Err(_) => Err(Error::Training { reason: "the thread of the server panicked".into() }),
    }
}
