//! The phase `rl`, a step from top to bottom: sample, reward, advantages, updates, metrics.
//!
//! [`Trainer::collect`] draws completions and asks the reward, [`Trainer::rl_step`] learns from them.
//! What one update computes is in [`crate::train::update::step`].

use std::time::Instant;

use crate::io::interrupt;
use crate::reward::{Scores, score_groups};
use crate::train::config::{Control, Drawn, RunConfig, SourceKey};
use crate::train::critic::{Critic, CriticBatch, CriticFit};
use crate::train::infer::eval::Evaluation;
use crate::train::phase::advantages::{Advantages, of_all, ones, rewards_as_they_are};
use crate::train::phase::overlong::overlong;
use crate::train::phase::scored::crosses;
use crate::train::phase::sequence::compared;
use crate::train::phase::{Neighbors, Phase, PhaseSpec, batch_metrics, of_section, warmed_up};
use crate::train::run::Run;
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::run::progress::line;
use crate::train::select::{Candidate, spread};
use crate::train::trainer::{Sampled, Trainer};
use crate::train::update::dropout::check_dropout;
use crate::train::update::optimizer::{Update, Updated};
use crate::train::update::recipe::Recipe;
use crate::train::update::record::{Record, ScoredTokens};
use crate::train::update::sequence::SequenceKind;
use crate::train::update::step::{BatchFigures, Objective, Scoring};
use crate::train::update::trunk::{CriticShare, CriticTerm};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::presets::Estimator;
use gradus::ops::{GroupSettings, GroupStats, Loss, PolicySettings, seq_weights};
use gradus::rng::{Purpose, Rng};

/// Batch `e` of a step has draws that are keyed by the step and `e` shifted by so much: far above the
/// steps of `collect`, in what a key has for steps.
const EXTRA_SHIFT: u32 = 41;

pub(crate) struct Rl;

impl PhaseSpec for Rl {
    const SECTION: &'static str = "rl";

    fn reads(key: &str) -> bool {
        // The optimizer outlives a phase; the other two are those of other kinds.
        let others = ["rl.optim", "value.collect_steps", "value.fit_steps"].contains(&key);
        let sections = ["rl", "value", "task", "data", "reward", "eval"];
        !others && (key == "lora.dropout" || of_section(key, &sections))
    }

    fn check(at: &Neighbors<'_>) -> Result<()> {
        let config = &at.plan().config;
        check_dropout(config, &Recipe::of(config, 1.0)?)
    }

    fn draws(config: &RunConfig) -> Drawn {
        let steps = config.rl.steps as u64;
        Drawn { steps, prompts: steps * config.rl.prompts as u64, epochs: 0 }
    }

    fn steps<T: Float>(trainer: &Trainer<T>) -> u64 {
        trainer.config.rl.steps as u64
    }

    fn begin<T: Float>(run: &mut Run<T>) {
        if run.figures.rl_steps > 0 {
            return;
        }
        let now = run.elapsed();
        run.figures.rl_start = now;
        run.figures.accuracy.extend(run.figures.before_rl().map(|accuracy| (now, accuracy)));
    }

    /// A step, and an evaluation now and then. If that is interrupted, the metrics of the step, whose
    /// update is done, wait in the run's figures.
    fn step<T: Float>(run: &mut Run<T>, step: u64) -> Result<Metrics> {
        let mut metrics = match run.figures.updated.take() {
            Some(metrics) => metrics,
            None => run.rl_step(step)?,
        };
        let config = &run.trainer.config;
        let (done, every) = (step + 1, config.eval.every as u64);
        if done.is_multiple_of(every) || done == config.rl.steps as u64 {
            let evaluation = run.trainer.evaluate();
            if let Err(Error::Interrupted { .. }) = evaluation {
                run.figures.updated = Some(metrics.clone());
            }
            let Evaluation { accuracy, vote, .. } = evaluation?;
            // A score over nothing is null in the metrics files.
            metrics.push(Metric::EvalAccuracy, accuracy.unwrap_or(f64::NAN));
            if let Some(vote) = vote {
                metrics.push(Metric::EvalMajority, vote.majority);
                metrics.push(Metric::EvalBest, vote.best);
            }
            let now = run.elapsed();
            run.figures.accuracy.extend(accuracy.map(|accuracy| (now, accuracy)));
        }
        Ok(metrics)
    }

