//! The phases of a run. Each is a loop over the trainer's verbs; a recipe is a list of phases and
//! the settings they read, never a new loop.
//!
//! | phase | what it does |
//! |---|---|
//! | `sft` | masked cross-entropy on demonstrations, all parameters |
//! | `quantize` | 4-bit weights, frozen; adapters attached |
//! | `collect` | rollouts with the policy as it is; nothing moves |
//! | `value_fit` | the critic learns the returns of the collected rollouts; the policy does not move |
//! | `rl` | rollouts, rewards, advantages, policy updates |

use crate::reward::{Scores, score};
use crate::train::config::{Control, choice};
use crate::train::optimizer::Update;
use crate::train::record::{Record, TokenClass};
use crate::train::step::Objective;
use crate::train::trainer::{Sampled, Trainer};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::presets;
use gradus::ops::{Advantage, GroupStats, PolicySettings};
use gradus::rng::{Purpose, Rng};
use gradus::view::View;

choice! {
    /// A phase of a run.
    Phase {
        /// Cross-entropy on demonstrations.
        Sft = "sft",
        /// 4-bit weights, frozen, with adapters.
        Quantize = "quantize",
        /// Rollouts without updates.
        Collect = "collect",
        /// The critic learns from them.
        ValueFit = "value_fit",
        /// Rollouts, rewards, advantages, policy updates.
        Rl = "rl",
    }
}

/// What a step reports. Names are those of the metrics files.
pub type Values = Vec<(&'static str, f64)>;

impl<T: Float> Trainer<T> {
    /// SFT steps per epoch and in total.
    pub fn sft_steps(&self) -> u64 {
        let sft = &self.config.sft;
        (self.demos().div_ceil(sft.batch) * sft.epochs) as u64
    }

    /// Demonstrations of an epoch.
    fn demos(&self) -> usize {
        match self.config.sft.demos {
            0 => self.task.demos().unwrap_or(ENDLESS_DEMOS),
            n => n,
        }
    }

    /// SFT step `step`: cross-entropy on one batch of demonstrations, averaged over its tokens.
    pub fn sft_step(&mut self, step: u64) -> Result<Values> {
        let records = self.demonstrations(self.pass * self.sft_steps() + step)?;
        let lengths: Vec<usize> = records.iter().map(|r| r.scored().count()).collect();
        let tokens: usize = lengths.iter().sum();
        let weight = vec![1.0 / tokens.max(1) as f32; records.len()];
        let advantage = vec![1.0; records.len()];
        let settings = presets::sft().settings;
        let sft = &self.config.sft;
        let decay = sft.lr_schedule.factor(step, self.sft_steps());
        // QLoRA (arXiv:2305.14314, appendix B.2) for adapters, TRL 1.16's SFTConfig for whole weights.
        let peak = sft.learning_rate.or(if self.model.has_adapters() { 2e-4 } else { 2e-5 });
        let update = Update {
            learning_rate: warmed_up(peak * decay, step, sft.warmup_steps),
            beta1: 0.9,
            beta2: sft.beta2,
            weight_decay: sft.weight_decay,
            grad_clip: sft.grad_clip,
        };
        let advantage = Advantage::PerSequence(View::from(&advantage));
        let objective = self.sft_objective(&settings);
        let backward = self.forward_backward(&records, advantage, &weight, objective)?;
        let updated = self.optim_step(&backward, update)?;
        self.guard(updated.applied, step)?;
        Ok(vec![
            ("loss", backward.figures.loss),
            ("grad_norm", updated.grad_norm),
            ("learning_rate", update.learning_rate),
            ("num_tokens", tokens as f64),
        ])
    }

    /// The demonstrations of SFT step `step`: a fresh shuffle of the demo set each epoch.
    pub fn demonstrations(&self, step: u64) -> Result<Vec<Record>> {
        let sft = &self.config.sft;
        let demos = self.demos();
        let per_epoch = demos.div_ceil(sft.batch) as u64;
        let (epoch, batch) = (step / per_epoch, (step % per_epoch) as usize);
        let mut order: Vec<u64> = (0..demos as u64).collect();
        Rng::new(self.config.seed, Purpose::Shuffle, [0, epoch as u32, 0]).shuffle(&mut order);
        let chosen = &order[batch * sft.batch..demos.min((batch + 1) * sft.batch)];
        let codec = self.task.codec();
        chosen
            .iter()
            .map(|&index| {
                let demo = self.task.demo(index)?;
                let mut record = Record::default();
                let mut answer = codec.encode_rendered(&demo.answer)?;
                answer.extend(codec.stops().first());
                record.push(&self.task.encode(&demo.prompt)?, TokenClass::Prompt, &[]);
                record.push(&answer, TokenClass::Demo, &[]);
                Ok(record)
            })
            .collect()
    }

    /// Rollouts of RL step `step`, scored. The control `shuffled_rewards` deals the rewards out at
    /// random: a policy must not learn from them.
    pub fn collect(&self, step: u64) -> Result<(Sampled, Vec<Record>, Scores)> {
        let rl = &self.config.rl;
        let first = step * rl.prompts as u64;
        let prompts =
            (first..first + rl.prompts as u64).map(|i| self.task.train_prompt(i)).collect();
        let sampled = self.sample(prompts, rl.group, step)?;
        let mut scores = score(self.reward.as_ref(), &sampled.inputs())?;
        if rl.control == Control::ShuffledRewards {
            let mut rng = Rng::new(self.config.seed, Purpose::Control, [step as u32, 0, 0]);
            rng.shuffle(&mut scores.rewards);
        }
        let mut records = sampled.records();
        records.iter_mut().zip(&scores.rewards).for_each(|(record, &r)| record.reward = r);
        Ok((sampled, records, scores))
    }

    /// Settings of the updates of RL step `step`.
    pub(crate) fn rl_update(&self, step: u64) -> Update {
        let rl = &self.config.rl;
        // TRL 1.16's GRPOConfig for whole weights; adapters take ten times that (Schulman et al. 2025,
        // "LoRA Without Regret").
        let fitting = if self.model.has_adapters() { 1e-5 } else { 1e-6 };
        let peak = match rl.control {
            Control::ZeroLr => 0.0,
            Control::None | Control::ShuffledRewards => rl.learning_rate.or(fitting),
        };
        let rate = peak * rl.lr_schedule.factor(step, rl.steps as u64);
        Update {
            learning_rate: warmed_up(rate, step, rl.warmup_steps),
            beta1: rl.beta1,
            beta2: rl.beta2,
            weight_decay: rl.weight_decay,
            grad_clip: rl.grad_clip,
        }
    }

    /// What demonstrations are scored under: the model's own distribution, whatever rollouts are
    /// sampled at.
    pub fn sft_objective<'a>(&self, settings: &'a PolicySettings) -> Objective<'a> {
        Objective { settings, temperature: 1.0, micro_batch: self.config.rl.micro_batch }
    }

    /// What rollouts are scored under: the distribution they were sampled from.
    pub fn rl_objective<'a>(&self, settings: &'a PolicySettings) -> Objective<'a> {
        let rl = &self.config.rl;
        Objective { settings, temperature: rl.temperature, micro_batch: rl.micro_batch }
    }

    /// Counts steps that were skipped because something was not finite; too many in a row end the
    /// run.
    pub(crate) fn guard(&mut self, applied: bool, step: u64) -> Result<()> {
        self.skipped = if applied { 0 } else { self.skipped + 1 };
        if self.skipped < SKIP_LIMIT {
            return Ok(());
        }
        let reason = format!(
            "{SKIP_LIMIT} steps in a row had gradients that are not finite, the last was step {step}; \
             lower the learning rate"
        );
        Err(Error::Training { reason })
    }
}

