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

use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::io::interrupt;
use crate::objective::presets;
use crate::ops::{
    GroupAdvantage, GroupBaseline, GroupScale, GroupSettings, GroupStats, Kl, Loss,
    group_advantage, seq_weights,
};
use crate::reward::{Scores, score};
use crate::rng::{Purpose, Rng};
use crate::train::optimizer::Update;
use crate::train::record::{Record, TokenClass};
use crate::train::step::{Figures, score_records};
use crate::train::trainer::{Sampled, Trainer};
use crate::view::{View, ViewMut};

/// A phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Supervised warm-up.
    Sft,
    /// 4-bit weights and adapters.
    Quantize,
    /// Rollouts without updates.
    Collect,
    /// Critic warm-up.
    ValueFit,
    /// Reinforcement fine-tuning.
    Rl,
}

impl Phase {
    /// The phase's name in configurations, metrics and checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Sft => "sft",
            Phase::Quantize => "quantize",
            Phase::Collect => "collect",
            Phase::ValueFit => "value_fit",
            Phase::Rl => "rl",
        }
    }

    /// The phase called `name`.
    pub fn parse(name: &str) -> Result<Phase> {
        use Phase::*;
        let all = [Sft, Quantize, Collect, ValueFit, Rl];
        all.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let known = all.map(Phase::name).join(", ");
            Error::config("phases", format!("`{name}` is not one of {known}"))
        })
    }
}

