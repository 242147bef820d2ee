//! Rollouts with continuous batching: a sequence takes a cache slot, is decoded together with all
//! others, and leaves when it is done; the next one takes its slot in the same step.
//!
//! A prompt is prefilled once; its samples go on from its pages of the cache. On the CPU prompts are
//! split over the threads. Rows do not depend on the batch, so neither the split nor the number of
//! slots changes a token or a log-prob.

mod graph;

use std::collections::VecDeque;
use std::sync::Arc;

use rayon::prelude::*;

use crate::io::interrupt;
use crate::model::{Decoder, KvCache, Packed};
use crate::train::rollout::graph::{Decode, Draw, Running, draw};
use crate::train::update::step::gather_rows;
use gradus::device::{Buffer, Device};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{CopyRows, copy_rows};
use gradus::rng::{Purpose, Rng};

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; > 0.
    pub temperature: f64,
    /// Keeps the k most likely tokens; 0 = all.
    pub top_k: i64,
    /// Keeps the smallest set with at least this mass; 1 = all.
    pub top_p: f64,
    /// Keeps tokens at least this likely relative to the top one; 0 = all.
    pub min_p: f64,
    /// Takes the most likely token.
    pub greedy: bool,
    /// Longest completion, with its end.
    pub max_new_tokens: usize,
    /// The tokens that end a sequence.
    pub stops: Arc<[i32]>,
    /// Sequences decoded together: per thread on the CPU, in all on a GPU.
    pub slots: usize,
}

/// Which random stream a rollout draws from: token t of sample s of prompt p uses draw t of the
/// stream (seed, purpose, step, p, s).
#[derive(Clone, Copy, Debug)]
pub struct RolloutKey {
    /// The run's seed.
    pub seed: u64,
    /// Training or evaluation.
    pub purpose: Purpose,
    /// Step of the run.
    pub step: u64,
}

/// One sampled completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rollout {
    /// Tokens, with the end of sequence if it was reached.
    pub tokens: Vec<i32>,
    /// Log-prob of each token under the full vocabulary at the sampling temperature.
    pub logp: Vec<f32>,
    /// Entropy of each token's distribution, in nats.
    pub entropy: Vec<f32>,
    /// Whether the end of sequence, or a text that ends one, was reached.
    pub finished: bool,
}

/// Weights beyond this many bytes are in no core's cache: all threads then go through them together,
/// once a step, instead of each for its own prompts.
const CACHE: u64 = 32 << 20;

/// Tokens of one prefill call.
const PREFILL: usize = 8192;

/// `samples` completions of each prompt, in order.
///
/// # Errors
/// `InvalidArgument` for an empty prompt or sequences longer than the model's positions; what the
/// model and the device say; `Interrupted` between two tokens, once a signal asks for a stop.
pub fn rollout<T: Float>(
    model: &Decoder<T>,
    prompts: &[Vec<i32>],
    samples: usize,
    sampling: &Sampling,
    key: RolloutKey,
) -> Result<Vec<Vec<Rollout>>> {
    rollout_with(&mut None, model, prompts, samples, sampling, key, Hooks::default())
}

/// Called with every token as it is drawn: (prompt, sample, token).
pub type Watch<'a> = &'a (dyn Fn(usize, usize, i32) + Sync);

/// Asked after every token that is no stop whether the tokens so far end a completion.
pub type Ends<'a> = &'a (dyn Fn(&[i32]) -> Result<bool> + Sync);

/// What is called while tokens are drawn.
#[derive(Clone, Copy, Default)]
pub struct Hooks<'a> {
    /// Sees them.
    pub watch: Option<Watch<'a>>,
    /// Ends a completion, beside the stops.
    pub ends: Option<Ends<'a>>,
}

/// The same on a sampler that earlier calls left: on a GPU its memory and its recorded steps serve
/// the next call as well, if they fit.
pub fn rollout_with<T: Float>(
    sampler: &mut Option<Sampler<T>>,
    model: &Decoder<T>,
    prompts: &[Vec<i32>],
    samples: usize,
    sampling: &Sampling,
    key: RolloutKey,
    hooks: Hooks<'_>,
) -> Result<Vec<Vec<Rollout>>> {
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        let got = format!("an empty prompt at index {empty}");
        return Err(Error::invalid("rollout", "prompts", got, "at least one token each"));
    }
    let lane = |first_prompt, prompts, sampler: &mut Option<Sampler<T>>, sampling: &Sampling| {
        let work = Work { model, prompts, first_prompt, samples, sampling, key, hooks };
        let mut fitting = Sampler::fit(sampler.take(), &work)?;
        let done = Lane::new(work, &mut fitting).run()?;
        *sampler = Some(fitting);
        Ok(done)
    };
    if let Device::Gpu(_) = model.device {
        return lane(0, prompts, sampler, sampling);
    }
    let threads = rayon::current_num_threads();
    if model.weight_bytes() > CACHE {
        let slots = sampling.slots * threads;
        return lane(0, prompts, &mut None, &Sampling { slots, ..sampling.clone() });
    }
    let lanes = threads.min(prompts.len()).max(1);
    let per_lane = prompts.len().div_ceil(lanes).max(1);
    let lanes: Vec<Result<Vec<Vec<Rollout>>>> = prompts
        .par_chunks(per_lane)
        .enumerate()
        .map(|(i, prompts)| lane(i * per_lane, prompts, &mut None, sampling))
        .collect();
    let mut all = Vec::with_capacity(prompts.len());
    for lane in lanes {
        all.extend(lane?);
    }
    Ok(all)
}

