//! `cmd:COMMAND`: an environment outside the process, asked over its standard input and output.
//!
//! A worker reads one JSON object per line and writes one per line:
//!
//! ```text
//! > {"id":1,"op":"begin","episode":7,"seed":81,"prompt":"…","fields":{…}}
//! < {"id":1}                                             or  {"id":1,"error":"no such world"}
//! > {"id":2,"op":"step","episode":7,"turn":1,"answer":"…","finished":true}
//! < {"id":2,"says":"…","reward":0.1}                     or  {"id":2,"reward":1}: the episode is over
//! > {"op":"end","episode":7}                             no reply
//! ```
//!
//! `reward` is 0 if it is left out; other keys of a reply are ignored. A worker has many episodes and is sent
//! all that is to be said to them at once; it may reply in any order, and must flush after each line. An
//! episode stays with its worker. `error` fails that episode. A worker that ends, writes a line that is no
//! reply to an open request, or leaves one open beyond the time limit is killed with its process group, and
//! its episodes fail; no request is ever sent twice, since the world may have moved. The next episodes begin
//! in a fresh one. What the command is to forget it is told with `end`, when the next episodes begin.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Environment, Reply, Start, Turn};
use crate::reward::command::{CommandOptions, End, Worker, strict_json};
use crate::reward::{excerpt, find_program};
use gradus::error::{Error, Result};

/// How long a reply is waited for before more is sent.
const SLICE: Duration = Duration::from_millis(5);

/// The command with its workers.
pub struct CommandEnvironment {
    argv: Vec<String>,
    options: CommandOptions,
    workers: Vec<Mutex<Slot>>,
    /// Number of the first of the present episodes.
    first: Mutex<u64>,
}

/// A worker, and which of the episodes it was given.
#[derive(Default)]
struct Slot {
    worker: Option<Worker>,
    /// Episodes that it has begun and not been told to forget.
    open: Vec<u64>,
    /// Why it has gone since the present episodes began.
    gone: Option<String>,
    next_id: u64,
}

/// A line of a worker.
#[derive(Deserialize)]
struct Line {
    id: Option<u64>,
    error: Option<Value>,
    says: Option<String>,
    #[serde(default)]
    reward: Option<Value>,
}

type Answered = std::result::Result<Reply, String>;

impl CommandEnvironment {
    /// Runs `argv`, a program and its arguments, without a shell. Nothing is started yet.
    ///
    /// # Errors
    /// `Config` if there is no such program or no worker is asked for.
    pub fn new(argv: Vec<String>, options: CommandOptions) -> Result<CommandEnvironment> {
        let refused = |reason: String| Error::config("env.kind", reason);
        let program = argv.first().ok_or_else(|| refused("`cmd:` names no program".into()))?;
        if find_program(program).is_none() {
            return Err(refused(format!("`cmd:` names `{program}`, and there is no such program")));
        }
        let workers = (0..options.workers.max(1)).map(|_| Mutex::default()).collect();
        Ok(CommandEnvironment { argv, options, workers, first: Mutex::new(0) })
    }

