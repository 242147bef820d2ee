//! One worker: its prompts are prefilled, their samples decoded together, and a slot that falls free
//! goes to the next sample.

use std::collections::VecDeque;

use crate::io::interrupt;
use crate::model::{Decoder, KvCache, Packed};
use crate::train::rollout::graph::{ActiveBatch, DecodeGraphs, SampledTokens, draw};
use crate::train::rollout::{Hooks, Rollout, RolloutKey, Sampling};
use crate::train::update::step::gather_rows;
use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{CopyRows, copy_rows};
use gradus::rng::Rng;

/// Tokens of one prefill call.
const PREFILL: usize = 8192;

/// One thread's share of the prompts, or all of them on a GPU.
pub(super) struct RolloutRequest<'a, T> {
    pub model: &'a Decoder<T>,
    pub prompts: &'a [Vec<i32>],
    pub first_prompt: usize,
    pub samples: usize,
    pub sampling: &'a Sampling,
    pub key: RolloutKey,
    pub hooks: Hooks<'a>,
}

/// What rollouts of one shape keep from one call to the next. Slots 0 .. prompts of the cache hold
/// the prompts, the others the running samples.
pub struct Sampler<T: Float> {
    prompts: usize,
    slots: usize,
    cache: KvCache<T>,
    /// `[prompts, vocab]` logits behind each prompt.
    first_logits: Buffer<T>,
    decode: DecodeGraphs,
    /// What recorded steps were made for.
    sampling: Sampling,
    weights: u64,
}

impl<T: Float> Sampler<T> {
    /// `old`, if it is large enough, or a new one.
    pub(super) fn fit(
        old: Option<Sampler<T>>,
        request: &RolloutRequest<'_, T>,
    ) -> Result<Sampler<T>> {
        let longest = request.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let total = longest + request.sampling.max_new_tokens;
        if total > request.model.config.max_positions {
            let got = format!("{longest} prompt + {} new tokens", request.sampling.max_new_tokens);
            let expected = format!("at most {} positions", request.model.config.max_positions);
            return Err(Error::invalid("rollout", "max_new_tokens", got, expected));
        }
        let prompts = request.prompts.len();
        let slots = request.sampling.slots.min(prompts * request.samples).max(1);
        let (weights, sampling) = (request.model.weight_addresses(), request.sampling.clone());
        if let Some(mut old) = old
            && old.prompts >= prompts
            && old.slots >= slots
            && old.cache.max_len() >= total
        {
            if old.weights != weights || old.sampling != sampling {
                (old.weights, old.sampling, old.decode) =
                    (weights, sampling, DecodeGraphs::default());
            }
            (0..old.cache.slots()).for_each(|slot| old.cache.clear(slot));
            return Ok(old);
        }
        Ok(Sampler {
            prompts,
            slots,
            cache: KvCache::new(
                &request.model.config,
                &request.model.device,
                prompts + slots,
                total,
            )?,
            first_logits: Buffer::new(&request.model.device, prompts * request.model.config.vocab)?,
            decode: DecodeGraphs::default(),
            sampling,
            weights,
        })
    }
}

/// A sequence being decoded.
struct ActiveSequence {
    prompt: usize,
    sample: usize,
    slot: usize,
    rng: Rng,
}

/// A share of the prompts on its way.
pub(super) struct RolloutWorker<'a, T: Float> {
    request: RolloutRequest<'a, T>,
    sampler: &'a mut Sampler<T>,
    waiting: VecDeque<(usize, usize)>,
    free: Vec<usize>,
    active: Vec<ActiveSequence>,
    done: Vec<Vec<Rollout>>,
}

impl<'a, T: Float> RolloutWorker<'a, T> {
    pub fn new(
        request: RolloutRequest<'a, T>,
        sampler: &'a mut Sampler<T>,
    ) -> RolloutWorker<'a, T> {
        let (prompts, samples) = (request.prompts.len(), request.samples);
        let each = |p: usize| (0..samples).map(move |s| (p, s));
        let (first, slots) = (sampler.prompts, request.sampling.slots.min(sampler.slots));
        RolloutWorker {
            request,
            sampler,
            waiting: (0..prompts).flat_map(each).collect(),
            free: (first..first + slots).rev().collect(),
            active: Vec::new(),
            done: vec![vec![Rollout::default(); samples]; prompts],
        }
    }

    pub fn run(mut self) -> Result<Vec<Vec<Rollout>>> {
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
        let (model, prompts) = (self.request.model, self.request.prompts);
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
            let (global, key) = ((self.request.first_prompt + prompt) as u32, self.request.key);
            // The step's high bits share a word with the sample: 2^16 samples, 2^48 steps.
            let words = [key.step as u32, global, sample as u32 | ((key.step >> 32) as u32) << 16];
            let rng = Rng::new(key.seed, key.purpose, words);
            self.active.push(ActiveSequence { prompt, sample, slot, rng });
        }
        let model = self.request.model;
        self.sampler.cache.fork(&model.allocator, &pairs)?;
        let (all, vocab) = (&self.sampler.first_logits, model.config.vocab);
        let logits = gather_rows(model, &model.allocator, all, vocab, &rows)?;
        let uniform = self.uniform(begin);
        let drawn = draw(model, &model.allocator, self.request.sampling, &logits, &uniform)?;
        self.take(begin, drawn)
    }

    /// One more token of every active sequence.
    fn step(&mut self) -> Result<SampledTokens> {
        let mut packed = Packed::new();
        let slots: Vec<usize> = self.active.iter().map(|a| a.slot).collect();
        for a in &self.active {
            let last = self.done[a.prompt][a.sample].tokens.last().copied().unwrap_or(0);
            packed.push(&[last], self.sampler.cache.len(a.slot));
        }
        let uniform = self.uniform(0);
        let running = ActiveBatch { packed: &packed, slots: &slots, uniform: &uniform };
        let Sampler { decode, cache, slots: most, .. } = &mut *self.sampler;
        decode.step(self.request.model, cache, self.request.sampling, running, *most)
    }

    /// The next uniform draw of the active sequences from `begin` on.
    fn uniform(&self, begin: usize) -> Vec<f64> {
        let at = |a: &ActiveSequence| self.done[a.prompt][a.sample].tokens.len() as u32;
        self.active[begin..].iter().map(|a| a.rng.uniform_at(at(a))).collect()
    }

    /// Appends the tokens drawn for the active sequences from `begin` on; those that are done give
    /// their slots back.
    fn take(&mut self, begin: usize, drawn: SampledTokens) -> Result<()> {
        let (max_new, stops) = (self.request.sampling.max_new_tokens, &self.request.sampling.stops);
        let SampledTokens { token, logp, entropy } = drawn;
        let each = token.into_iter().zip(logp).zip(entropy);
        for (a, ((token, logp), entropy)) in self.active[begin..].iter().zip(each) {
            let rollout = &mut self.done[a.prompt][a.sample];
            rollout.tokens.push(token);
            rollout.logp.push(logp);
            rollout.entropy.push(entropy);
            rollout.finished = stops.contains(&token);
            if let (Some(ends), false) = (self.request.hooks.ends, rollout.finished) {
                rollout.finished = ends(&rollout.tokens)?;
            }
            if let Some(on_token) = self.request.hooks.on_token {
                on_token(self.request.first_prompt + a.prompt, a.sample, token);
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
