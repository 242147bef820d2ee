//! One worker: its contexts are prefilled, their items decoded together, and a slot that falls free
//! goes to the next item. Where the cache has fewer pages than all items may need, one that came last
//! gives its pages back and waits; when there is room again, what it has drawn is prefilled.

use std::collections::VecDeque;

use crate::io::interrupt;
use crate::model::{Decoder, KvCache, PAGE, Packed};
use crate::train::rollout::graph::{ActiveBatch, DecodeGraphs, SampledTokens, draw};
use crate::train::rollout::{Hooks, Rollout, RolloutKey, Sampling, WorkItem};
use crate::train::update::step::gather_rows;
use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{CopyRows, copy_rows};
use gradus::rng::Rng;

/// Tokens of one prefill call.
const PREFILL: usize = 8192;

/// One thread's share of the contexts with their items, or all of them on a GPU.
pub(super) struct RolloutRequest<'a, T> {
    pub model: &'a Decoder<T>,
    pub contexts: &'a [Vec<i32>],
    /// In the order of their contexts.
    pub items: &'a [WorkItem],
    pub sampling: &'a Sampling,
    /// Items decoded together.
    pub slots: usize,
    pub key: RolloutKey,
    pub hooks: Hooks<'a>,
}

/// What rollouts of one shape keep from one call to the next. The first slots of the cache hold the
/// contexts, the others the running items.
pub struct Sampler<T: Float> {
    contexts: usize,
    slots: usize,
    cache: KvCache<T>,
    /// `[contexts, vocab]` logits behind each context.
    first_logits: Buffer<T>,
    decode: DecodeGraphs,
    /// What recorded steps were made for.
    sampling: Sampling,
    weights: u64,
    /// How often an item gave its pages back before it was done.
    evicted: usize,
}

impl<T: Float> Sampler<T> {
    /// `old`, if it is large enough, or a new one.
    pub(super) fn fit(
        old: Option<Sampler<T>>,
        request: &RolloutRequest<'_, T>,
    ) -> Result<Sampler<T>> {
        let (model, most) = (request.model, request.model.config.max_positions);
        let asked = request.longest()?;
        let lengths = request.contexts.iter().map(Vec::len);
        let longest = lengths.max().unwrap_or(0).max(request.sampling.longest_prompt);
        let total = asked.max((longest + request.sampling.max_new_tokens).min(most));
        let contexts = request.contexts.len();
        let slots = request.slots.min(request.items.len()).max(1);
        let pages = pages(longest, contexts, slots, request.sampling);
        let (weights, sampling) = (model.weight_addresses(), request.sampling.clone());
        if let Some(mut old) = old
            && old.contexts >= contexts
            && old.slots >= slots
            && old.cache.max_len() >= total
            && old.cache.pages() >= pages
        {
            if old.weights != weights || old.sampling != sampling {
                (old.weights, old.sampling, old.decode) =
                    (weights, sampling, DecodeGraphs::default());
            }
            (0..old.cache.slots()).for_each(|slot| old.cache.clear(slot));
            return Ok(old);
        }
        let places = contexts + slots;
        Ok(Sampler {
            contexts,
            slots,
            cache: KvCache::with_pages(&model.config, &model.device, places, total, pages)?,
            first_logits: Buffer::new(&model.device, contexts * model.config.vocab)?,
            decode: DecodeGraphs::default(),
            sampling,
            weights,
            evicted: 0,
        })
    }

    /// How often an item gave its pages back before it was done, since the sampler was made.
    pub fn evicted(&self) -> usize {
        self.evicted
    }
}

impl<T: Float> RolloutRequest<'_, T> {
    /// Positions of the longest sequence.
    fn longest(&self) -> Result<usize> {
        let length = |item: &WorkItem| self.contexts[item.context].len() + item.allowed;
        let Some(longest) = self.items.iter().max_by_key(|item| length(item)) else {
            return Ok(self.contexts.iter().map(Vec::len).max().unwrap_or(0));
        };
        let (total, most) = (length(longest), self.model.config.max_positions);
        if total > most {
            let prompt = self.contexts[longest.context].len();
            let got = format!("{prompt} prompt + {} new tokens", longest.allowed);
            let expected = format!("at most {most} positions");
            return Err(Error::invalid("rollout", "max_new_tokens", got, expected));
        }
        Ok(total)
    }
}

/// Pages of a cache for `contexts` contexts of up to `longest` tokens whose items take `slots` slots. Items share
/// the full pages of their context, and the page that it leaves open is each one's own.
fn pages(longest: usize, contexts: usize, slots: usize, sampling: &Sampling) -> usize {
    // Shorter contexts may leave more of a page open.
    let lengths = longest.saturating_sub(PAGE - 1)..=longest;
    let own = lengths.map(|n| (n + sampling.max_new_tokens).div_ceil(PAGE) - n / PAGE);
    let own = own.max().unwrap_or(0);
    let more = slots.saturating_sub(1) * own;
    contexts * longest.div_ceil(PAGE) + own + (more * sampling.cache_percent.min(100)).div_ceil(100)
}

/// A sequence being decoded.
struct ActiveSequence {
    item: usize,
    slot: usize,
    rng: Rng,
}

/// A share of the items on its way.
pub(super) struct RolloutWorker<'a, T: Float> {
    request: RolloutRequest<'a, T>,
    sampler: &'a mut Sampler<T>,
    waiting: VecDeque<usize>,
    free: Vec<usize>,
    active: Vec<ActiveSequence>,
    done: Vec<Rollout>,
}

