//! A command as a reward: workers that stay, asked over their standard input and output.
//!
//! A worker reads one JSON object per line and writes one per line:
//!
//! ```text
//! {"id":7,"prompt":"…","completion":"…","finished":true,"fields":{"answer":"42"}}
//! {"id":7,"score":1.0}          or  {"id":7,"score":null}  or  {"id":7,"error":"no answer"}
//! {"id":8,"score":0.5,"parts":{"style":0.5,"facts":1},"feedback":"the second line is too long"}
//! ```
//!
//! `null` abstains, `error` fails that one sample. `parts` are named numbers that the score is made
//! of, whose means a run writes as metrics; `feedback` is a text about the completion. Both may be
//! left out; other keys of a reply are ignored. A worker has
//! one sample at a time, and must flush after each line. It is started when it is first needed.
//! Ending, silence beyond the time limit, and any line that is not the reply to the open request
//! cost the worker its life (one that ends between two samples is merely replaced): it is killed
//! with its process group, and the sample is asked again of a fresh one after a pause, as often as
//! the options say. Then it is a failed call, whose text ends with what the worker last wrote to its
//! standard error.
//!
//! A first reply may take longer, as a worker may have to load a model: by
//! [`startup`](CommandOptions::startup) from the first worker's start on, and once there has been a
//! reply, by ten times what the slowest first one took. A command that hangs does not get that time for
//! each of its workers anew.
//!
//! Outcomes come in the order of the inputs and, if the command answers each sample by itself, do
//! not depend on the number of workers. When more than half of a batch has failed, or the command
//! has never answered anything and was silent for three samples, the rest is not asked: the batch
//! fails either way. Dropping the reward kills the workers; they are not asked to end, so what they
//! want kept they must write as they go. They and what they started also end with this process,
//! however it ends, where there is a `/bin/sh`.

mod line;
mod startup;
mod worker;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::process::find_program;
use super::{FAILURE_LIMIT, Outcome, Reward, RewardInput, STOPPED};
use crate::io::interrupt;
use gradus::error::{Error, Result};

pub use line::{Reply, parse_reply, parse_score, request_line, strict_json};
use startup::Startup;
use worker::Fault;
pub(crate) use worker::{End, Worker};

/// How a command is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOptions {
    /// Workers, at least 1.
    pub workers: usize,
    /// Longest wait for one reply.
    pub timeout: Duration,
    /// What the first replies may take beyond that, from the first worker's start on.
    pub startup: Duration,
    /// How often a sample is asked again after a worker failed.
    pub retries: u32,
    /// Pause before the first such attempt; each further one waits twice as long.
    pub backoff: Duration,
    /// Longest reply in bytes.
    pub max_line: usize,
}

impl Default for CommandOptions {
    fn default() -> CommandOptions {
        CommandOptions {
            workers: thread::available_parallelism().map_or(1, |n| n.get().min(8)),
            timeout: Duration::from_secs(30),
            startup: Duration::from_secs(60),
            retries: 1,
            backoff: Duration::from_millis(100),
            max_line: 1 << 20,
        }
    }
}

/// Scores completions by asking a command; the protocol is on [this page](self).
pub struct CommandReward {
    argv: Vec<String>,
    options: CommandOptions,
    workers: Vec<Mutex<Option<Worker>>>,
    next_id: AtomicU64,
    startup: Startup,
}

/// Samples without a word from a command that has never said one, after which it is given up.
const SILENT: usize = 3;

impl CommandReward {
    /// A reward that runs `argv`, a program and its arguments, without a shell.
    ///
    /// # Errors
    /// `Config` if there is no such program or no worker is asked for. Nothing is started yet.
    pub fn new(argv: Vec<String>, options: CommandOptions) -> Result<CommandReward> {
        let refused = |reason: String| Error::config("reward", reason);
        let program = argv.first().ok_or_else(|| refused("`cmd:` names no program".into()))?;
        if find_program(program).is_none() {
            return Err(refused(format!("`cmd:` names `{program}`, and there is no such program")));
        }
        if options.workers == 0 {
            return Err(refused("0 workers, expected at least 1".into()));
        }
        let workers = (0..options.workers).map(|_| Mutex::default()).collect();
        let startup = Startup::new(options.startup);
        Ok(CommandReward { argv, options, workers, next_id: AtomicU64::new(0), startup })
    }

