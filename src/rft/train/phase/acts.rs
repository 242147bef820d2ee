//! What the acts of an RL step do: how a batch is sampled and rewarded, what it is worth, which of it an update
//! learns from, and the update.

use crate::io::interrupt;
use crate::reward::{Scores, score_at};
use crate::train::config::{Control, CreditKey};
use crate::train::critic::{Critic, CriticBatch, CriticFit};
use crate::train::phase::advantages::{Advantages, of_all, ones, rewards_as_they_are};
use crate::train::phase::collect::COLLECT_STEPS;
use crate::train::phase::keep::Aside;
use crate::train::phase::log::{SampledTotals, StepLog};
use crate::train::phase::overlong::overlong;
use crate::train::phase::scored::crosses;
use crate::train::phase::sequence::{Coefficients, compared};
use crate::train::phase::{Phase, warmed_up, warmup_steps};
use crate::train::trainer::{Sampled, Trainer};
use crate::train::update::optimizer::Update;
use crate::train::update::recipe::Recipe;
use crate::train::update::record::Record;
use crate::train::update::sequence::SequenceKind;
use crate::train::update::step::{Backward, Objective, Scoring};
use crate::train::update::trunk::{CriticShare, CriticTerm};
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::presets::Estimator;
use gradus::ops::{GroupSettings, GroupStats, Loss, PolicySettings, seq_weights};
use gradus::rng::{Purpose, Rng};

/// Batch `e` of a step has draws that are keyed by the step and `e` shifted by so much: far above the
/// steps of `collect`, in what a key has for steps.
const EXTRA_SHIFT: u32 = 41;

/// Steps of warm-up where `rl.warmup_steps` does not say.
const RL_WARMUP: u64 = 10;

impl<T: Float> Trainer<T> {
    /// The first prompt of batch `batch` of step `step`, and the step that keys its draws.
    pub(super) fn place(&self, step: u64, batch: u64) -> (u64, u64) {
        let step = step + (batch << EXTRA_SHIFT);
        (self.before.prompts + step * self.config.rl.prompts as u64, self.before.steps + step)
    }

    /// Completions of the prompts of batch `batch` of step `step`.
    pub(super) fn sample_batch(&self, step: u64, batch: u64) -> Result<Sampled> {
        let rows = self.rows(step, batch)?;
        let each = rows.iter().copied();
        let prompts = match crosses(&self.config)? {
            true => each.map(|i| self.task.contexts(i)).collect::<Result<Vec<_>>>()?.concat(),
            false => each.map(|i| self.task.train_prompt(i)).collect(),
        };
        self.sample_rows(prompts, &rows, (step, batch))
    }

    /// Scores of what was sampled, less what long completions lose. The control `shuffled_rewards` deals them
    /// out at random: a policy must not learn from them.
    pub(super) fn reward_batch(&self, step: u64, batch: u64, sampled: &Sampled) -> Result<Scores> {
        let rl = &self.config.rl;
        let (inputs, groups) = (sampled.inputs(), sampled.groups());
        let progress = self.progress(step);
        let judged = sampled.judged(self.reward.as_ref());
        let mut scores = score_at(&judged, &inputs, &groups, progress)?;
        let longest = self.most_sampled();
        let penalty = rl.overlong_penalty.or(1.0);
        for (reward, rollout) in scores.rewards.iter_mut().zip(sampled.rollouts.iter().flatten()) {
            let length = rollout.begun + rollout.sampled();
            *reward -= overlong(length, longest, rl.overlong_buffer, penalty);
        }
        self.deal_out(&mut scores.rewards, self.place(step, batch).1);
        Ok(scores)
    }

    /// How much of the phase is done at `step`: 0 in its first step, 1 in its last.
    fn progress(&self, step: u64) -> f64 {
        let (step, steps) = match step.checked_sub(COLLECT_STEPS) {
            Some(step) => (step, self.config.value.collect_steps),
            None => (step, self.config.rl.steps),
        };
        match steps {
            0 | 1 => 1.0,
            steps => (step as f64 / (steps - 1) as f64).min(1.0),
        }
    }

