//! The thread that has the model: requests take slots of the cache as they come, all running answers get
//! their next token together, and one that is done leaves room for the next.
//!
//! Rows do not depend on the batch, so that an answer has the bits that it has alone. Answers on one adapter
//! make a batch; a prompt is read in chunks between the tokens of the others.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::adapters::{Adapters, Named};
use super::running::{Drawn, Running};
use crate::io::interrupt;
use crate::model::{Decoder, KvCache, PAGE, Packed};
use crate::pretrained::Adapter;
use crate::text::Codec;
use crate::train::rollout::{RolloutKey, Sampling, draw};
use crate::train::update::step::gather_rows;
use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{GatherK, LogitTransform, TopK, gather_k, top_k};
use gradus::rng::Purpose;

/// Tokens of a prompt that are read between two tokens of the running answers.
const CHUNK: usize = 256;

/// How long an idle engine is deaf to signals.
const IDLE: Duration = Duration::from_millis(20);

/// A prompt with what is asked about it.
pub(super) struct Job {
    /// Under which model.
    pub named: Arc<Named>,
    /// The prompt.
    pub ids: Vec<i32>,
    /// Number of the first choice.
    pub first: usize,
    /// Number of choices, which draw from streams of their own.
    pub choices: usize,
    /// How tokens are drawn; its lengths and stops are not read.
    pub sampling: Sampling,
    pub seed: u64,
    /// Place of the prompt in its request, which names the streams.
    pub prompt: u32,
    /// Most tokens of a choice.
    pub allowed: usize,
    /// Tokens that end a choice.
    pub stops: Vec<i32>,
    /// Texts that end a choice.
    pub stop: Vec<String>,
    /// Special tokens are spelled out in the text.
    pub spelled: bool,
    /// Likeliest tokens that are told of each place.
    pub top: usize,
    /// Who asked. A closed channel is one who has gone.
    pub events: UnboundedSender<Event>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// A stop token, or a text that ends answers.
    Stop,
    /// The limit on its tokens.
    Length,
}

/// What becomes known of a job.
#[derive(Debug)]
pub(super) enum Event {
    /// A token, and the text that it completes.
    Token { choice: usize, id: i32, logp: f32, top: Vec<(i32, f32)>, text: String },
    /// A choice is done.
    End { choice: usize, finish: Finish },
    /// The job failed.
    Failed { status: u16, reason: String },
}

/// What the engine is asked.
pub(super) enum Command {
    Answer(Box<Job>),
    /// An adapter to take in. The reply says whether it fits.
    Load {
        named: Arc<Named>,
        adapter: Box<Adapter>,
        reply: oneshot::Sender<Result<()>>,
    },
}

/// What is going on.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Prompts that wait for slots.
    pub waiting: AtomicUsize,
    /// Choices that have a slot.
    pub running: AtomicUsize,
    /// Tokens drawn.
    pub generated: AtomicU64,
    /// Tokens of prompts that were read.
    pub read: AtomicU64,
}

/// A prompt on its way through the model.
struct Reading {
    job: Arc<Job>,
    slots: Vec<usize>,
    at: usize,
}

/// The model with all that runs on it.
pub(super) struct Engine<'a, T: Float> {
    model: &'a mut Decoder<T>,
    codec: &'a dyn Codec,
    cache: KvCache<T>,
    free: Vec<usize>,
    waiting: VecDeque<Job>,
    reading: VecDeque<Reading>,
    running: Vec<Running>,
    adapters: Adapters<T>,
    counters: Arc<Counters>,
}