impl<'a, T: Float> RolloutWorker<'a, T> {
    pub fn new(
        request: RolloutRequest<'a, T>,
        sampler: &'a mut Sampler<T>,
    ) -> RolloutWorker<'a, T> {
        let (first, items) = (sampler.contexts, request.items.len());
        let slots = request.slots.min(sampler.slots);
        RolloutWorker {
            request,
            sampler,
            waiting: (0..items).collect(),
            free: (first..first + slots).rev().collect(),
            active: Vec::new(),
            done: vec![Rollout::default(); items],
        }
    }

    pub fn run(mut self) -> Result<Vec<Rollout>> {
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

    /// Runs all contexts through the model, so many tokens at a time, and keeps the logits behind
    /// each context's last token.
    fn prefill(&mut self) -> Result<()> {
        let (model, prompts) = (self.request.model, self.request.contexts);
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

    /// Gives free slots to waiting items, as far as there are pages: to new ones, whose first tokens are drawn,
    /// or to those that had given theirs back. Whether there was one.
    fn admit(&mut self) -> Result<bool> {
        let begin = self.active.len();
        let resumes = self.waiting.front().is_some_and(|&item| self.drawn(item) > 0);
        let (mut pairs, mut rows) = (Vec::new(), Vec::new());
        let mut room = self.sampler.cache.free_pages().saturating_sub(self.begun_pages());
        while let (Some(&item), Some(&slot)) = (self.waiting.front(), self.free.last()) {
            let needs = self.own_pages(item);
            let alone = self.active.is_empty();
            if (self.drawn(item) > 0) != resumes || (needs > room && !alone) {
                break;
            }
            room = room.saturating_sub(needs);
            self.waiting.pop_front();
            self.free.pop();
            let WorkItem { context, stream: (prompt, sample), .. } = self.request.items[item];
            let rng = self.request.key.stream(prompt, sample);
            pairs.push((slot, context));
            rows.push(context as i32);
            self.active.push(ActiveSequence { item, slot, rng });
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

    /// Tokens that an item has drawn.
    fn drawn(&self, item: usize) -> usize {
        self.done[item].tokens.len()
    }

    /// Pages that a waiting item takes beside the full ones of its context, with that of its next token.
    fn own_pages(&self, item: usize) -> usize {
        let context = self.request.contexts[self.request.items[item].context].len();
        (context + self.drawn(item).max(1)).div_ceil(PAGE) - context / PAGE
    }

    /// Puts what the active sequences from `begin` on had drawn before they waited back into the cache, but for their
    /// last tokens, which the next step reads.
    fn prefill_drawn(&mut self, begin: usize) -> Result<()> {
        let (model, mut next) = (self.request.model, begin);
        while next < self.active.len() {
            let (mut packed, mut slots) = (Packed::new(), Vec::new());
            while let Some(a) = self.active.get(next) {
                let tokens = &self.done[a.item].tokens;
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
            self.waiting.push_front(last.item);
        }
    }

    /// One more token of every active sequence.
    fn step(&mut self) -> Result<SampledTokens> {
        self.make_room();
        let mut packed = Packed::new();
        let slots: Vec<usize> = self.active.iter().map(|a| a.slot).collect();
        for a in &self.active {
            let last = self.done[a.item].tokens.last().copied().unwrap_or(0);
            packed.push(&[last], self.sampler.cache.len(a.slot));
        }
        let uniform = self.uniform(0);
        let running = ActiveBatch { packed: &packed, slots: &slots, uniform: &uniform };
        let Sampler { decode, cache, slots: most, .. } = &mut *self.sampler;
        decode.step(self.request.model, cache, self.request.sampling, running, *most)
    }

    /// The next uniform draw of the active sequences from `begin` on.
    fn uniform(&self, begin: usize) -> Vec<f64> {
        let drawn = |a: &ActiveSequence| self.request.items[a.item].drawn;
        let at = |a: &ActiveSequence| (drawn(a) + self.drawn(a.item)) as u32;
        self.active[begin..].iter().map(|a| a.rng.uniform_at(at(a))).collect()
    }

    /// Appends the tokens drawn for the active sequences from `begin` on; those that are done give
    /// their slots back.
    fn take(&mut self, begin: usize, drawn: SampledTokens) -> Result<()> {
        let (items, stops) = (self.request.items, &self.request.sampling.stops);
        let SampledTokens { token, logp, entropy } = drawn;
        let each = token.into_iter().zip(logp).zip(entropy);
        for (a, ((token, logp), entropy)) in self.active[begin..].iter().zip(each) {
            let rollout = &mut self.done[a.item];
            rollout.tokens.push(token);
            rollout.logp.push(logp);
            rollout.entropy.push(entropy);
            rollout.finished = stops.contains(&token);
            if let (Some(ends), false) = (self.request.hooks.ends, rollout.finished) {
                rollout.finished = ends(&rollout.tokens)?;
            }
            if let Some(on_token) = self.request.hooks.on_token {
                let (prompt, sample) = items[a.item].stream;
                on_token(prompt as usize, sample as usize, token);
            }
        }
        let (cache, done, free) = (&mut self.sampler.cache, &self.done, &mut self.free);
        self.active.retain(|a| {
            let rollout = &done[a.item];
            let stays = !rollout.finished && rollout.tokens.len() < items[a.item].allowed;
            if !stays {
                cache.clear(a.slot);
                free.push(a.slot);
            }
            stays
        });
        Ok(())
    }
}
