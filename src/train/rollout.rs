//! Rollouts with continuous batching: a sequence takes a cache slot, is decoded together with all
//! others, and leaves when it is done; the next one takes its slot in the same step.
//!
//! A prompt is prefilled once; its samples go on from its pages of the cache. On the CPU prompts are
//! split over the threads. Rows do not depend on the batch, so neither the split nor the number of
//! slots changes a token or a log-prob.

use std::collections::VecDeque;

use rayon::prelude::*;

use crate::device::{Device, Memory};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::model::{Decoder, KvCache, Packed};
use crate::rng::{Purpose, Rng};
use crate::train::decode::{Decode, Draw};
use crate::train::step::gather_rows;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// The token that ends a sequence.
    pub eos: i32,
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
    /// Whether the end of sequence was reached.
    pub finished: bool,
}

/// Tokens of one prefill call.
const PREFILL: usize = 8192;

/// `samples` completions of each prompt, in order.
pub fn rollout<T: Float>(
    model: &Decoder<T>,
    prompts: &[Vec<i32>],
    samples: usize,
    sampling: &Sampling,
    key: RolloutKey,
) -> Result<Vec<Vec<Rollout>>> {
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        let got = format!("an empty prompt at index {empty}");
        return Err(Error::invalid("rollout", "prompts", got, "at least one token each"));
    }
    let lanes = match model.device {
        Device::Cpu => rayon::current_num_threads().min(prompts.len()).max(1),
        Device::Gpu(_) => 1,
    };
    let per_lane = prompts.len().div_ceil(lanes).max(1);
    let lanes: Vec<Result<Vec<Vec<Rollout>>>> = prompts
        .par_chunks(per_lane)
        .enumerate()
        .map(|(i, prompts)| Lane::new(model, prompts, i * per_lane, samples, sampling, key)?.run())
        .collect();
    let mut all = Vec::with_capacity(prompts.len());
    for lane in lanes {
        all.extend(lane?);
    }
    Ok(all)
}

/// A sequence being decoded.
struct Active {
    prompt: usize,
    sample: usize,
    slot: usize,
    rng: Rng,
}

/// One thread's share of the prompts, or all of them on a GPU. Slots 0 .. prompts of the cache hold
/// the prompts, the others the running samples.
struct Lane<'a, T: Float> {
    model: &'a Decoder<T>,
    prompts: &'a [Vec<i32>],
    first_prompt: usize,
    sampling: &'a Sampling,
    key: RolloutKey,
    cache: KvCache<T>,
    decode: Decode<'a, T>,
    /// `[prompts, vocab]` logits behind each prompt.
    first_logits: Memory<T>,
    waiting: VecDeque<(usize, usize)>,
    free: Vec<usize>,
    active: Vec<Active>,
    done: Vec<Vec<Rollout>>,
}