    /// The records of what was sampled.
    pub(super) fn records_of(
        &self,
        step: u64,
        batch: u64,
        sampled: &Sampled,
        scores: &Scores,
    ) -> Result<Vec<Record>> {
        let rows = self.rows(step, batch)?;
        // Under `info_nce` a row has a prompt for each of its contexts.
        let contexts = sampled.prompts.len() / rows.len();
        let mut records = sampled.records();
        let judged = scores.rewards.iter().zip(&scores.feedback);
        let groups = batch as u32 * sampled.prompts.len() as u32;
        let mut turns = match self.config.env.credit {
            CreditKey::Episode => Vec::new(),
            CreditKey::Turn => sampled.turns(),
        }
        .into_iter();
        for (record, (&reward, feedback)) in records.iter_mut().zip(judged) {
            record.reward = reward;
            record.feedback = feedback.clone();
            record.row = rows[record.group as usize / contexts];
            record.version = self.version;
            record.turns = turns.next().unwrap_or_default();
            // All batches of a step have as many prompts.
            record.group += groups;
        }
        self.score_beginnings(&mut records)?;
        Ok(records)
    }

    /// Under the control `shuffled_rewards` deals the rewards of a step out at random.
    pub(super) fn deal_out(&self, rewards: &mut [f32], step: u64) {
        if self.config.rl.control == Control::ShuffledRewards {
            let words = [step as u32, 0, (step >> EXTRA_SHIFT) as u32];
            Rng::new(self.config.seed, Purpose::Control, words).shuffle(rewards);
        }
    }

    /// What else an update has to know of the records: groups of earlier batches, behind them, and the
    /// reference's log-probs, if a KL is measured to it.
    pub(super) fn recall(
        &mut self,
        step: u64,
        recipe: &Recipe,
        records: &mut Vec<Record>,
        log: &mut StepLog,
    ) -> Result<()> {
        self.replay(step, records, &mut log.metrics)?;
        match recipe.needs_reference() {
            true => self.score_reference(records),
            false => Ok(()),
        }
    }

    /// Advantages of `records`, and what else is known of them then.
    pub(super) fn advantages(&mut self, records: &[Record], recipe: &Recipe) -> Result<Estimated> {
        // Statistics of the groups are of interest whoever the advantages come from.
        let settings = match recipe.estimator {
            Estimator::Group(settings) => settings,
            Estimator::Gae | Estimator::Reward | Estimator::One => GroupSettings::default(),
        };
        let (grouped, groups) = self.group_advantages(records, settings, recipe.reward_beta)?;
        let (advantages, critic_batch) = match recipe.estimator {
            Estimator::Group(_) => (Advantages::PerSequence(grouped), None),
            Estimator::Gae => {
                let (tokens, batch) = self.gae_advantages(records, recipe.reward_beta)?;
                (Advantages::PerToken(tokens), Some(batch))
            }
            Estimator::Reward => {
                let rewards = rewards_as_they_are(records, recipe.reward_beta);
                (Advantages::PerSequence(rewards), None)
            }
            Estimator::One => (Advantages::PerSequence(ones(records)), None),
        };
        let mut advantages = advantages;
        advantages.clamp(recipe.advantage_clamp);
        Ok(Estimated { advantages, groups, critic_batch })
    }

    /// The batch of the updates, of `records` of which the first `fresh` are the step's own: what is kept, with
    /// weights, without what no update can learn from.
    pub(super) fn batch(
        &self,
        records: Vec<Record>,
        fresh: usize,
        estimated: &Estimated,
        recipe: &Recipe,
        log: &mut StepLog,
    ) -> Result<RlBatch> {
        let own = &records[..fresh];
        log.metrics.extend(self.batch_metrics(own, &estimated.groups[..groups(own)]));
        log.metrics.extend(self.watched(own)?);
        log.sampled = SampledTotals::of(&records);
        let (kept, aside) = self.sift(&records, fresh, &estimated.advantages, &mut log.metrics)?;
        let updates = if kept.contains(&true) { self.config.rl.updates_per_batch } else { 0 };
        let mut batch = self.kept(records, estimated, recipe, &kept)?;
        (batch.updates, batch.aside) = (updates, aside);
        Ok(batch)
    }