    /// Takes samples of `batch` until none is left. Outcomes with their places.
    fn serve(&self, slot: &Mutex<Option<Worker>>, batch: &Batch<'_>) -> Vec<(usize, Outcome)> {
        // A worker that was being asked when its thread panicked is not in the slot.
        let mut worker = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcomes = Vec::new();
        while let Some(i) = batch.take() {
            let outcome = match self.gives_up(batch) {
                Some(reason) => Err(reason),
                None => self.ask(&mut worker, batch, i),
            };
            if let Err(reason) = &outcome {
                batch.failed.fetch_add(1, Ordering::Relaxed);
                batch.cause.get_or_init(|| reason.clone());
            }
            outcomes.push((i, outcome));
        }
        outcomes
    }

    /// Why no further sample of `batch` is asked about.
    fn gives_up(&self, batch: &Batch<'_>) -> Option<String> {
        if interrupt::check().is_err() {
            return Some(STOPPED.into());
        }
        let cause = batch.cause.get()?;
        if batch.is_lost() {
            return Some(format!("not asked: more than half of the batch had failed: {cause}"));
        }
        let mute = !self.startup.has_answered() && batch.silent.load(Ordering::Relaxed) >= SILENT;
        mute.then(|| format!("not asked: the command has never answered: {cause}"))
    }

    fn ask(&self, slot: &mut Option<Worker>, batch: &Batch<'_>, i: usize) -> Outcome {
        let id = batch.first_id + i as u64;
        let line = request_line(id, &batch.inputs[i]);
        let (mut attempt, mut first) = (0, None);
        loop {
            let fault = match self.attempt(slot, id, &line) {
                Ok(Reply::Outcome(outcome)) => return Ok(outcome),
                // What the command says of a sample is its last word: a worker that can do better
                // by trying again does so itself.
                Ok(Reply::Refused(reason)) => return Err(reason),
                Err(fault) => fault,
            };
            if interrupt::check().is_err() {
                return Err(STOPPED.into());
            }
            // The first try had the longest time, and so the most to say.
            let fault = first.get_or_insert(fault);
            if attempt == self.options.retries {
                batch.silent.fetch_add(fault.silent as usize, Ordering::Relaxed);
                return Err(match fault.silent && !self.startup.has_answered() {
                    true => format!("{}; {}", fault.reason, self.startup),
                    false => fault.reason.clone(),
                });
            }
            interrupt::pause(self.options.backoff * 2u32.saturating_pow(attempt));
            attempt += 1;
        }
    }

    /// One try. A worker that fails does not return to its slot.
    fn attempt(
        &self,
        slot: &mut Option<Worker>,
        id: u64,
        line: &str,
    ) -> std::result::Result<Reply, Fault> {
        let alive = slot.take_if(|worker| !worker.is_gone());
        let (mut worker, fresh) = match alive {
            Some(worker) => (worker, None),
            None => {
                self.startup.begin();
                (Worker::start(&self.argv, &self.options)?, Some(Instant::now()))
            }
        };
        let grace = fresh.map_or(Duration::ZERO, |_| self.startup.grace());
        match worker.ask(id, line, [self.options.timeout, grace]) {
            Ok(reply) => {
                self.startup.answered(fresh.map(|begun| begun.elapsed()));
                *slot = Some(worker);
                Ok(reply)
            }
            Err(end) => Err(worker.end(end)),
        }
    }
}

/// The samples of one call.
struct Batch<'a> {
    inputs: &'a [RewardInput<'a>],
    first_id: u64,
    next: AtomicUsize,
    failed: AtomicUsize,
    /// Failures that are silence.
    silent: AtomicUsize,
    /// The first failure.
    cause: OnceLock<String>,
}

impl Batch<'_> {
    fn take(&self) -> Option<usize> {
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        (i < self.inputs.len()).then_some(i)
    }

    /// Whether [`super::score`] will refuse the batch whatever is still to come.
    fn is_lost(&self) -> bool {
        self.failed.load(Ordering::Relaxed) as f64 > FAILURE_LIMIT * self.inputs.len() as f64
    }
}

impl Reward for CommandReward {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        let batch = Batch {
            inputs,
            first_id: self.next_id.fetch_add(inputs.len() as u64, Ordering::Relaxed),
            next: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            silent: AtomicUsize::new(0),
            cause: OnceLock::new(),
        };
        let batch = &batch;
        // Threads of their own: they wait for other processes, and would keep rayon's from work.
        let served: Vec<Vec<(usize, Outcome)>> = thread::scope(|scope| {
            let slots = self.workers.iter().take(inputs.len());
            let threads: Vec<_> = slots
                .map(|slot| thread::Builder::new().spawn_scoped(scope, || self.serve(slot, batch)))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            threads.into_iter().flatten().map(join).collect()
        });
        let mut outcomes: Vec<Outcome> =
            inputs.iter().map(|_| Err("no thread could be started to ask".into())).collect();
        served.into_iter().flatten().for_each(|(i, outcome)| outcomes[i] = outcome);
        outcomes
    }
}