impl<'a, T: Float> Lane<'a, T> {
    fn new(
        model: &'a Decoder<T>,
        prompts: &'a [Vec<i32>],
        first_prompt: usize,
        samples: usize,
        sampling: &'a Sampling,
        key: RolloutKey,
    ) -> Result<Lane<'a, T>> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let total = longest + sampling.max_new_tokens;
        if total > model.config.max_positions {
            let got = format!("{longest} prompt + {} new tokens", sampling.max_new_tokens);
            let expected = format!("at most {} positions", model.config.max_positions);
            return Err(Error::invalid("rollout", "max_new_tokens", got, expected));
        }
        let slots = sampling.slots.min(prompts.len() * samples).max(1);
        let first = prompts.len();
        let each = |p: usize| (0..samples).map(move |s| (p, s));
        Ok(Lane {
            model,
            prompts,
            first_prompt,
            sampling,
            key,
            cache: KvCache::new(&model.config, &model.device, first + slots, total)?,
            decode: Decode::new(model, sampling, slots)?,
            first_logits: model.space.take(first * model.config.vocab)?,
            waiting: (0..first).flat_map(each).collect(),
            free: (first..first + slots).rev().collect(),
            active: Vec::new(),
            done: vec![vec![Rollout::default(); samples]; first],
        })
    }

    fn run(mut self) -> Result<Vec<Vec<Rollout>>> {
        self.prefill()?;
        while !self.waiting.is_empty() || !self.active.is_empty() {
            while !self.waiting.is_empty() && !self.free.is_empty() {
                self.admit()?;
            }
            if !self.active.is_empty() {
                let drawn = self.step()?;
                self.take(0, drawn);
            }
        }
        Ok(self.done)
    }

    /// Runs all prompts through the model, so many tokens at a time, and keeps the logits behind
    /// each prompt's last token.
    fn prefill(&mut self) -> Result<()> {
        let space = &self.model.space;
        let mut first = 0;
        while first < self.prompts.len() {
            let mut tokens = 0;
            let fits = |prompt: &&Vec<i32>| {
                tokens += prompt.len();
                tokens <= PREFILL
            };
            let count = self.prompts[first..].iter().take_while(fits).count().max(1);
            let chunk = &self.prompts[first..first + count];
            let packed = Packed::of(chunk.iter().map(Vec::as_slice));
            let slots: Vec<usize> = (first..first + count).collect();
            let batch = self.cache.batch(space, &packed, &slots)?;
            let hidden = self.model.forward(&batch, true, Some(&mut self.cache), None)?;
            let last: Vec<i32> = packed.cu_seqlens[1..].iter().map(|&end| end as i32 - 1).collect();
            let last = gather_rows(self.model, space, &hidden, self.model.config.hidden, &last)?;
            let logits = self.model.logits(space, &last)?;
            self.decode.keep_logits(space, &logits, first, &mut self.first_logits)?;
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
            let global = (self.first_prompt + prompt) as u32;
            // The step's high bits share a word with the sample: 2^16 samples, 2^48 steps.
            let sample_word = sample as u32 | ((self.key.step >> 32) as u32) << 16;
            let words = [self.key.step as u32, global, sample_word];
            let rng = Rng::new(self.key.seed, self.key.purpose, words);
            self.active.push(Active { prompt, sample, slot, rng });
        }
        let space = &self.model.space;
        self.cache.fork(space, &pairs)?;
        let vocab = self.model.config.vocab;
        let logits = gather_rows(self.model, space, &self.first_logits, vocab, &rows)?;
        let drawn = self.decode.draw(space, &logits, &self.uniform(begin))?;
        self.take(begin, drawn);
        Ok(())
    }

    /// One more token of every active sequence.
    fn step(&mut self) -> Result<Draw> {
        let mut packed = Packed::new();
        let slots: Vec<usize> = self.active.iter().map(|a| a.slot).collect();
        for a in &self.active {
            let last = self.done[a.prompt][a.sample].tokens.last().copied().unwrap_or(0);
            packed.push(&[last], self.cache.len(a.slot));
        }
        let uniform = self.uniform(0);
        self.decode.step(&mut self.cache, &packed, &slots, &uniform)
    }

    /// The next uniform draw of the active sequences from `begin` on.
    fn uniform(&self, begin: usize) -> Vec<f64> {
        let at = |a: &Active| self.done[a.prompt][a.sample].tokens.len() as u32;
        self.active[begin..].iter().map(|a| a.rng.uniform_at(at(a))).collect()
    }

    /// Appends the tokens drawn for the active sequences from `begin` on; those that are done give
    /// their slots back.
    fn take(&mut self, begin: usize, drawn: Draw) {
        let (max_new, eos) = (self.sampling.max_new_tokens, self.sampling.eos);
        for (a, (token, logp)) in
            self.active[begin..].iter().zip(drawn.token.into_iter().zip(drawn.logp))
        {
            let rollout = &mut self.done[a.prompt][a.sample];
            rollout.tokens.push(token);
            rollout.logp.push(logp);
            rollout.finished = token == eos;
        }
        let (cache, done, free) = (&mut self.cache, &self.done, &mut self.free);
        self.active.retain(|a| {
            let rollout = &done[a.prompt][a.sample];
            let stays = !rollout.finished && rollout.tokens.len() < max_new;
            if !stays {
                cache.clear(a.slot);
                free.push(a.slot);
            }
            stays
        });
    }
}
