//! The phase `collect`: rollouts with the policy as it is, for the critic or a buffer.

use std::time::Instant;

use crate::reward::Scores;
use crate::train::config::readers::{OF_EPISODES, OF_TASK, Reader};
use crate::train::config::{Drawn, KeepKey, PhasePlan, RunConfig};
use crate::train::critic::CriticBatch;
use crate::train::phase::advantages::{Advantages, move_to_turns, rewarded, token_rewards};
use crate::train::phase::{Neighbors, Phase, PhaseSpec, refused};
use crate::train::run::Run;
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::trainer::Trainer;
use crate::train::update::recipe::Recipe;
use crate::train::update::record::{Record, ScoredTokens};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::presets;
use gradus::ops::{DiscountedReturn, GroupSettings, MaskedReturn, discounted_return};
use gradus::view::ViewMut;

/// Rollouts of the collect phase draw from steps that RL never reaches.
pub(super) const COLLECT_STEPS: u64 = 1 << 40;

pub(crate) struct Collect;

impl PhaseSpec for Collect {
    const SECTION: &'static str = "rl";
    const STEPS: &'static str = "value.collect_steps";
    const READERS: &'static [&'static [Reader]] = &[
        OF_TASK,
        OF_EPISODES,
        &[
            Reader::Prompts,
            Reader::Sample,
            Reader::Turns,
            Reader::Judge,
            Reader::Keep,
            Reader::Divert,
            Reader::Store,
            Reader::Advantage,
            Reader::MicroBatch,
            Reader::Collect,
            Reader::Returns,
        ],
    ];

    fn draws(config: &RunConfig) -> Drawn {
        let steps = config.value.collect_steps as u64;
        Drawn { steps, prompts: steps * config.rl.prompts as u64, epochs: 0 }
    }

    fn check(at: &Neighbors<'_>) -> Result<()> {
        let rl = &at.plan().config.rl;
        let replays = |plan: &PhasePlan| plan.kind == Phase::Rl && plan.config.rl.replay_window > 0;
        let replayed = rl.replay_window > 0 && at.plans[at.index..].iter().any(replays);
        if at.after() != Some(Phase::ValueFit) && rl.store.is_empty() && !replayed {
            return refused(
                "`collect` gathers for `value_fit`, which does not follow, for the buffer of \
                 rl.store, which is empty, or for the rl.replay_window of a later `rl`, which there is not",
            );
        }
        if at.plan().config.value.collect_steps == 0 {
            let reason = "0, so the phase `collect` would gather nothing";
            return Err(Error::config("value.collect_steps", reason));
        }
        Ok(())
    }

    fn steps<T: Float>(trainer: &Trainer<T>) -> u64 {
        trainer.config.value.collect_steps as u64
    }

    fn step<T: Float>(run: &mut Run<T>, step: u64) -> Result<Metrics> {
        let critic = run.next_kind() == Some(Phase::ValueFit);
        let begun = Instant::now();
        let (records, scores) = run.trainer.collected_records(step, critic)?;
        let seconds = begun.elapsed().as_secs_f64();
        let mut metrics = run.trainer.take_in(&records, &scores)?;
        let tokens = records.iter().map(Record::sampled).sum();
        metrics.push(Metric::TokensPerSecond, run.figures.sampled(tokens, seconds));
        Ok(metrics)
    }

    fn probe<T: Float>(probe: &mut Probe<T>) -> Result<()> {
        let records = probe.rollouts()?;
        let settings = presets::sft().settings;
        let objective = probe.trainer.rl_objective(&settings);
        probe.update(records, objective)
    }
}

impl<T: Float> Trainer<T> {
    /// Collect step `step`: rollouts of the policy as it is, for the buffer of `rl.store`, and for the
    /// `critic` if it is to be fitted.
    ///
    /// # Errors
    /// What sampling, the reward and the model say.
    pub fn collect_step(&mut self, step: u64, critic: bool) -> Result<Metrics> {
        let (records, scores) = self.collected_records(step, critic)?;
        self.take_in(&records, &scores)
    }

    fn collected_records(&mut self, step: u64, critic: bool) -> Result<(Vec<Record>, Scores)> {
        match critic {
            true => self.gather(step),
            false => {
                let (_, records, scores) = self.collect(COLLECT_STEPS + step)?;
                Ok((records, scores))
            }
        }
    }

    /// Puts what was collected into the buffer of `rl.store`, and measures it.
    fn take_in(&mut self, records: &[Record], scores: &Scores) -> Result<Metrics> {
        let (_, groups) = self.group_advantages(records, GroupSettings::default(), 0.0)?;
        let mut metrics = self.batch_metrics(records, &groups);
        metrics.extend(self.watched(records)?);
        metrics.push(Metric::RewardsFailed, scores.failed as f64);
        metrics.push_rewards(scores);
        // The policy has not moved: a KL in the reward is 0.
        let recipe = Recipe { reward_beta: 0.0, ..self.recipe()? };
        let advantages = match self.config.rl.keep {
            KeepKey::Positive => self.advantages(records, &recipe)?.advantages,
            KeepKey::All | KeepKey::Best | KeepKey::Top | KeepKey::Threshold => {
                Advantages::PerSequence(vec![0.0; records.len()])
            }
        };
        let (_, aside) = self.sift(records, records.len(), &advantages, &mut metrics)?;
        self.put_aside(aside, &mut metrics);
        Ok(metrics)
    }

    /// Draws the rollouts of collect step `step`, and keeps what the critic learns from. What earlier
    /// steps gathered for it is not in a checkpoint; after a resume it is drawn again, as the policy has
    /// not moved and every draw is a function of the seed.
    pub(super) fn gather(&mut self, step: u64) -> Result<(Vec<Record>, Scores)> {
        if step == 0 {
            // What an earlier phase gathered was another policy's.
            self.collected = None;
        } else if self.collected.is_none() {
            self.gather(step - 1)?;
        }
        let (_, records, scores) = self.collect(COLLECT_STEPS + step)?;
        let batch = self.critic_batch(&records)?;
        let all = self.collected.get_or_insert_default();
        all.hidden.extend(batch.hidden);
        all.returns.extend(batch.returns);
        Ok((records, scores))
    }

    /// States and returns of the records that have a reward. A policy that has not moved is its own
    /// reference, so that a KL in the reward is 0 here.
    fn critic_batch(&self, records: &[Record]) -> Result<CriticBatch> {
        let records = &rewarded(records);
        let scored = ScoredTokens::of(records);
        let mut rewards = token_rewards(records, &scored);
        move_to_turns(records, &scored, &mut rewards);
        let mut returns = vec![0f32; scored.len()];
        let args = DiscountedReturn {
            reward: (&rewards).into(),
            mask: None,
            cu_seqlens: (&scored.cu_seqlens).into(),
            gamma: self.config.value.gamma,
            masked: MaskedReturn::Skip,
            baseline: None,
            returns: ViewMut::from(&mut returns),
        };
        discounted_return(&self.model.device, args)?;
        Ok(CriticBatch { hidden: self.hidden_states(records)?, returns, value: Vec::new() })
    }
}