    fn probe<T: Float>(probe: &mut Probe<T>) -> Result<()> {
        let mut records = match probe.trainer.config.rl.source {
            SourceKey::Rollout => probe.rollouts()?,
            SourceKey::Data => probe.trainer.longest_answers()?,
        };
        let recipe = probe.trainer.recipe()?;
        if recipe.needs_reference() {
            probe.trainer.hold_reference()?;
            probe.count_state();
        }
        for record in &mut records {
            record.ref_logp = vec![0.0; record.ids.len()];
            record.selected = vec![0; record.ids.len()];
        }
        let dropout = probe.trainer.dropout(Phase::Rl, 0);
        let objective = Objective { dropout, ..probe.trainer.rl_objective(&recipe.settings) };
        probe.update(records, objective)?;
        probe.trainer.hold_inner()?;
        probe.count_state();
        Ok(())
    }
}

impl<T: Float> Run<T> {
    /// RL step `step` with what the run keeps of it.
    fn rl_step(&mut self, step: u64) -> Result<Metrics> {
        let begun = Instant::now();
        let (records, scores) = match self.trainer.config.rl.source {
            SourceKey::Rollout => {
                let (_, records, scores) = self.trainer.collect(step)?;
                (records, scores)
            }
            SourceKey::Data => (self.trainer.scored_answers(step)?, Scores::default()),
        };
        let seconds = begun.elapsed().as_secs_f64();
        let tokens: usize = records.iter().map(Record::sampled).sum();
        // How many batches there are, where it may be more than one.
        let rl = &self.trainer.config.rl;
        let batches = (rl.dynamic_sampling > 0) as usize * groups(&records) / rl.prompts;
        let mut metrics = self.trainer.rl_step(step, records)?;
        metrics.push(Metric::RewardsFailed, scores.failed as f64);
        metrics.push_parts(scores.part_means());
        if batches > 0 {
            metrics.push(Metric::SampledBatches, batches as f64);
        }
        metrics.push(Metric::TokensPerSecond, tokens as f64 / seconds.max(1e-9));
        let value = |metric| metrics.get(metric).unwrap_or(f64::NAN);
        let (reward, flat_share) = (value(Metric::Reward), value(Metric::FracRewardZeroStd));
        let deviation = value(Metric::RatioMaxAbsDev);
        let now = self.elapsed();
        let figures = &mut self.figures;
        figures.rollout_tokens += tokens as f64;
        figures.rollout_seconds += seconds;
        figures.first_ratio_max_abs_dev = figures.first_ratio_max_abs_dev.max(deviation);
        // A step whose rewards all failed has no mean.
        figures.reward.extend((!reward.is_nan()).then_some((now, reward)));
        figures.rl_steps += 1;
        // Equal rewards take nothing from an objective that does not compare a prompt's samples.
        let flat_share = if self.trainer.recipe()?.compares_samples() { flat_share } else { 0.0 };
        figures.flat_steps += (flat_share >= 1.0) as u64;
        if let Some(advice) = self.flat.see(flat_share, reward) {
            line(&advice);
        }
        Ok(metrics)
    }
}

impl<T: Float> Trainer<T> {
    /// Rollouts of step `step` of a phase, scored; prompts and draws go on behind those of earlier
    /// phases. With `rl.dynamic_sampling` there are further batches until the rewards of enough prompts
    /// differ.
    pub fn collect(&self, step: u64) -> Result<(Sampled, Vec<Record>, Scores)> {
        let rl = &self.config.rl;
        let (mut sampled, mut records, mut scores) = self.collect_batch(step, 0)?;
        for extra in 1..=rl.dynamic_sampling as u64 {
            let unknown = vec![0.0; records.len()];
            if spread(&Candidate::all(&records, &unknown)) >= rl.prompts {
                break;
            }
            let (later, mut more, others) = self.collect_batch(step, extra)?;
            let groups = sampled.prompts.len() as u32;
            more.iter_mut().for_each(|record| record.group += groups);
            sampled.append(later);
            records.append(&mut more);
            scores.append(others);
        }
        Ok((sampled, records, scores))
    }

