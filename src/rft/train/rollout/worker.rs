//! One worker: its prompts are prefilled, their samples decoded together, and a slot that falls free
//! goes to the next sample. Where the cache has fewer pages than all samples may need, one that came last
//! gives its pages back and waits; when there is room again, what it has drawn is prefilled.

use std::collections::VecDeque;

use crate::io::interrupt;
use crate::model::{Decoder, KvCache, PAGE, Packed};
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
    /// How often a sample gave its pages back before it was done.
    evicted: usize,
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
        let longest = longest.max(request.sampling.longest_prompt);
        let total =
            (longest + request.sampling.max_new_tokens).min(request.model.config.max_positions);
        let prompts = request.prompts.len();
        let slots = request.sampling.slots.min(prompts * request.samples).max(1);
        let (weights, sampling) = (request.model.weight_addresses(), request.sampling.clone());
        if let Some(mut old) = old
            && old.prompts >= prompts
            && old.slots >= slots
            && old.cache.max_len() >= total
            && old.cache.pages() >= pages(longest, prompts, slots, request.sampling)
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
            cache: KvCache::with_pages(
                &request.model.config,
                &request.model.device,
                prompts + slots,
                total,
                pages(longest, prompts, slots, request.sampling),
            )?,
            first_logits: Buffer::new(&request.model.device, prompts * request.model.config.vocab)?,
            decode: DecodeGraphs::default(),
            sampling,
            weights,
            evicted: 0,
        })
    }

    /// How often a sample gave its pages back before it was done, since the sampler was made.
    pub fn evicted(&self) -> usize {
        self.evicted
    }
}

/// Pages of a cache for `prompts` prompts of up to `longest` tokens whose samples take `slots` slots. Samples share
/// the full pages of their prompt, and the page that it leaves open is each one's own.
fn pages(longest: usize, prompts: usize, slots: usize, sampling: &Sampling) -> usize {
    // Shorter prompts may leave more of a page open.
    let lengths = longest.saturating_sub(PAGE - 1)..=longest;
    let own = lengths.map(|n| (n + sampling.max_new_tokens).div_ceil(PAGE) - n / PAGE);
    let own = own.max().unwrap_or(0);
    let more = slots.saturating_sub(1) * own;
    prompts * longest.div_ceil(PAGE) + own + (more * sampling.cache_percent.min(100)).div_ceil(100)
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
            while self.admit()? {}
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

    /// Gives free slots to waiting samples, as far as there are pages: to new ones, whose first tokens are drawn,
    /// or to those that had given theirs back. Whether there was one.
    fn admit(&mut self) -> Result<bool> {
        let begin = self.active.len();
        let resumes = self.waiting.front().is_some_and(|&waiting| self.drawn(waiting) > 0);
        let (mut pairs, mut rows) = (Vec::new(), Vec::new());
        let mut room = self.sampler.cache.free_pages().saturating_sub(self.begun_pages());
        while let (Some(&next), Some(&slot)) = (self.waiting.front(), self.free.last()) {
            let needs = self.own_pages(next);
            let alone = self.active.is_empty();
            if (self.drawn(next) > 0) != resumes || (needs > room && !alone) {
                break;
            }
            room = room.saturating_sub(needs);
            self.waiting.pop_front();
            self.free.pop();
            let (prompt, sample) = next;
            let rng = self.rng(prompt, sample);
            pairs.push((slot, prompt));
            rows.push(prompt as i32);
            self.active.push(ActiveSequence { prompt, sample, slot, rng });
        }
        if pairs.is_empty() {
            return Ok(false);
        }
        let model = self.request.model;
        self.sampler.cache.fork(&model.allocator, &pairs)?;
        if resumes {
            self.prefill_drawn(begin)?;
            return Ok(true);
        }
        let (all, vocab) = (&self.sampler.first_logits, model.config.vocab);
        let logits = gather_rows(model, &model.allocator, all, vocab, &rows)?;
        let uniform = self.uniform(begin);
        let drawn = draw(model, &model.allocator, self.request.sampling, &logits, &uniform)?;
        self.take(begin, drawn)?;
        Ok(true)
    }

    /// Tokens that a sample has drawn.
    fn drawn(&self, (prompt, sample): (usize, usize)) -> usize {
        self.done[prompt][sample].tokens.len()
    }

    /// Pages that a waiting sample takes beside the full ones of its prompt, with that of its next token.
    fn own_pages(&self, waiting: (usize, usize)) -> usize {
        let prompt = self.request.prompts[waiting.0].len();
        (prompt + self.drawn(waiting).max(1)).div_ceil(PAGE) - prompt / PAGE
    }

    /// The draws of a sample.
    fn rng(&self, prompt: usize, sample: usize) -> Rng {
        let (global, key) = ((self.request.first_prompt + prompt) as u32, self.request.key);
        // The step's high bits share a word with the sample: 2^16 samples, 2^48 steps.
        let words = [key.step as u32, global, sample as u32 | ((key.step >> 32) as u32) << 16];
        Rng::new(key.seed, key.purpose, words)
    }

    /// Puts what the active sequences from `begin` on had drawn before they waited back into the cache, but for their
    /// last tokens, which the next step reads.
    fn prefill_drawn(&mut self, begin: usize) -> Result<()> {
        let (model, mut next) = (self.request.model, begin);
        while next < self.active.len() {
            let (mut packed, mut slots) = (Packed::new(), Vec::new());
            while let Some(a) = self.active.get(next) {
                let tokens = &self.done[a.prompt][a.sample].tokens;
                let read = &tokens[..tokens.len().saturating_sub(1)];
                if !slots.is_empty() && packed.tokens() + read.len() > PREFILL {
                    break;
                }
                next += 1;
                if !read.is_empty() {
                    packed.push(read, self.sampler.cache.len(a.slot));
                    slots.push(a.slot);
                }
            }
            if slots.is_empty() {
                break;
            }
            interrupt::check()?;
            let cache = &mut self.sampler.cache;
            let batch = cache.batch(&model.allocator, &packed, &slots)?;
            model.forward(&batch, true, Some(cache), None)?;
        }
        Ok(())
    }

    /// Pages that the next step takes.
    fn begun_pages(&self) -> usize {
        self.active.iter().filter(|a| self.sampler.cache.begins_page(a.slot)).count()
    }

    /// Sees to it that every active sequence has room for its next token: while pages lack, the one that came last
    /// gives its own back and waits.
    fn make_room(&mut self) {
        while self.active.len() > 1 && self.begun_pages() > self.sampler.cache.free_pages() {
            let Some(last) = self.active.pop() else { break };
            self.sampler.cache.clear(last.slot);
            self.sampler.evicted += 1;
            self.free.push(last.slot);
            self.waiting.push_front((last.prompt, last.sample));
        }
    }

    /// One more token of every active sequence.
    fn step(&mut self) -> Result<SampledTokens> {
        self.make_room();
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