/// Demonstrations of an epoch where the task never runs out of them.
const ENDLESS_DEMOS: usize = 4_000;

/// Skipped steps in a row that a run survives.
const SKIP_LIMIT: usize = 3;

fn warmed_up(rate: f64, step: u64, warmup: usize) -> f64 {
    rate * ((step + 1) as f64 / warmup.max(1) as f64).min(1.0)
}

pub(crate) fn batch_values(records: &[Record], groups: &[GroupStats]) -> Values {
    let n = records.len().max(1) as f64;
    let scored: Vec<f64> =
        records.iter().map(|r| r.reward as f64).filter(|r| !r.is_nan()).collect();
    let mean = scored.iter().sum::<f64>() / scored.len().max(1) as f64;
    let std = groups.iter().map(|g| g.std).sum::<f64>() / groups.len().max(1) as f64;
    let degenerate = groups.iter().filter(|g| g.degenerate).count();
    let lengths: usize = records.iter().map(|r| r.scored().count()).sum();
    let clipped = records.iter().filter(|r| !r.finished).count();
    vec![
        ("reward", mean),
        ("reward_std", std),
        ("frac_reward_zero_std", degenerate as f64 / groups.len().max(1) as f64),
        ("completions/mean_length", lengths as f64 / n),
        ("completions/clipped_ratio", clipped as f64 / n),
        ("num_tokens", records.iter().map(|r| r.ids.len()).sum::<usize>() as f64),
    ]
}