    /// Batch `extra` of step `step`. The control `shuffled_rewards` deals the rewards out at random: a
    /// policy must not learn from them.
    fn collect_batch(&self, step: u64, extra: u64) -> Result<(Sampled, Vec<Record>, Scores)> {
        let rl = &self.config.rl;
        let step = step + (extra << EXTRA_SHIFT);
        let first = self.before.prompts + step * rl.prompts as u64;
        let step = self.before.steps + step;
        let rows = first..first + rl.prompts as u64;
        let prompts = match crosses(&self.config)? {
            true => rows.map(|i| self.task.contexts(i)).collect::<Result<Vec<_>>>()?.concat(),
            false => rows.map(|i| self.task.train_prompt(i)).collect(),
        };
        let sampled = self.sample(prompts, rl.group, step)?;
        let mut scores = score_groups(self.reward.as_ref(), &sampled.inputs(), &sampled.groups())?;
        let longest = self.max_new_tokens();
        let penalty = rl.overlong_penalty.or(1.0);
        for (reward, rollout) in scores.rewards.iter_mut().zip(sampled.rollouts.iter().flatten()) {
            *reward -= overlong(rollout.tokens.len(), longest, rl.overlong_buffer, penalty);
        }
        self.deal_out(&mut scores.rewards, step);
        let mut records = sampled.records();
        let judged = scores.rewards.iter().zip(&scores.feedback);
        for (record, (&reward, feedback)) in records.iter_mut().zip(judged) {
            record.reward = reward;
            record.feedback = feedback.clone();
            record.row = first + record.group as u64;
            record.version = self.version;
        }
        Ok((sampled, records, scores))
    }

    /// Under the control `shuffled_rewards` deals the rewards of a step out at random.
    pub(super) fn deal_out(&self, rewards: &mut [f32], step: u64) {
        if self.config.rl.control == Control::ShuffledRewards {
            let words = [step as u32, 0, (step >> EXTRA_SHIFT) as u32];
            Rng::new(self.config.seed, Purpose::Control, words).shuffle(rewards);
        }
    }

