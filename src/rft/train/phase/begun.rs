//! Samples that go on from the beginning of a demonstration (Prefix-RFT, Huang et al. 2025, arXiv:2507.01679). The
//! beginning counts as a part of the completion: it is within its length, rewards read it, and it is learned.

use std::f64::consts::PI;

use crate::train::config::{ImportanceKey, RlConfig, RunConfig, SourceKey};
use crate::train::env::Shown;
use crate::train::phase::collect::COLLECT_STEPS;
use crate::train::rollout::{Rollout, RolloutKey, WorkItem};
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::task::Prompt;
use crate::train::trainer::{Sampled, Trainer};
use crate::train::update::record::{Record, TokenClass};
use crate::train::update::sequence::SequenceLoss;
use crate::train::update::step::score_tokens;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

/// Shares of demonstrations have this first coordinate among the draws of [`Purpose::Shuffle`].
const SHARE: u32 = 4;

/// Ids with which the last samples of a prompt begin.
type Beginnings = Vec<Vec<i32>>;

impl RlConfig {
    /// The least and the largest share at step `step` of the phase: the least one falls on a half cosine.
    ///
    /// # Errors
    /// `Config` for bounds that are no shares.
    fn prefix_bounds(&self, step: u64) -> Result<(f64, f64)> {
        let bounds = self.prefix_share.ends().filter(|&(low, high)| 0.0 <= low && high <= 1.0);
        let Some((low, high)) = bounds else {
            let reason = "expected [low, high], shares of a demonstration from 0 to 1";
            return Err(Error::config("rl.prefix_share", reason));
        };
        let done = (step as f64 / self.prefix_steps as f64).min(1.0);
        Ok((low + (high - low) * 0.5 * (1.0 + (PI * done).cos()), high))
    }
}

impl RunConfig {
    /// Refuses beginnings of demonstrations where they mean nothing, and keys about them where there are none.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn validate_beginnings(&self) -> Result<()> {
        let (rl, none) = (&self.rl, RlConfig::default());
        if rl.prefix_samples == 0 {
            for (key, set) in [
                ("rl.prefix_share", rl.prefix_share != none.prefix_share),
                ("rl.prefix_steps", rl.prefix_steps != none.prefix_steps),
                ("rl.prefix_quantile", rl.prefix_quantile != none.prefix_quantile),
            ] {
                if set {
                    return Err(Error::config(key, "means nothing without rl.prefix_samples"));
                }
            }
            return Ok(());
        }
        rl.prefix_bounds(0)?;
        let reason = if rl.prefix_samples > rl.group {
            format!("{}, but rl.group has {} samples", rl.prefix_samples, rl.group)
        } else if !self.env.kind.is_empty() {
            "begins completions, and with env.kind there are episodes; leave one of them out".into()
        } else if SequenceLoss::of(rl)?.is_some() {
            format!("is about single tokens, and `{}` compares whole completions", rl.loss)
        } else if rl.replay_window > 0 {
            "is learned by the policy that samples; rl.replay_window replays another's: take 0"
                .into()
        } else if rl.importance_sampling != ImportanceKey::None {
            "nobody sampled a beginning, and rl.importance_sampling divides by who did: take none"
                .into()
        } else {
            return Ok(());
        };
        Err(Error::config("rl.prefix_samples", reason))
    }
}

impl<T: Float> Trainer<T> {
    /// Completions of `prompts`, which are those of `rows`, of batch `batch` of step `step`; the last ones of each
    /// prompt go on from its demonstration if they are to. In `collect` none are.
    pub(super) fn sample_rows(
        &self,
        prompts: Vec<Prompt>,
        rows: &[u64],
        (step, batch): (u64, u64),
    ) -> Result<Sampled> {
        let (rl, (_, key)) = (&self.config.rl, self.place(step, batch));
        if rl.prefix_samples == 0 || step >= COLLECT_STEPS {
            return self.sample(prompts, rl.group, key);
        }
        let begun = self.beginnings(rows, step, key)?;
        self.go_on(
            prompts,
            &begun,
            RolloutKey { seed: self.config.seed, purpose: Purpose::Sample, step: key },
        )
    }

    /// The beginnings of the demonstrations of `rows`: none has the end, and each leaves room for a token.
    fn beginnings(&self, rows: &[u64], step: u64, key: u64) -> Result<Vec<Beginnings>> {
        let (rl, most) = (&self.config.rl, self.max_new_tokens().saturating_sub(1));
        if self.longest {
            return Ok(vec![vec![vec![0; most]; rl.prefix_samples]; rows.len()]);
        }
        let (low, high) = rl.prefix_bounds(step)?;
        let words = [SHARE, key as u32, (key >> 32) as u32];
        let mut rng = Rng::new(self.config.seed, Purpose::Shuffle, words);
        let mut of_row = |&row: &u64| {
            let demo = self.task.train_demo(row)?;
            let shown = Shown::of(&demo, self.task.codec(), None, &rl.stop)?;
            let Some(Shown::Answer(_, ids)) = shown.first() else {
                let reason = "begins with an answer of the demonstration, and there is none";
                return Err(Error::config("rl.prefix_samples", reason));
            };
            let mut cut = || {
                let share = low + (high - low) * rng.uniform();
                let tokens = (share * ids.len() as f64) as usize;
                ids[..tokens.min(ids.len().saturating_sub(1)).min(most)].to_vec()
            };
            Ok((0..rl.prefix_samples).map(|_| cut()).collect())
        };
        rows.iter().map(&mut of_row).collect()
    }

