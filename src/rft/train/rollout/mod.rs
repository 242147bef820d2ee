//! Rollouts with continuous batching: a sequence takes a cache slot, is decoded together with all
//! others, and leaves when it is done; the next one takes its slot in the same step.
//!
//! A prompt is prefilled once; its samples go on from its pages of the cache, and take more as they
//! grow. On the CPU prompts are split over the threads. Rows do not depend on the batch, so neither the
//! split nor the number of slots and pages changes a token or a log-prob.

use std::sync::Arc;

use rayon::prelude::*;

use crate::model::Decoder;
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::rng::Purpose;

mod graph;
mod worker;

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
    /// Longest completion, with its end.
    pub max_new_tokens: usize,
    /// The tokens that end a sequence.
    pub stops: Arc<[i32]>,
    /// Sequences decoded together: per thread on the CPU, in all on a GPU.
    pub slots: usize,
    /// Tokens of the longest prompt that the cache is made for; longer ones make a new one.
    pub longest_prompt: usize,
    /// How much of the cache is there, in percent: 100 has room for all slots at their longest, 0 for the
    /// prompts and one completion. Where pages are used up, the sequences that came last wait, and what they
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
/// `InvalidArgument` for an empty prompt or sequences longer than the model's positions; what the
/// model and the device say; `Interrupted` between two tokens, once a signal asks for a stop.
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
    let run = |first_prompt, prompts, sampler: &mut Option<Sampler<T>>, sampling: &Sampling| {
        let request =
            RolloutRequest { model, prompts, first_prompt, samples, sampling, key, hooks };
        let mut fitting = Sampler::fit(sampler.take(), &request)?;
        let done = RolloutWorker::new(request, &mut fitting).run()?;
        *sampler = Some(fitting);
        Ok(done)
    };
    if let Device::Gpu(_) = model.device {
        return run(0, prompts, sampler, sampling);
    }
    let threads = rayon::current_num_threads();
    if model.weight_bytes() > CACHE {
        let slots = sampling.slots * threads;
        return run(0, prompts, &mut None, &Sampling { slots, ..sampling.clone() });
    }
    let workers = threads.min(prompts.len()).max(1);
    let share = prompts.len().div_ceil(workers).max(1);
    let parts: Vec<Result<Vec<Vec<Rollout>>>> = prompts
        .par_chunks(share)
        .enumerate()
        .map(|(i, prompts)| run(i * share, prompts, &mut None, sampling))
        .collect();
    let mut all = Vec::with_capacity(prompts.len());
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}