impl<'a, T: Float> Engine<'a, T> {
    /// An engine with `slots` places for answers of up to `context` tokens with their prompts. The cache has
    /// room for all of them.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn new(
        model: &'a mut Decoder<T>,
        codec: &'a dyn Codec,
        own: Arc<Named>,
        (slots, context): (usize, usize),
        counters: Arc<Counters>,
    ) -> Result<Engine<'a, T>> {
        let pages = slots * context.div_ceil(PAGE);
        let cache = KvCache::with_pages(&model.config, &model.device, slots, context, pages)?;
        Ok(Engine {
            adapters: Adapters::of(model, own),
            model,
            codec,
            cache,
            free: (0..slots).rev().collect(),
            waiting: VecDeque::new(),
            reading: VecDeque::new(),
            running: Vec::new(),
            counters,
        })
    }

    /// Serves until a signal asks for a stop, or nobody is left who could ask for anything.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn run(mut self, commands: &Receiver<Command>) -> Result<()> {
        loop {
            if let Err(stopped) = interrupt::check() {
                self.fail_all(503, "the server is stopping");
                return Err(stopped);
            }
            if !self.receive(commands) {
                return Ok(());
            }
            self.forget_gone();
            self.admit();
            self.read_on();
            self.decode();
            self.adapters.drop_unused(self.model);
            self.counters.running.store(self.running.len(), Ordering::Relaxed);
        }
    }

    /// Takes what was asked; waits a moment if there is nothing else to do. False once nobody asks any more.
    fn receive(&mut self, commands: &Receiver<Command>) -> bool {
        let busy = !(self.waiting.is_empty() && self.reading.is_empty() && self.running.is_empty());
        if !busy {
            match commands.recv_timeout(IDLE) {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return busy,
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Answer(job) => self.waiting.push_back(*job),
            Command::Load { named, adapter, reply } => {
                let loaded = self.adapters.load(self.model, named, &adapter);
                // Whoever asked may have gone; the adapter then goes with its name.
                let _ = reply.send(loaded);
            }
        }
    }

    /// Frees what clients that have gone away hold.
    fn forget_gone(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|job| !job.events.is_closed());
        self.counters.waiting.fetch_sub(before - self.waiting.len(), Ordering::Relaxed);
        let (cache, free) = (&mut self.cache, &mut self.free);
        let mut clear = |slot: usize| {
            cache.clear(slot);
            free.push(slot);
        };
        self.reading.retain(|reading| {
            let stays = !reading.job.events.is_closed();
            if !stays {
                reading.slots.iter().copied().for_each(&mut clear);
            }
            stays
        });
        self.running.retain(|running| {
            let stays = !running.job.events.is_closed();
            if !stays {
                clear(running.slot);
            }
            stays
        });
    }

    /// Gives slots to the jobs that came first, as far as there are enough for all choices of one.
    fn admit(&mut self) {
        while self.waiting.front().is_some_and(|job| job.choices <= self.free.len()) {
            let Some(job) = self.waiting.pop_front() else { break };
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            let slots = self.free.split_off(self.free.len() - job.choices);
            self.reading.push_back(Reading { job: Arc::new(job), slots, at: 0 });
        }
    }

    /// The next chunk of the prompt that came first.
    fn read_on(&mut self) {
        let Some(mut reading) = self.reading.pop_front() else { return };
        match self.read_chunk(&mut reading) {
            Ok(true) => {}
            Ok(false) => self.reading.push_front(reading),
            Err(error) => {
                fail(&reading.job, 500, &error.to_string());
                self.running.retain(|running| !Arc::ptr_eq(&running.job, &reading.job));
                self.release(reading.slots);
            }
        }
    }

    fn release(&mut self, slots: Vec<usize>) {
        for slot in slots {
            self.cache.clear(slot);
            self.free.push(slot);
        }
    }

    /// Whether the prompt is read to its end; its choices then have their first tokens.
    fn read_chunk(&mut self, reading: &mut Reading) -> Result<bool> {
        let (job, slot) = (reading.job.clone(), reading.slots[0]);
        let end = (reading.at + CHUNK).min(job.ids.len());
        self.adapters.wear(self.model, job.named.id);
        let mut packed = Packed::new();
        packed.push(&job.ids[reading.at..end], reading.at);
        let allocator = self.model.allocator.clone();
        let batch = self.cache.batch(&allocator, &packed, &[slot])?;
        let hidden = self.model.forward(&batch, true, Some(&mut self.cache), None)?;
        self.counters.read.fetch_add((end - reading.at) as u64, Ordering::Relaxed);
        let last = (end - reading.at - 1) as i32;
        reading.at = end;
        if end < job.ids.len() {
            return Ok(false);
        }
        let width = self.model.config.hidden;
        let last = gather_rows(self.model, &allocator, &hidden, width, &[last])?;
        let logits = self.model.logits(&allocator, &last)?;
        let (vocab, same) = (self.model.config.vocab, vec![0; job.choices]);
        let logits = gather_rows(self.model, &allocator, &logits, vocab, &same)?;
        let others: Vec<_> = reading.slots[1..].iter().map(|&other| (other, slot)).collect();
        self.cache.fork(&allocator, &others)?;
        let begin = self.running.len();
        let key = RolloutKey { seed: job.seed, purpose: Purpose::Sample, step: 0 };
        for (choice, &slot) in reading.slots.iter().enumerate() {
            let rng = key.stream(job.prompt, choice as u32);
            self.running.push(Running::new(job.clone(), choice, slot, rng));
        }
        let group: Vec<usize> = (begin..self.running.len()).collect();
        self.draw_rows(&logits, &group)?;
        self.retire();
        Ok(true)
    }

    /// One more token of every running choice.
    fn decode(&mut self) {
        let mut ids: Vec<u64> = self.running.iter().map(|running| running.job.named.id).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let of = |&i: &usize| self.running[i].job.named.id == id;
            let group: Vec<usize> = (0..self.running.len()).filter(of).collect();
            if let Err(error) = self.step(id, &group) {
                for &i in &group {
                    fail(&self.running[i].job, 500, &error.to_string());
                    self.running[i].done = true;
                }
            }
        }
        self.retire();
    }

    fn step(&mut self, id: u64, group: &[usize]) -> Result<()> {
        self.adapters.wear(self.model, id);
        let (mut packed, mut slots) = (Packed::new(), Vec::new());
        for running in group.iter().map(|&i| &self.running[i]) {
            packed.push(&[running.last], self.cache.len(running.slot));
            slots.push(running.slot);
        }
        let allocator = self.model.allocator.clone();
        let batch = self.cache.batch(&allocator, &packed, &slots)?;
        let hidden = self.model.forward(&batch, true, Some(&mut self.cache), None)?;
        let logits = self.model.logits(&allocator, &hidden)?;
        self.draw_rows(&logits, group)
    }

    /// Draws from row r of `logits` for running choice `group[r]`: those that draw in the same way at once.
    fn draw_rows(&mut self, logits: &Buffer<T>, group: &[usize]) -> Result<()> {
        let (allocator, vocab) = (self.model.allocator.clone(), self.model.config.vocab);
        let mut rest: Vec<usize> = (0..group.len()).collect();
        while let Some(&first) = rest.first() {
            let first = self.running[group[first]].job.clone();
            let alike = |row: &usize| self.running[group[*row]].job.sampling == first.sampling;
            let (rows, others): (Vec<usize>, Vec<usize>) = rest.into_iter().partition(alike);
            rest = others;
            let from: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            let part = match rows.len() == group.len() {
                true => None,
                false => Some(gather_rows(self.model, &allocator, logits, vocab, &from)?),
            };
            let part = part.as_ref().unwrap_or(logits);
            let own: Vec<usize> = rows.iter().map(|&row| group[row]).collect();
            let uniform: Vec<f64> = own.iter().map(|&i| self.running[i].uniform()).collect();
            let drawn = draw(self.model, &allocator, &first.sampling, part, &uniform)?;
            let most = own.iter().map(|&i| self.running[i].job.top).max().unwrap_or(0);
            let mut tops = likeliest(self.model, part, most, first.sampling.temperature)?;
            for (row, &i) in own.iter().enumerate() {
                let top = tops.get_mut(row).map(std::mem::take).unwrap_or_default();
                let drawn = Drawn { id: drawn.token[row], logp: drawn.logp[row], top };
                self.running[i].take(self.codec, drawn);
            }
            self.counters.generated.fetch_add(own.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes the slots of choices that are done.
    fn retire(&mut self) {
        let done: Vec<usize> =
            self.running.iter().filter(|r| r.done).map(|running| running.slot).collect();
        self.running.retain(|running| !running.done);
        self.release(done);
    }

    fn fail_all(&mut self, status: u16, reason: &str) {
        self.waiting.iter().for_each(|job| fail(job, status, reason));
        self.reading.iter().for_each(|reading| fail(&reading.job, status, reason));
        self.running.iter().for_each(|running| fail(&running.job, status, reason));
    }
}

/// Says that `job` failed; whoever asked may have gone.
fn fail(job: &Job, status: u16, reason: &str) {
    let _ = job.events.send(Event::Failed { status, reason: reason.into() });
}

/// The `k` likeliest tokens of each row with their log-probs, the likeliest first; nothing for 0.
fn likeliest<T: Float>(
    model: &Decoder<T>,
    logits: &Buffer<T>,
    k: usize,
    temperature: f64,
) -> Result<Vec<Vec<(i32, f32)>>> {
    if k == 0 {
        return Ok(Vec::new());
    }
    let (allocator, vocab) = (&model.allocator, model.config.vocab);
    let (rows, k) = (logits.len() / vocab, k.min(vocab));
    let mut ids: Buffer<i32> = allocator.alloc(rows * k)?;
    let mut logp: Buffer<f32> = allocator.alloc(rows * k)?;
    let columns = vocab as i64;
    let args = TopK { logits: logits.rows(vocab)?, vocab: columns, ids: ids.rows_mut(k)? };
    top_k(&model.device, args)?;
    let args = GatherK {
        logits: logits.rows(vocab)?,
        ids: ids.rows(k)?,
        vocab: columns,
        transform: LogitTransform { temperature, ..Default::default() },
        renormalize: false,
        logp: logp.rows_mut(k)?,
        mass: None,
    };
    gather_k(&model.device, args)?;
    let (ids, logp) = (ids.to_host()?, logp.to_host()?);
    let row = |(ids, logp): (&[i32], &[f32])| {
        let mut row: Vec<(i32, f32)> = ids.iter().copied().zip(logp.iter().copied()).collect();
        row.sort_by(|a, b| b.1.total_cmp(&a.1));
        row
    };
    Ok(ids.chunks(k).zip(logp.chunks(k)).map(row).collect())
}