    /// A group for each prompt, whose last samples go on from `begun`. Sample s of prompt p draws from the stream
    /// that it has without beginnings.
    fn go_on(
        &self,
        prompts: Vec<Prompt>,
        begun: &[Beginnings],
        key: RolloutKey,
    ) -> Result<Sampled> {
        let (group, allowed) = (self.config.rl.group, self.max_new_tokens());
        let mut sampled = self.asked(prompts)?;
        let (mut contexts, mut items, mut fronts) = (Vec::new(), Vec::new(), Vec::new());
        for (p, (ids, begun)) in sampled.prompt_ids.iter().zip(begun).enumerate() {
            let free = group - begun.len();
            for s in 0..group {
                let front: &[i32] = if s < free { &[] } else { &begun[s - free] };
                // Free samples share the context of the prompt.
                if s == 0 || s >= free {
                    contexts.push([ids.as_slice(), front].concat());
                }
                let (context, stream) = (contexts.len() - 1, (p as u32, s as u32));
                let allowed = allowed - front.len();
                items.push(WorkItem { context, stream, drawn: 0, allowed });
                fronts.push(front);
            }
        }
        let sampling = self.sampling();
        let done = self.with_sampler(&sampling, key, |sample| sample(&contexts, &items))?;
        let done: Vec<Rollout> = done.into_iter().zip(fronts).map(behind).collect();
        sampled.texts = done.iter().map(|r| self.spell(&r.tokens)).collect::<Result<_>>()?;
        sampled.rollouts = done.chunks(group.max(1)).map(<[Rollout]>::to_vec).collect();
        Ok(sampled)
    }

    /// Puts what the policy, as it is, says of beginnings where nobody has said anything: their log-probs, which
    /// ratios are taken against, and their entropies.
    pub(super) fn score_beginnings(&self, records: &mut [Record]) -> Result<()> {
        let of_demo = |record: &Record, t: &usize| record.class[*t] == TokenClass::Demo;
        let begun = |r: &&mut Record| r.scored().any(|t| of_demo(r, &t));
        let mut begun: Vec<&mut Record> = records.iter_mut().filter(begun).collect();
        if begun.is_empty() {
            return Ok(());
        }
        let copies: Vec<Record> = begun.iter().map(|record| (**record).clone()).collect();
        let scores = score_tokens(&self.model, &copies, true, self.scoring())?;
        for (record, its) in begun.iter_mut().zip(scores) {
            let places: Vec<usize> = record.scored().filter(|t| of_demo(record, t)).collect();
            record.proximal_logp = record.sampler_logp.clone();
            for t in places {
                record.proximal_logp[t] = its.logp[t];
                record.entropy[t] = its.entropy[t];
            }
        }
        Ok(())
    }

    /// How long beginnings are, and what the completions behind them are worth.
    pub(super) fn begun_metrics(&self, records: &[Record]) -> Metrics {
        let (rl, mut metrics) = (&self.config.rl, Metrics::default());
        // Answers of a file are demonstrations as a whole.
        if rl.prefix_samples == 0 || rl.source == SourceKey::Data {
            return metrics;
        }
        let length = |r: &Record| r.scored().filter(|&t| r.class[t] == TokenClass::Demo).count();
        let begun = records.iter().map(|r| (length(r), r.reward as f64)).filter(|(n, _)| *n > 0);
        let begun: Vec<(usize, f64)> = begun.collect();
        if begun.is_empty() {
            return metrics;
        }
        let tokens: usize = begun.iter().map(|(n, _)| n).sum();
        let known: Vec<f64> = begun.iter().map(|(_, r)| *r).filter(|r| !r.is_nan()).collect();
        // A mean over nothing is NaN, and the metrics files hold null.
        metrics.push(Metric::PrefixLength, tokens as f64 / begun.len() as f64);
        metrics.push(Metric::PrefixReward, known.iter().sum::<f64>() / known.len() as f64);
        metrics
    }
}

/// A rollout with the beginning that it went on from.
fn behind((mut rollout, front): (Rollout, &[i32])) -> Rollout {
    let unknown = || std::iter::repeat_n(0.0, front.len());
    rollout.tokens.splice(0..0, front.iter().copied());
    rollout.logp.splice(0..0, unknown());
    rollout.entropy.splice(0..0, unknown());
    rollout.begun = front.len();
    rollout
}