    /// RL step `step` on collected records: advantages, then `updates_per_batch` updates.
    ///
    /// # Errors
    /// `Training` after repeated steps that are not finite; what the model and the device say.
    pub fn rl_step(&mut self, step: u64, mut records: Vec<Record>) -> Result<Metrics> {
        let recipe = self.recipe()?;
        check_dropout(&self.config, &recipe)?;
        let (fresh, groups) = (records.len(), groups(&records));
        let mut metrics = Metrics::default();
        // 1. Groups of earlier batches, and the reference's log-probs, if a KL is measured to it.
        self.replay(step, &mut records, &mut metrics)?;
        if recipe.needs_reference() {
            self.score_reference(&mut records)?;
        }

        // 2. Advantages.
        let estimated = self.advantages(&records, &recipe)?;
        metrics.extend(batch_metrics(&records[..fresh], &estimated.groups[..groups]));
        let sampled = SampledTotals::of(&records);

        // 3. What is kept, weights of the sequences, and the records that an update can learn from.
        let (kept, aside) = self.sift(&records, fresh, &estimated.advantages, &mut metrics)?;
        let mut batch = self.batch(records, &estimated, &recipe, &kept)?;

        // 4. Updates of the policy, and of the critic if there is one. Once the policy has moved, the
        //    step is finished before a signal is heard.
        let update = self.rl_update(step);
        let (mut first_deviation, mut last, mut fitted) = (0.0, None, None);
        let mut moved = None;
        let updates = if kept.contains(&true) { self.config.rl.updates_per_batch } else { 0 };
        for m in 0..updates {
            let (figures, updated, share) =
                self.update_policy(&recipe, &mut batch, step, update, &mut moved)?;
            if m == 0 {
                first_deviation = figures.ratio_max_abs_dev;
            }
            last = Some((figures, updated));
            fitted = self.update_critic(&recipe, &estimated, share)?.or(fitted);
        }

        let _finishing = moved.unwrap_or_else(interrupt::hold);
        self.put_aside(aside, &mut metrics);
        self.then(&mut metrics)?;

        // 5. Metrics.
        if let Some(fit) = fitted {
            metrics.push(Metric::ValueLoss, fit.loss);
            metrics.push(Metric::ExplainedVariance, fit.explained_variance);
        }
        if let Some((figures, updated)) = last {
            metrics.extend(policy_metrics(&figures, &sampled, &recipe));
            metrics.push(Metric::GradNorm, updated.grad_norm);
            metrics.push(Metric::LearningRate, update.learning_rate);
        }
        metrics.push(Metric::RatioMaxAbsDev, first_deviation);
        Ok(metrics)
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

    /// The batch of an update: records with weights, without those that it cannot learn from.
    fn batch(
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
        let mut batch = RlBatch { records, advantages, weight, critic };
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

    /// One update of the policy on the batch; `moved` holds signals back from there on.
    fn update_policy(
        &mut self,
        recipe: &Recipe,
        batch: &mut RlBatch,
        step: u64,
        update: Update,
        moved: &mut Option<interrupt::Held>,
    ) -> Result<(BatchFigures, Updated, CriticShare)> {
        self.weigh_update(recipe, batch, moved.is_none())?;
        if let Some(rule) = recipe.covariance {
            self.choose_tokens(rule, recipe, batch)?;
        }
        let (mut compared, dropout) = (None, self.dropout(Phase::Rl, step));
        if let Some(loss) = &recipe.sequence {
            let found = self.compare(loss, &mut batch.records, (moved.is_none(), dropout))?;
            batch.advantages = found.advantages;
            compared = Some((found.loss, found.preferred));
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
        moved.get_or_insert_with(interrupt::hold);
        let updated = self.optim_step(&backward, update)?;
        self.guard(updated.applied, step)?;
        Ok((backward.figures, updated, backward.critic))
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
        let rate = peak * rl.lr_schedule.factor(step, rl.steps as u64);
        Update {
            learning_rate: warmed_up(rate, step, rl.warmup_steps),
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
            micro_batch: rl.micro_batch,
            micro_batch_tokens: usize::MAX,
            shared: rl.shared_prompts,
            critic: None,
            dropout: None,
        }
    }

    /// How log-probs of rollouts are computed again.
    pub(crate) fn scoring(&self) -> Scoring {
        let rl = &self.config.rl;
        Scoring {
            temperature: rl.temperature,
            micro_batch: rl.micro_batch,
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

/// Sums over all scored tokens of all completions, before the step's updates.
struct SampledTotals {
    tokens: usize,
    entropy: f64,
    /// k3 to the reference; none without one.
    kl: Option<f64>,
}

impl SampledTotals {
    fn of(records: &[Record]) -> SampledTotals {
        let scored = ScoredTokens::of(records);
        let entropy = scored.gather(records, |r| &r.entropy).into_iter().map(f64::from).sum();
        let old = scored.gather(records, Record::old_logp);
        let k3 = |(old, reference): (&f32, f32)| {
            let k = reference as f64 - *old as f64;
            k.exp_m1() - k
        };
        let kl = scored.gather_all(records, |r| &r.ref_logp);
        let kl = kl.map(|column| old.iter().zip(column).map(k3).sum());
        SampledTotals { tokens: scored.len(), entropy, kl }
    }
}

/// Means over the tokens of all completions, under TRL's names, and over those of the update. A mean
/// over nothing is NaN, and the metrics files hold null.
fn policy_metrics(figures: &BatchFigures, sampled: &SampledTotals, recipe: &Recipe) -> Metrics {
    let (s, n, all) = (&figures.stats, figures.tokens as f64, sampled.tokens as f64);
    // Tokens that are left out have advantage 0 and are clipped on neither side.
    let (low, high) = (s.n_clip_lo as f64, s.n_clip_hi as f64);
    // A KL in the loss leaves nothing out, so that the update has seen every token that was kept.
    let kl = match recipe.settings.needs_reference() && figures.tokens == sampled.tokens {
        true => s.sum_kl[2] / all,
        false => sampled.kl.map_or(f64::NAN, |sum| sum / all),
    };
    let moved_kl = if sampled.kl.is_some() { s.sum_kl[2] / n } else { f64::NAN };
    let mut metrics = Metrics::from([
        (Metric::Loss, figures.loss),
        (Metric::Kl, kl),
        (Metric::Entropy, sampled.entropy / all),
        (Metric::ClipLow, low / all),
        (Metric::ClipHigh, high / all),
        (Metric::ClipRegion, (low + high) / all),
        (Metric::UpdateTokens, n),
        (Metric::UpdateComputed, figures.computed as f64),
        (Metric::UpdateKl, moved_kl),
        (Metric::UpdateEntropy, s.sum_entropy / n),
        (Metric::UpdateClip, (low + high) / n),
    ]);
    if let Some(preferred) = figures.preferred {
        metrics.push(Metric::RewardMargins, preferred.margin);
        metrics.push(Metric::RewardAccuracies, preferred.accuracy);
    }
    metrics
}