/// What a step reports. Names are those of the metrics files.
pub type Values = Vec<(&'static str, f64)>;

impl<T: Float> Trainer<T> {
    /// SFT steps per epoch and in total.
    pub fn sft_steps(&self) -> u64 {
        let sft = &self.config.sft;
        (sft.demos.div_ceil(sft.batch) * sft.epochs) as u64
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
        let decay = decayed(&sft.lr_schedule, step, self.sft_steps());
        let update = Update {
            learning_rate: warmed_up(sft.learning_rate * decay, step, sft.warmup_steps),
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: sft.weight_decay,
            grad_clip: sft.grad_clip,
        };
        let backward = self.forward_backward(&records, &advantage, &weight, &settings)?;
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
        let per_epoch = sft.demos.div_ceil(sft.batch) as u64;
        let (epoch, batch) = (step / per_epoch, (step % per_epoch) as usize);
        let mut order: Vec<u64> = (0..sft.demos as u64).collect();
        Rng::new(self.config.seed, Purpose::Shuffle, [0, epoch as u32, 0]).shuffle(&mut order);
        let chosen = &order[batch * sft.batch..sft.demos.min((batch + 1) * sft.batch)];
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
        if rl.control == "shuffled_rewards" {
            let mut rng = Rng::new(self.config.seed, Purpose::Control, [step as u32, 0, 0]);
            rng.shuffle(&mut scores.rewards);
        }
        let mut records = sampled.records(self.optimizer.t);
        records.iter_mut().zip(&scores.rewards).for_each(|(record, &r)| record.reward = r);
        Ok((sampled, records, scores))
    }

    /// RL step `step` on collected records: advantages, then `updates_per_batch` updates.
    pub fn rl_step(&mut self, step: u64, mut records: Vec<Record>) -> Result<(Values, f64)> {
        let recipe = self.preset()?;
        let (mut advantage, groups) = self.advantages(&records)?;
        let mut states = None;
        if self.config.rl.advantage == "gae" {
            let (tokens, seen) = self.gae_advantages(&records)?;
            (advantage, states) = (tokens, Some(seen));
        }
        if recipe.settings.needs_reference() {
            let (t, size) = (self.config.rl.temperature, self.config.rl.micro_batch);
            let store = |record: &mut Record, logp| record.ref_logp = logp;
            score_records(&self.model, &mut records, false, t, size, store)?;
        }
        let lengths: Vec<i64> = records.iter().map(|r| r.scored().count() as i64).collect();
        let weight = seq_weights(recipe.aggregation, &lengths)?;
        let mut weight: Vec<f32> = weight.into_iter().map(|w| w as f32).collect();
        let mut values = batch_values(&records, &groups);
        if recipe.settings.vanishes_at_zero_advantage() && advantage.len() == records.len() {
            keep_moving(&mut records, &mut advantage, &mut weight);
        }
        let update = self.rl_update(step);
        let (mut first_deviation, mut last) = (0.0, None);
        // Once the policy has moved, the step is finished before a signal is heard.
        let mut moved = None;
        for m in 0..self.config.rl.updates_per_batch {
            let backward =
                self.forward_backward(&records, &advantage, &weight, &recipe.settings)?;
            moved.get_or_insert_with(interrupt::hold);
            let updated = self.optim_step(&backward, update)?;
            self.guard(updated.applied, step)?;
            if m == 0 {
                first_deviation = backward.figures.ratio_max_abs_dev;
            }
            last = Some((backward.figures, updated));
        }
        if let (Some(critic), Some(states)) = (&mut self.critic, &states) {
            let (device, rate) = (&self.model.device, self.config.value.learning_rate);
            let (loss, explained) = critic.update(device, states, rate)?;
            values.push(("value_loss", loss));
            values.push(("explained_variance", explained));
        }
        if let Some((figures, updated)) = last {
            values.extend(policy_values(&figures));
            values.push(("grad_norm", updated.grad_norm));
            values.push(("learning_rate", update.learning_rate));
        }
        Ok((values, first_deviation))
    }
}

impl<T: Float> Trainer<T> {
    /// One advantage per record from the group's rewards.
    fn advantages(&self, records: &[Record]) -> Result<(Vec<f32>, Vec<GroupStats>)> {
        let rewards: Vec<f32> = records.iter().map(|r| r.reward).collect();
        let mut offsets = vec![0i64];
        for (i, record) in records.iter().enumerate() {
            if i + 1 == records.len() || records[i + 1].group != record.group {
                offsets.push(i as i64 + 1);
            }
        }
        let (mut advantage, mut groups) = (vec![0f32; rewards.len()], Vec::new());
        let args = GroupAdvantage {
            reward: View::from(&rewards),
            offsets: View::from(&offsets),
            length: None,
            settings: self.group_settings(),
            advantage: ViewMut::from(&mut advantage),
            groups: Some(&mut groups),
        };
        group_advantage(&self.model.device, args)?;
        Ok((advantage, groups))
    }

    fn group_settings(&self) -> GroupSettings {
        let rl = &self.config.rl;
        let baseline = match rl.advantage.as_str() {
            "loo" => GroupBaseline::LeaveOneOut,
            _ => GroupBaseline::Mean,
        };
        let scale = match rl.scale.as_str() {
            "none" => GroupScale::None,
            "batch" => GroupScale::BatchStd,
            _ => GroupScale::GroupStd,
        };
        GroupSettings { baseline, scale, ..GroupSettings::default() }
    }

    /// The configured loss.
    fn preset(&self) -> Result<presets::Preset> {
        let rl = &self.config.rl;
        let mut preset = presets::by_name(&rl.loss, self.max_new_tokens() as f64)?;
        if let Loss::PpoClip { lo, hi, .. } = &mut preset.settings.loss {
            (*lo, *hi) = (1.0 - rl.clip_low, 1.0 + rl.clip_high);
        }
        preset.settings.kl = (rl.beta > 0.0).then(|| Kl::k3(rl.beta));
        Ok(preset)
    }

    /// Settings of the updates of RL step `step`.
    pub(crate) fn rl_update(&self, step: u64) -> Update {
        let rl = &self.config.rl;
        let shape = decayed(&rl.lr_schedule, step, rl.steps as u64);
        let base = if rl.control == "zero_lr" { 0.0 } else { rl.learning_rate };
        Update {
            learning_rate: warmed_up(base * shape, step, rl.warmup_steps),
            beta1: rl.beta1,
            beta2: rl.beta2,
            weight_decay: rl.weight_decay,
            grad_clip: rl.grad_clip,
        }
    }

    /// Counts steps that were skipped because something was not finite; too many in a row end the
    /// run.
    fn guard(&mut self, applied: bool, step: u64) -> Result<()> {
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

/// Leaves out the records whose advantage is 0: their gradient is 0. The weights, which hold the
/// normaliser, were made from all of them.
fn keep_moving(records: &mut Vec<Record>, advantage: &mut Vec<f32>, weight: &mut Vec<f32>) {
    let moves: Vec<bool> = advantage.iter().map(|&a| a != 0.0).collect();
    let mut flags = moves.iter();
    records.retain(|_| *flags.next().unwrap_or(&true));
    for column in [advantage, weight] {
        let mut flags = moves.iter();
        column.retain(|_| *flags.next().unwrap_or(&true));
    }
}

/// Skipped steps in a row that a run survives.
const SKIP_LIMIT: usize = 3;

/// Factor of a schedule that ends at 0 after `total` steps.
fn decayed(schedule: &str, step: u64, total: u64) -> f64 {
    let done = step as f64 / total.max(1) as f64;
    match schedule {
        "linear" => 1.0 - done,
        "cosine" => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        _ => 1.0,
    }
}

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

/// Means over the tokens of the update.
fn policy_values(figures: &Figures) -> Values {
    // Without a token in the update a mean is 0/0, and the metrics files hold null.
    let (s, n) = (&figures.stats, figures.tokens as f64);
    let (low, high) = (s.n_clip_lo as f64 / n, s.n_clip_hi as f64 / n);
    vec![
        ("loss", figures.loss),
        ("kl", s.sum_kl[2] / n),
        ("entropy", s.sum_entropy / n),
        ("clip_ratio/low_mean", low),
        ("clip_ratio/high_mean", high),
        ("clip_ratio/region_mean", low + high),
    ]
}
