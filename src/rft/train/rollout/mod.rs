//! Rollouts with continuous batching: a sequence takes a cache slot, is decoded together with all
//! others, and leaves when it is done; the next one takes its slot in the same step.
//!
//! What is to be sampled is a list of [`WorkItem`]s behind contexts. A context is prefilled once; its
//! items go on from its pages of the cache, and take more as they grow. On the CPU contexts are split over
//! the threads. Rows do not depend on the batch, so neither the split nor the number of slots and pages
//! changes a token or a log-prob.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::model::Decoder;
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

mod graph;
mod worker;

#[cfg(feature = "serve")]
pub(crate) use graph::draw;
pub use worker::Sampler;
use worker::{RolloutRequest, RolloutWorker};

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
    /// Longest completion, with its end; [`WorkItem`]s say it themselves.
    pub max_new_tokens: usize,
    /// The tokens that end a sequence.
    pub stops: Arc<[i32]>,
    /// Sequences decoded together: per thread on the CPU, in all on a GPU.
    pub slots: usize,
    /// Tokens of the longest context that the cache is made for; longer ones make a new one.
    pub longest_prompt: usize,
    /// How much of the cache is there, in percent: 100 has room for all slots at their longest, 0 for the
    /// contexts and one completion. Where pages are used up, the sequences that came last wait, and what they
    /// hold is computed again: more time, the same bits.
    pub cache_percent: usize,
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

impl RolloutKey {
    /// The stream of a sample of a prompt.
    pub(crate) fn stream(self, prompt: u32, sample: u32) -> Rng {
        // The step's high bits share a word with the sample: 2^16 samples, 2^48 steps.
        let words = [self.step as u32, prompt, sample | ((self.step >> 32) as u32) << 16];
        Rng::new(self.seed, self.purpose, words)
    }
}

/// One sampled completion, or an episode: several, with what was said to them in between.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rollout {
    /// Tokens, with the end of sequence if it was reached.
    pub tokens: Vec<i32>,
    /// Log-prob of each token under the full vocabulary at the sampling temperature; 0 for tokens that
    /// nobody sampled.
    pub logp: Vec<f32>,
    /// Entropy of each token's distribution, in nats; 0 for tokens that nobody sampled.
    pub entropy: Vec<f32>,
    /// Whether the end of sequence, or a text that ends one, was reached.
    pub finished: bool,
    /// Which tokens an environment said, in order; none of a single completion.
    pub said: Vec<Range<usize>>,
    /// How many tokens at the front are a demonstration's beginning, which nobody sampled.
    pub begun: usize,
}

impl Rollout {
    /// Number of tokens that the policy sampled.
    pub fn sampled(&self) -> usize {
        let said: usize = self.said.iter().map(Range::len).sum();
        self.tokens.len() - self.begun - said
    }
}

/// A completion to sample behind one of some contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkItem {
    /// Index of the context.
    pub context: usize,
    /// Prompt and sample, which name the stream that it draws from.
    pub stream: (u32, u32),
    /// Draws of that stream that are used up.
    pub drawn: usize,
    /// Most tokens, with the end.
    pub allowed: usize,
}

/// Weights beyond this many bytes are in no core's cache: all threads then go through them together,
/// once per step, instead of each for its own prompts.
const CACHE: u64 = 32 << 20;

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
pub type OnToken<'a> = &'a (dyn Fn(usize, usize, i32) + Sync);

/// Asked after every token that is no stop whether the tokens so far end a completion.
pub type Ends<'a> = &'a (dyn Fn(&[i32]) -> Result<bool> + Sync);

/// What is called while tokens are drawn.
#[derive(Clone, Copy, Default)]
pub struct Hooks<'a> {
    /// Sees them.
    pub on_token: Option<OnToken<'a>>,
    /// Ends a completion, beside the stops.
    pub ends: Option<Ends<'a>>,
}

/// `samples` completions of each prompt, in order, on a sampler that earlier calls left: on a GPU its
/// memory and its recorded steps serve the next call as well, if they fit.
///
/// # Errors
/// As [`rollout`].
pub fn rollout_with<T: Float>(
    sampler: &mut Option<Sampler<T>>,
    model: &Decoder<T>,
    prompts: &[Vec<i32>],
    samples: usize,
    sampling: &Sampling,
    key: RolloutKey,
    hooks: Hooks<'_>,
) -> Result<Vec<Vec<Rollout>>> {
    let allowed = sampling.max_new_tokens;
    let each = |context: usize| {
        let stream = move |s: usize| (context as u32, s as u32);
        (0..samples).map(move |s| WorkItem { context, stream: stream(s), drawn: 0, allowed })
    };
    let items: Vec<WorkItem> = (0..prompts.len()).flat_map(each).collect();
    let mut done = rollout_items(sampler, model, prompts, &items, sampling, key, hooks)?;
    Ok((0..prompts.len()).map(|_| done.drain(..samples).collect()).collect())
}