    /// The records that are kept, with weights.
    fn kept(
        &self,
        records: Vec<Record>,
        estimated: &Estimated,
        recipe: &Recipe,
        kept: &[bool],
    ) -> Result<RlBatch> {
        let on_trunk = recipe.value_coef > 0.0;
        let weight = vec![1.0; records.len()];
        let of_critic = estimated.critic_batch.as_ref().filter(|_| on_trunk);
        let critic = of_critic.map(|batch| {
            [&batch.returns, &batch.value].map(|column| of_all(&records, column.clone()))
        });
        let advantages = estimated.advantages.clone();
        let mut batch = RlBatch {
            records,
            advantages,
            weight,
            critic,
            updates: 0,
            aside: Aside::default(),
            moved: None,
        };
        batch.keep(kept);
        // What is left out here counts as a sequence, and its tokens do not: masked completions, and
        // those without a reward under losses that do not read advantages alone.
        let masks = self.config.rl.mask_truncated_completions;
        let blind = on_trunk || recipe.settings.loss == Loss::CrossEntropy;
        let stays = |r: &Record| (r.finished || !masks) && !(blind && r.reward.is_nan());
        let stays: Vec<bool> = batch.records.iter().map(stays).collect();
        let length = |(r, stays): (&Record, &bool)| *stays as i64 * r.scored().count() as i64;
        let lengths: Vec<i64> = batch.records.iter().zip(&stays).map(length).collect();
        let weight = seq_weights(recipe.aggregation, &lengths)?;
        batch.weight = weight.into_iter().map(|w| w as f32).collect();
        batch.keep(&stays);
        self.weigh_batch(recipe, &mut batch.records)?;
        if let Some(loss) = &recipe.sequence {
            let more = if loss.kind == SequenceKind::InfoNce {
                Some(self.matrices(&batch.records)?)
            } else if !self.config.rl.book.is_empty() {
                Some(self.with_book(&batch.records)?)
            } else {
                None
            };
            if let Some(records) = more {
                batch.weight = vec![1.0; records.len()];
                batch.advantages = Advantages::PerSequence(vec![0.0; records.len()]);
                batch.records = records;
            }
            batch.keep(&compared(loss, &batch.records));
        } else if recipe.settings.vanishes_at_zero_advantage()
            && recipe.covariance.is_none()
            && !on_trunk
        {
            batch.drop_zero_advantage();
        }
        Ok(batch)
    }

    /// The loss of the batch under the policy as it is, and its gradient.
    pub(super) fn loss(
        &mut self,
        step: u64,
        recipe: &Recipe,
        batch: &mut RlBatch,
    ) -> Result<Backward> {
        let first = batch.moved.is_none();
        self.weigh_update(recipe, batch, first)?;
        if let Some(rule) = recipe.covariance {
            self.choose_tokens(rule, recipe, batch)?;
        }
        let (mut compared, dropout) = (None, self.dropout(Phase::Rl, step));
        if let Some(loss) = &recipe.sequence {
            let Coefficients { advantages, loss, preferred } =
                self.compare(loss, &mut batch.records, (first, dropout))?;
            batch.advantages = advantages;
            compared = Some((loss, preferred));
        }
        let (records, advantage) = (&batch.records, batch.advantages.view());
        let critic = self.critic.as_ref().zip(batch.critic.as_ref());
        let critic = critic.map(|(critic, [returns, value])| CriticTerm {
            head: &critic.head,
            returns,
            value,
            clip: recipe.value_clip,
            weight: recipe.value_coef / returns.len().max(1) as f64,
        });
        let objective = Objective { critic, dropout, ..self.rl_objective(&recipe.settings) };
        let mut backward = self.forward_backward(records, advantage, &batch.weight, objective)?;
        if let Some((loss, preferred)) = compared {
            (backward.figures.loss, backward.figures.preferred) = (loss, preferred);
        }
        Ok(backward)
    }

    /// One update. From the first on the policy has moved, and the step is finished before a signal is heard.
    pub(super) fn update(
        &mut self,
        step: u64,
        recipe: &Recipe,
        estimated: &Estimated,
        backward: Backward,
        batch: &mut RlBatch,
        log: &mut StepLog,
    ) -> Result<()> {
        batch.moved.get_or_insert_with(interrupt::hold);
        let updated = self.optim_step(&backward, self.rl_update(step))?;
        self.guard(updated.applied, step)?;
        let fit = self.update_critic(recipe, estimated, backward.critic)?;
        log.updated(backward.figures, updated, fit);
        Ok(())
    }