/// One thread's share of the prompts, or all of them on a GPU.
struct Work<'a, T> {
    model: &'a Decoder<T>,
    prompts: &'a [Vec<i32>],
    first_prompt: usize,
    samples: usize,
    sampling: &'a Sampling,
    key: RolloutKey,
    hooks: Hooks<'a>,
}

/// What rollouts of one shape keep from one call to the next. Slots 0 .. prompts of the cache hold
/// the prompts, the others the running samples.
pub struct Sampler<T: Float> {
    prompts: usize,
    slots: usize,
    cache: KvCache<T>,
    /// `[prompts, vocab]` logits behind each prompt.
    first_logits: Buffer<T>,
    decode: Decode,
    /// What recorded steps were made for.
    sampling: Sampling,
    weights: u64,
}

impl<T: Float> Sampler<T> {
    /// `old`, if it is large enough, or a new one.
    fn fit(old: Option<Sampler<T>>, w: &Work<'_, T>) -> Result<Sampler<T>> {
        let longest = w.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let total = longest + w.sampling.max_new_tokens;
        if total > w.model.config.max_positions {
            let got = format!("{longest} prompt + {} new tokens", w.sampling.max_new_tokens);
            let expected = format!("at most {} positions", w.model.config.max_positions);
            return Err(Error::invalid("rollout", "max_new_tokens", got, expected));
        }
        let prompts = w.prompts.len();
        let slots = w.sampling.slots.min(prompts * w.samples).max(1);
        let (weights, sampling) = (w.model.weight_addresses(), w.sampling.clone());
        if let Some(mut old) = old
            && old.prompts >= prompts
            && old.slots >= slots
            && old.cache.max_len() >= total
        {
            if old.weights != weights || old.sampling != sampling {
                (old.weights, old.sampling, old.decode) = (weights, sampling, Decode::default());
            }
            (0..old.cache.slots()).for_each(|slot| old.cache.clear(slot));
            return Ok(old);
        }
        Ok(Sampler {
            prompts,
            slots,
            cache: KvCache::new(&w.model.config, &w.model.device, prompts + slots, total)?,
            first_logits: Buffer::new(&w.model.device, prompts * w.model.config.vocab)?,
            decode: Decode::default(),
            sampling,
            weights,
        })
    }
}

/// A sequence being decoded.
struct Active {
    prompt: usize,
    sample: usize,
    slot: usize,
    rng: Rng,
}

/// A share of the prompts on its way.
struct Lane<'a, T: Float> {
    work: Work<'a, T>,
    sampler: &'a mut Sampler<T>,
    waiting: VecDeque<(usize, usize)>,
    free: Vec<usize>,
    active: Vec<Active>,
    done: Vec<Vec<Rollout>>,
}