/// The completions of `items`, in order, behind `contexts`, on a sampler that earlier calls left. A
/// context is prefilled once for all of its items, which stand side by side.
///
/// # Errors
/// `InvalidArgument` for an empty context, items that are not in the order of their contexts or may not
/// have a token, and sequences longer than the model's positions; what the model and the device say;
/// `Interrupted` between two tokens, once a signal asks for a stop.
pub fn rollout_items<T: Float>(
    sampler: &mut Option<Sampler<T>>,
    model: &Decoder<T>,
    contexts: &[Vec<i32>],
    items: &[WorkItem],
    sampling: &Sampling,
    key: RolloutKey,
    hooks: Hooks<'_>,
) -> Result<Vec<Rollout>> {
    check(contexts, items)?;
    let run = |part: &Part<'_>, sampler: &mut Option<Sampler<T>>, slots: usize| {
        let request = RolloutRequest {
            model,
            contexts: part.contexts,
            items: &part.items,
            sampling,
            slots,
            key,
            hooks,
        };
        let mut fitting = Sampler::fit(sampler.take(), &request)?;
        let done = RolloutWorker::new(request, &mut fitting).run()?;
        *sampler = Some(fitting);
        Ok(done)
    };
    if let Device::Gpu(_) = model.device {
        let slots = sampling.slots;
        let parts = cut(contexts, items, most_contexts(contexts.len(), items.len(), slots));
        let done = parts.iter().map(|part| run(part, sampler, slots));
        return Ok(done.collect::<Result<Vec<_>>>()?.concat());
    }
    let threads = rayon::current_num_threads();
    if model.weight_bytes() > CACHE {
        let slots = sampling.slots * threads;
        let parts = cut(contexts, items, most_contexts(contexts.len(), items.len(), slots));
        let done = parts.iter().map(|part| run(part, &mut None, slots));
        return Ok(done.collect::<Result<Vec<_>>>()?.concat());
    }
    let workers = threads.min(contexts.len()).max(1);
    let share = contexts.len().div_ceil(workers).max(1);
    let share = share.min(most_contexts(contexts.len(), items.len(), sampling.slots));
    let parts = cut(contexts, items, share);
    let done: Vec<Result<Vec<Rollout>>> =
        parts.par_iter().map(|part| run(part, &mut None, sampling.slots)).collect();
    Ok(done.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

/// Some of the contexts with their items.
struct Part<'a> {
    contexts: &'a [Vec<i32>],
    items: Vec<WorkItem>,
}

/// Parts of at most `share` contexts.
fn cut<'a>(contexts: &'a [Vec<i32>], items: &[WorkItem], share: usize) -> Vec<Part<'a>> {
    let part = |(i, contexts): (usize, &'a [Vec<i32>])| {
        let first = i * share;
        let from = items.partition_point(|item| item.context < first);
        let to = items.partition_point(|item| item.context < first + contexts.len());
        let own = |item: &WorkItem| WorkItem { context: item.context - first, ..*item };
        Part { contexts, items: items[from..to].iter().map(own).collect() }
    };
    contexts.chunks(share.max(1)).enumerate().map(part).collect()
}

/// Contexts that are prefilled together. Where most have an item of their own, as the turns of episodes
/// do, more of them than slots would only wait, with all of their keys and values.
fn most_contexts(contexts: usize, items: usize, slots: usize) -> usize {
    if items < 2 * contexts { slots.max(1) } else { contexts.max(1) }
}

/// Refuses what cannot be sampled.
fn check(contexts: &[Vec<i32>], items: &[WorkItem]) -> Result<()> {
    if let Some(empty) = contexts.iter().position(Vec::is_empty) {
        let got = format!("an empty prompt at index {empty}");
        return Err(Error::invalid("rollout", "prompts", got, "at least one token each"));
    }
    let ordered = items.is_sorted_by_key(|item| item.context);
    if let Some(last) = items.last().filter(|last| !ordered || last.context >= contexts.len()) {
        let got = format!("contexts up to {}, in order: {ordered}", last.context);
        let expected = format!("in the order of the {} contexts", contexts.len());
        return Err(Error::invalid("rollout", "items", got, expected));
    }
    match items.iter().position(|item| item.allowed == 0) {
        None => Ok(()),
        Some(at) => {
            let got = format!("no token for item {at}");
            Err(Error::invalid("rollout", "max_new_tokens", got, "at least 1"))
        }
    }
}