    /// Sends each worker the lines of its episodes, and waits for the replies; `lines` has, for each
    /// request, the number of its episode among the present ones.
    fn exchange(&self, lines: Vec<(usize, Value)>, begins: bool) -> Vec<Answered> {
        let count = self.workers.len();
        let mut shares: Vec<Vec<(usize, Value)>> = (0..count).map(|_| Vec::new()).collect();
        let places: Vec<usize> = lines.iter().map(|(episode, _)| episode % count).collect();
        lines.into_iter().for_each(|(episode, line)| shares[episode % count].push((episode, line)));
        // Threads of their own: they wait for other processes, and would keep rayon's from work.
        let mut served: Vec<VecDeque<Answered>> = thread::scope(|scope| {
            let serve = |(slot, share): (&'_ Mutex<Slot>, Vec<(usize, Value)>)| {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                self.serve(&mut slot, share, begins)
            };
            let threads: Vec<_> = self
                .workers
                .iter()
                .zip(shares)
                .map(|work| thread::Builder::new().spawn_scoped(scope, move || serve(work)))
                .collect();
            let join =
                |thread: std::io::Result<thread::ScopedJoinHandle<'_, VecDeque<Answered>>>| {
                    thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
                };
            threads.into_iter().map(join).collect()
        });
        let unasked = || Err("no thread could be started to ask".to_string());
        places.into_iter().map(|place| served[place].pop_front().unwrap_or_else(unasked)).collect()
    }

    /// One worker's share of the requests, in order.
    fn serve(
        &self,
        slot: &mut Slot,
        share: Vec<(usize, Value)>,
        begins: bool,
    ) -> VecDeque<Answered> {
        let count = share.len();
        let all = |reason: &str| (0..count).map(|_| Err(reason.to_string())).collect();
        if count == 0 {
            return VecDeque::new();
        }
        let mut grace = Duration::ZERO;
        if slot.worker.is_none() {
            if let Some(reason) = slot.gone.as_ref().filter(|_| !begins) {
                return all(reason);
            }
            match Worker::start(&self.argv, &self.options) {
                Ok(worker) => (slot.worker, grace) = (Some(worker), self.options.startup),
                Err(fault) => return all(&fault.reason),
            }
        }
        let Some(mut worker) = slot.worker.take() else { return all("the worker has gone") };
        let time = self.options.timeout + grace;
        let mut talk = Talk { answered: vec![None; count], open: HashMap::new(), time };
        let mut waiting = VecDeque::new();
        for (at, (_, mut line)) in share.into_iter().enumerate() {
            line["id"] = slot.next_id.into();
            waiting.push_back((slot.next_id, at, format!("{line}\n")));
            slot.next_id += 1;
        }
        match talk.run(&mut worker, waiting) {
            Ok(()) => slot.worker = Some(worker),
            Err(end) => {
                let reason = worker.end(end).reason;
                slot.open.clear();
                slot.gone = Some(format!("the environment's worker was lost: {reason}"));
            }
        }
        let lost = slot.gone.clone().unwrap_or_default();
        talk.answered
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(lost.clone())))
            .collect()
    }

    /// Tells the workers to forget their episodes; one that does not listen is replaced.
    fn forget(&self) {
        for slot in &self.workers {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            let open = std::mem::take(&mut slot.open);
            slot.gone = None;
            let Some(mut worker) = slot.worker.take() else { continue };
            let begun = Instant::now();
            let told = |episode: &u64| {
                let line = format!("{}\n", json!({ "op": "end", "episode": episode }));
                while !worker.offer(&line) {
                    if begun.elapsed() > self.options.timeout {
                        return false;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                true
            };
            if open.iter().all(told) && !worker.is_gone() {
                slot.worker = Some(worker);
            }
        }
    }
}

/// Requests of which the replies are awaited.
struct Talk {
    answered: Vec<Option<Answered>>,
    /// Place and time of each request that was sent.
    open: HashMap<u64, (usize, Instant)>,
    /// How long one may be open.
    time: Duration,
}

impl Talk {
    fn run(
        &mut self,
        worker: &mut Worker,
        mut waiting: VecDeque<(u64, usize, String)>,
    ) -> std::result::Result<(), End> {
        while !waiting.is_empty() || !self.open.is_empty() {
            while let Some((id, at, line)) = waiting.front() {
                if !worker.offer(line) {
                    break;
                }
                self.open.insert(*id, (*at, Instant::now()));
                waiting.pop_front();
            }
            let slice = if waiting.is_empty() { 10 * SLICE } else { SLICE };
            if let Some(line) = worker.receive(slice)? {
                self.take(&line).map_err(End::Broken)?;
            }
            if crate::io::interrupt::check().is_err() {
                return Err(End::Ended);
            }
            if self.open.values().any(|(_, sent)| sent.elapsed() > self.time) {
                return Err(End::Silent(format!("{} s", self.time.as_secs_f64())));
            }
        }
        Ok(())
    }

    /// Takes in a line of the worker.
    fn take(&mut self, line: &[u8]) -> std::result::Result<(), String> {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        let wrong = |what: &str| format!("the command wrote `{}`: {what}", excerpt(text));
        let read: Line = match text.starts_with('{') {
            true => serde_json::from_str(&strict_json(text)).map_err(|e| wrong(&e.to_string()))?,
            false => return Err(wrong("not a JSON object")),
        };
        let id = read.id.ok_or_else(|| wrong("no `id`"))?;
        let (at, _) =
            self.open.remove(&id).ok_or_else(|| wrong("no open request has this `id`"))?;
        self.answered[at] = Some(read.reply());
        Ok(())
    }
}

impl Line {
    fn reply(self) -> Answered {
        match (self.error, self.reward) {
            (Some(Value::String(reason)), _) => Err(excerpt(&reason)),
            (Some(reason), _) => Err(excerpt(&reason.to_string())),
            (None, None) => Ok(Reply { says: self.says, reward: 0.0 }),
            (None, Some(reward)) => match reward.as_f64() {
                Some(reward) => Ok(Reply { says: self.says, reward: reward as f32 }),
                None => {
                    Err(format!("`reward` is {}, expected a number", excerpt(&reward.to_string())))
                }
            },
        }
    }
}

impl Environment for CommandEnvironment {
    fn begin(&self, starts: &[Start<'_>]) -> Vec<std::result::Result<(), String>> {
        self.forget();
        let first = {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            *first += 1 << 32;
            *first
        };
        let line = |(i, start): (usize, &Start<'_>)| {
            let episode = first + i as u64;
            let line = json!({
                "op": "begin", "episode": episode, "seed": start.seed,
                "prompt": start.prompt.text, "fields": *start.prompt.fields,
            });
            (i, line)
        };
        let begun = self.exchange(starts.iter().enumerate().map(line).collect(), true);
        for i in (0..starts.len()).filter(|&i| begun[i].is_ok()) {
            let slot = &self.workers[i % self.workers.len()];
            slot.lock().unwrap_or_else(PoisonError::into_inner).open.push(first + i as u64);
        }
        begun.into_iter().map(|begun| begun.map(drop)).collect()
    }

    fn step(&self, turns: &[Turn<'_>]) -> Vec<Answered> {
        let first = *self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let line = |turn: &Turn<'_>| {
            let line = json!({
                "op": "step", "episode": first + turn.episode as u64, "turn": turn.answers.len(),
                "answer": turn.answer(), "finished": turn.finished,
            });
            (turn.episode, line)
        };
        self.exchange(turns.iter().map(line).collect(), false)
    }
}