    /// One update of the critic, if there is one: with its share of the policy's update, or by itself.
    fn update_critic(
        &mut self,
        recipe: &Recipe,
        estimated: &Estimated,
        share: CriticShare,
    ) -> Result<Option<CriticFit>> {
        let (device, rate) = (&self.model.device, self.config.value.learning_rate);
        let (Some(critic), Some(batch)) = (&mut self.critic, &estimated.critic_batch) else {
            return Ok(None);
        };
        if recipe.value_coef == 0.0 {
            return critic.update(device, batch, rate, recipe.value_clip);
        }
        if share.gradient.is_empty() {
            return Ok(None);
        }
        critic.step(device, &share.gradient, rate)?;
        Ok(Some(Critic::fit(batch, share.loss / recipe.value_coef)))
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
        let steps = rl.steps as u64;
        let rate = peak * rl.lr_schedule.factor(step, steps);
        let warmup = warmup_steps(rl.warmup_steps, RL_WARMUP, steps);
        Update {
            learning_rate: warmed_up(rate, step, warmup),
            beta1: rl.beta1,
            beta2: rl.beta2,
            weight_decay: rl.weight_decay,
            grad_clip: rl.grad_clip,
        }
    }

    /// What rollouts are scored under: the distribution they were sampled from.
    pub fn rl_objective<'a>(&self, settings: &'a PolicySettings) -> Objective<'a> {
        let rl = &self.config.rl;
        Objective {
            settings,
            temperature: rl.temperature,
            micro_batch: rl.sequences(),
            micro_batch_tokens: usize::MAX,
            shared: rl.shared_prompts,
            shared_tokens: self.shared_tokens(),
            recompute: self.recomputes(),
            critic: None,
            dropout: None,
        }
    }

    /// How log-probs of rollouts are computed again.
    pub(crate) fn scoring(&self) -> Scoring {
        let rl = &self.config.rl;
        Scoring {
            temperature: rl.temperature,
            micro_batch: rl.sequences(),
            shared: rl.shared_prompts,
            dropout: None,
        }
    }
}

/// What an estimator makes of a batch.
pub(super) struct Estimated {
    pub advantages: Advantages,
    groups: Vec<GroupStats>,
    /// What the critic learns from, if there is one.
    critic_batch: Option<CriticBatch>,
}

/// Records with what goes with them.
pub(super) struct RlBatch {
    pub records: Vec<Record>,
    pub advantages: Advantages,
    /// One for each record; they hold the normalizer of the whole batch.
    weight: Vec<f32>,
    /// Returns and values of each scored token, for a critic that moves the trunk.
    critic: Option<[Vec<f32>; 2]>,
    /// Updates that learn from them.
    pub updates: usize,
    /// What goes into buffers at the end of the step.
    pub aside: Aside,
    /// Holds signals back once the policy has moved.
    pub moved: Option<interrupt::Held>,
}

impl RlBatch {
    /// Leaves out the records whose advantages are all 0: under a loss that vanishes there their
    /// gradient is 0. The weights, which hold the normalizer, were made from all of them.
    fn drop_zero_advantage(&mut self) {
        let tokens = self.advantages.of_tokens(&self.records);
        let (mut kept, mut first) = (Vec::new(), 0);
        for record in &self.records {
            let end = first + record.scored().count();
            kept.push(tokens[first..end].iter().any(|&a| a != 0.0));
            first = end;
        }
        self.keep(&kept);
    }

    /// Leaves out the records whose flag is not set.
    fn keep(&mut self, kept: &[bool]) {
        let spread = |r: (&Record, &bool)| std::iter::repeat_n(*r.1, r.0.scored().count());
        let of_tokens: Vec<bool> = self.records.iter().zip(kept).flat_map(spread).collect();
        match &mut self.advantages {
            Advantages::PerSequence(a) => retain(a, kept),
            Advantages::PerToken(a) => retain(a, &of_tokens),
        }
        self.critic.iter_mut().flatten().for_each(|column| retain(column, &of_tokens));
        retain(&mut self.weight, kept);
        retain(&mut self.records, kept);
    }
}

/// How many groups there are.
pub(super) fn groups(records: &[Record]) -> usize {
    records.chunk_by(|a, b| a.group == b.group).count()
}

fn retain<E>(of: &mut Vec<E>, kept: &[bool]) {
    let mut flags = kept.iter();
    of.retain(|_| *flags.next().unwrap_or(&true));
}
