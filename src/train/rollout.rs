//! Rollouts with continuous batching: a sequence takes a cache slot, is decoded together with all
//! others, and leaves when it is done; the next one takes its slot in the same step.
//!
//! A prompt is prefilled once and its keys and values copied to every sample. Prompts are split
//! over the threads; rows do not depend on the batch, so neither the split nor the number of slots
//! changes a token or a log-prob.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::model::{Decoder, KvCache, Packed};
use crate::ops::{LogitTransform, Sample, sample};
use crate::rng::{Purpose, Rng};
use crate::view::{View, ViewMut};

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
    /// Sequences decoded together per thread.
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

/// `samples` completions of each prompt, in order.
pub fn rollout(
    model: &Decoder,
    prompts: &[Vec<i32>],
    samples: usize,
    sampling: &Sampling,
    key: RolloutKey,
) -> Result<Vec<Vec<Rollout>>> {
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        let got = format!("an empty prompt at index {empty}");
        return Err(Error::invalid("rollout", "prompts", got, "at least one token each"));
    }
    let lanes = rayon::current_num_threads().min(prompts.len()).max(1);
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

/// One thread's share of the prompts.
struct Lane<'a> {
    model: &'a Decoder,
    prompts: &'a [Vec<i32>],
    first_prompt: usize,
    samples: usize,
    sampling: &'a Sampling,
    key: RolloutKey,
    prefixes: KvCache,
    cache: KvCache,
    active: Vec<Active>,
    done: Vec<Vec<Rollout>>,
}

impl<'a> Lane<'a> {
    fn new(
        model: &'a Decoder,
        prompts: &'a [Vec<i32>],
        first_prompt: usize,
        samples: usize,
        sampling: &'a Sampling,
        key: RolloutKey,
    ) -> Result<Lane<'a>> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let total = longest + sampling.max_new_tokens;
        if total > model.config.max_positions {
            let got = format!("{longest} prompt + {} new tokens", sampling.max_new_tokens);
            let expected = format!("at most {} positions", model.config.max_positions);
            return Err(Error::invalid("rollout", "max_new_tokens", got, expected));
        }
        let slots = sampling.slots.min(prompts.len() * samples).max(1);
        Ok(Lane {
            model,
            prompts,
            first_prompt,
            samples,
            sampling,
            key,
            prefixes: KvCache::new(&model.config, prompts.len(), longest)?,
            cache: KvCache::new(&model.config, slots, total)?,
            active: Vec::new(),
            done: vec![vec![Rollout::default(); samples]; prompts.len()],
        })
    }

    fn run(mut self) -> Result<Vec<Vec<Rollout>>> {
        let first_logits = self.prefill()?;
        let vocab = self.model.config.vocab;
        let mut waiting = (0..self.prompts.len())
            .flat_map(|p| (0..self.samples).map(move |s| (p, s)))
            .collect::<std::collections::VecDeque<_>>();
        let mut free: Vec<usize> = (0..self.cache.slots).rev().collect();
        let mut logits = Vec::new();
        while !waiting.is_empty() || !self.active.is_empty() {
            while let (Some(&slot), Some(&(prompt, sample))) = (free.last(), waiting.front()) {
                free.pop();
                waiting.pop_front();
                self.admit(prompt, sample, slot)?;
                logits.extend_from_slice(&first_logits[prompt * vocab..(prompt + 1) * vocab]);
            }
            self.draw(&logits)?;
            let cache = &mut self.cache;
            let (done, max_new, eos) =
                (&mut self.done, self.sampling.max_new_tokens, self.sampling.eos);
            self.active.retain(|a| {
                let rollout = &mut done[a.prompt][a.sample];
                rollout.finished = rollout.tokens.last() == Some(&eos);
                let stays = !rollout.finished && rollout.tokens.len() < max_new;
                if !stays {
                    cache.clear(a.slot);
                    free.push(a.slot);
                }
                stays
            });
            logits = self.decode()?;
        }
        Ok(self.done)
    }

    /// Runs all prompts through the model; returns the logits behind each prompt's last token.
    fn prefill(&mut self) -> Result<Vec<f32>> {
        let packed = Packed::of(self.prompts.iter().map(Vec::as_slice));
        let slots: Vec<usize> = (0..self.prompts.len()).collect();
        let cache = Some((&mut self.prefixes, slots.as_slice()));
        let hidden = self.model.forward(&packed, true, cache, None)?;
        let d = self.model.config.hidden;
        let last: Vec<f32> = packed.cu_seqlens[1..]
            .iter()
            .flat_map(|&end| &hidden[(end as usize - 1) * d..end as usize * d])
            .copied()
            .collect();
        self.model.logits(&last)
    }

    fn admit(&mut self, prompt: usize, sample: usize, slot: usize) -> Result<()> {
        self.cache.copy_from(slot, &self.prefixes, prompt)?;
        let global = (self.first_prompt + prompt) as u32;
        // The step's high bits share a word with the sample: 2^16 samples, 2^48 steps.
        let words =
            [self.key.step as u32, global, sample as u32 | ((self.key.step >> 32) as u32) << 16];
        let rng = Rng::new(self.key.seed, self.key.purpose, words);
        self.active.push(Active { prompt, sample, slot, rng });
        Ok(())
    }

    /// Draws the next token of every active sequence from its row of `logits`.
    fn draw(&mut self, logits: &[f32]) -> Result<()> {
        let n = self.active.len();
        let at = |a: &Active| self.done[a.prompt][a.sample].tokens.len() as u32;
        let uniform: Vec<f64> = self.active.iter().map(|a| a.rng.uniform_at(at(a))).collect();
        let (mut token, mut logp) = (vec![0i32; n], vec![0f32; n]);
        let vocab = self.model.config.vocab;
        let s = self.sampling;
        let args = Sample {
            logits: View::rows_of(logits, vocab)?,
            vocab: vocab as i64,
            transform: LogitTransform { temperature: s.temperature, ..Default::default() },
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            greedy: s.greedy,
            uniform: (&uniform).into(),
            token: ViewMut::from(&mut token),
            logp: ViewMut::from(&mut logp),
            logp_kept: None,
            kept_mass: None,
        };
        sample(&self.model.device, args)?;
        for (i, a) in self.active.iter().enumerate() {
            let rollout = &mut self.done[a.prompt][a.sample];
            rollout.tokens.push(token[i]);
            rollout.logp.push(logp[i]);
        }
        Ok(())
    }

    /// One token of every active sequence through the model; returns their logits.
    fn decode(&mut self) -> Result<Vec<f32>> {
        if self.active.is_empty() {
            return Ok(Vec::new());
        }
        let mut packed = Packed::new();
        let slots: Vec<usize> = self.active.iter().map(|a| a.slot).collect();
        for a in &self.active {
            let last = self.done[a.prompt][a.sample].tokens.last().copied().unwrap_or(0);
            packed.push(&[last], self.cache.len(a.slot));
        }
        let cache = Some((&mut self.cache, slots.as_slice()));
        let hidden = self.model.forward(&packed, true, cache, None)?;
        self.model.logits(&hidden)
    }
}