impl<'a, T: Float> Lane<'a, T> {
    fn new(work: Work<'a, T>, sampler: &'a mut Sampler<T>) -> Lane<'a, T> {
        let (prompts, samples) = (work.prompts.len(), work.samples);
        let each = |p: usize| (0..samples).map(move |s| (p, s));
        let (first, slots) = (sampler.prompts, work.sampling.slots.min(sampler.slots));
        Lane {
            work,
            sampler,
            waiting: (0..prompts).flat_map(each).collect(),
            free: (first..first + slots).rev().collect(),
            active: Vec::new(),
            done: vec![vec![Rollout::default(); samples]; prompts],
        }
    }

    fn run(mut self) -> Result<Vec<Vec<Rollout>>> {
        self.prefill()?;
        while !self.waiting.is_empty() || !self.active.is_empty() {
            interrupt::check()?;
            while !self.waiting.is_empty() && !self.free.is_empty() {
                self.admit()?;
            }
            if !self.active.is_empty() {
                let drawn = self.step()?;
                self.take(0, drawn)?;
            }
        }
        Ok(self.done)
    }

    /// Runs all prompts through the model, so many tokens at a time, and keeps the logits behind
    /// each prompt's last token.
    fn prefill(&mut self) -> Result<()> {
        let (model, prompts) = (self.work.model, self.work.prompts);
        let (allocator, d, vocab) = (&model.allocator, model.config.hidden, model.config.vocab);
        let mut first = 0;
        while first < prompts.len() {
            interrupt::check()?;
            let mut tokens = 0;
            let fits = |prompt: &&Vec<i32>| {
                tokens += prompt.len();
                tokens <= PREFILL
            };
            let count = prompts[first..].iter().take_while(fits).count().max(1);
            let packed = Packed::of(prompts[first..first + count].iter().map(Vec::as_slice));
            let slots: Vec<usize> = (first..first + count).collect();
            let cache = &mut self.sampler.cache;
            let batch = cache.batch(allocator, &packed, &slots)?;
            let hidden = model.forward(&batch, true, Some(cache), None)?;
            let last: Vec<i32> = packed.cu_seqlens[1..].iter().map(|&end| end as i32 - 1).collect();
            let last = gather_rows(model, allocator, &hidden, d, &last)?;
            let logits = model.logits(allocator, &last)?;
            let to: Vec<i32> = slots.iter().map(|&slot| slot as i32).collect();
            let to = allocator.copy_of(&to)?;
            let (x, y) = (logits.rows(vocab)?, self.sampler.first_logits.rows_mut(vocab)?);
            copy_rows(&model.device, CopyRows { x, from_rows: None, to_rows: Some(to.all()), y })?;
            first += count;
        }
        Ok(())
    }

    /// Gives free slots to waiting samples and draws their first tokens.
    fn admit(&mut self) -> Result<()> {
        let (begin, count) = (self.active.len(), self.free.len().min(self.waiting.len()));
        let (mut pairs, mut rows) = (Vec::new(), Vec::new());
        for (prompt, sample) in self.waiting.drain(..count) {
            let Some(slot) = self.free.pop() else { break };
            pairs.push((slot, prompt));
            rows.push(prompt as i32);
            let (global, key) = ((self.work.first_prompt + prompt) as u32, self.work.key);
            // The step's high bits share a word with the sample: 2^16 samples, 2^48 steps.
            let words = [key.step as u32, global, sample as u32 | ((key.step >> 32) as u32) << 16];
            let rng = Rng::new(key.seed, key.purpose, words);
            self.active.push(Active { prompt, sample, slot, rng });
        }
        let model = self.work.model;
        self.sampler.cache.fork(&model.allocator, &pairs)?;
        let (all, vocab) = (&self.sampler.first_logits, model.config.vocab);
        let logits = gather_rows(model, &model.allocator, all, vocab, &rows)?;
        let uniform = self.uniform(begin);
        let drawn = draw(model, &model.allocator, self.work.sampling, &logits, &uniform)?;
        self.take(begin, drawn)
    }

    /// One more token of every active sequence.
    fn step(&mut self) -> Result<Draw> {
        let mut packed = Packed::new();
        let slots: Vec<usize> = self.active.iter().map(|a| a.slot).collect();
        for a in &self.active {
            let last = self.done[a.prompt][a.sample].tokens.last().copied().unwrap_or(0);
            packed.push(&[last], self.sampler.cache.len(a.slot));
        }
        let uniform = self.uniform(0);
        let running = Running { packed: &packed, slots: &slots, uniform: &uniform };
        let Sampler { decode, cache, slots: most, .. } = &mut *self.sampler;
        decode.step(self.work.model, cache, self.work.sampling, running, *most)
    }

    /// The next uniform draw of the active sequences from `begin` on.
    fn uniform(&self, begin: usize) -> Vec<f64> {
        let at = |a: &Active| self.done[a.prompt][a.sample].tokens.len() as u32;
        self.active[begin..].iter().map(|a| a.rng.uniform_at(at(a))).collect()
    }

    /// Appends the tokens drawn for the active sequences from `begin` on; those that are done give
    /// their slots back.
    fn take(&mut self, begin: usize, drawn: Draw) -> Result<()> {
        let (max_new, stops) = (self.work.sampling.max_new_tokens, &self.work.sampling.stops);
        let Draw { token, logp, entropy } = drawn;
        let each = token.into_iter().zip(logp).zip(entropy);
        for (a, ((token, logp), entropy)) in self.active[begin..].iter().zip(each) {
            let rollout = &mut self.done[a.prompt][a.sample];
            rollout.tokens.push(token);
            rollout.logp.push(logp);
            rollout.entropy.push(entropy);
            rollout.finished = stops.contains(&token);
            if let (Some(ends), false) = (self.work.hooks.ends, rollout.finished) {
                rollout.finished = ends(&rollout.tokens)?;
            }
            if let Some(watch) = self.work.hooks.watch {
                watch(self.work.first_prompt + a.prompt, a.sample, token);
            }
        }
        let (cache, done, free) = (&mut self.sampler.cache, &self.done, &mut self.free);
        self.active.retain(|a| {
            let rollout = &done[a.prompt][a.sample];
            let stays = !rollout.finished && rollout.tokens.len() < max_new;
            if !stays {
                cache.clear(a.slot);
                free.push(a.slot);
            }
            stays
        });
        Ok(())
    }
}
