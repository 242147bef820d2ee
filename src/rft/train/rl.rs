//! One RL step on collected records, top to bottom: the reference, advantages, updates, figures.

use crate::io::interrupt;
use crate::train::chosen::{Candidate, choose};
use crate::train::optimizer::{Update, Updated};
use crate::train::phases::{Values, batch_values};
use crate::train::recipe::Recipe;
use crate::train::record::{Record, ScoredTokens};
use crate::train::step::{Figures, score_records};
use crate::train::trainer::Trainer;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::presets::{Covariance, Estimator};
use gradus::ops::{
    Advantage, GroupAdvantage, GroupSettings, GroupStats, group_advantage, seq_weights,
};
use gradus::rng::{Purpose, Rng};
use gradus::view::{View, ViewMut};

/// Advantages of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Advantages {
    /// One for each record.
    PerSequence(Vec<f32>),
    /// One for each scored token.
    PerToken(Vec<f32>),
}

impl Advantages {
    /// As the loss takes them.
    pub fn view(&self) -> Advantage<'_, f32> {
        match self {
            Advantages::PerSequence(a) => Advantage::PerSequence(View::from(a)),
            Advantages::PerToken(a) => Advantage::PerToken(View::from(a)),
        }
    }

    /// The advantage of each scored token.
    fn of_tokens(&self, records: &[Record]) -> Vec<f32> {
        match self {
            Advantages::PerToken(a) => a.clone(),
            Advantages::PerSequence(a) => {
                let each = |(r, &a): (&Record, &f32)| std::iter::repeat_n(a, r.scored().count());
                records.iter().zip(a).flat_map(each).collect()
            }
        }
    }
}

/// Records with what goes with them.
struct Batch {
    records: Vec<Record>,
    advantages: Advantages,
    weight: Vec<f32>,
}

impl Batch {
    /// Leaves out the records whose advantages are all 0: under a loss that vanishes there their
    /// gradient is 0. The weights, which hold the normalizer, were made from all of them.
    fn keep_moving(&mut self) {
        let tokens = self.advantages.of_tokens(&self.records);
        let (mut moves, mut first) = (Vec::new(), 0);
        for record in &self.records {
            let end = first + record.scored().count();
            moves.push(tokens[first..end].iter().any(|&a| a != 0.0));
            first = end;
        }
        self.keep(&moves);
    }

    /// Leaves out the records whose flag is not set.
    fn keep(&mut self, kept: &[bool]) {
        let spread = |r: (&Record, &bool)| std::iter::repeat_n(*r.1, r.0.scored().count());
        let of_tokens: Vec<bool> = self.records.iter().zip(kept).flat_map(spread).collect();
        match &mut self.advantages {
            Advantages::PerSequence(a) => retain(a, kept),
            Advantages::PerToken(a) => retain(a, &of_tokens),
        }
        retain(&mut self.weight, kept);
        retain(&mut self.records, kept);
    }
}

fn retain<E>(of: &mut Vec<E>, kept: &[bool]) {
    let mut flags = kept.iter();
    of.retain(|_| *flags.next().unwrap_or(&true));
}

impl<T: Float> Trainer<T> {
    /// RL step `step` on collected records: advantages, then `updates_per_batch` updates.
    ///
    /// # Errors
    /// `Training` after repeated steps that are not finite; what the model and the device say.
    pub fn rl_step(&mut self, step: u64, mut records: Vec<Record>) -> Result<(Values, f64)> {
        let recipe = self.recipe()?;
        if recipe.needs_reference() {
            self.score_reference(&mut records)?;
        }
        // Statistics of the groups are of interest whoever the advantages come from.
        let (group, critic) = match recipe.estimator {
            Estimator::Group(settings) => (settings, false),
            Estimator::Gae => (GroupSettings::default(), true),
        };
        let (grouped, groups) = self.group_advantages(&records, group, recipe.reward_beta)?;
        let (advantages, states) = match critic {
            false => (Advantages::PerSequence(grouped), None),
            true => {
                let (tokens, states) = self.gae_advantages(&records, recipe.reward_beta)?;
                (Advantages::PerToken(tokens), Some(states))
            }
        };
        // A masked completion counts as a sequence, and its tokens do not.
        let masks = self.config.rl.mask_truncated_completions;
        let length = |r: &Record| if masks && !r.finished { 0 } else { r.scored().count() as i64 };
        let lengths: Vec<i64> = records.iter().map(length).collect();
        let weight = seq_weights(recipe.aggregation, &lengths)?;
        let weight: Vec<f32> = weight.into_iter().map(|w| w as f32).collect();
        let mut values = batch_values(&records, &groups);
        let sampled = SampledFigures::of(&records);
        let mut batch = Batch { records, advantages, weight };
        if masks {
            let finished: Vec<bool> = batch.records.iter().map(|r| r.finished).collect();
            batch.keep(&finished);
        }
        if recipe.settings.vanishes_at_zero_advantage() && recipe.covariance.is_none() {
            batch.keep_moving();
        }
        let update = self.rl_update(step);
        let (mut first_deviation, mut last, mut fitted) = (0.0, None, None);
        // Once the policy has moved, the step is finished before a signal is heard.
        let mut moved = None;
        for m in 0..self.config.rl.updates_per_batch {
            let (figures, updated) =
                self.update_policy(&recipe, &mut batch, step, update, &mut moved)?;
            if m == 0 {
                first_deviation = figures.ratio_max_abs_dev;
            }
            last = Some((figures, updated));
            if let (Some(critic), Some(states)) = (&mut self.critic, &states) {
                let (device, rate) = (&self.model.device, self.config.value.learning_rate);
                fitted = critic.update(device, states, rate, recipe.value_clip)?.or(fitted);
            }
        }
        if let Some((loss, explained)) = fitted {
            values.push(("value_loss", loss));
            values.push(("explained_variance", explained));
        }
        if let Some((figures, updated)) = last {
            values.extend(policy_values(&figures, &sampled, &recipe));
            values.push(("grad_norm", updated.grad_norm));
            values.push(("learning_rate", update.learning_rate));
        }
        Ok((values, first_deviation))
    }

    /// One update of the policy on the batch; `moved` holds signals back from there on.
    fn update_policy(
        &mut self,
        recipe: &Recipe,
        batch: &mut Batch,
        step: u64,
        update: Update,
        moved: &mut Option<interrupt::Held>,
    ) -> Result<(Figures, Updated)> {
        if let Some(rule) = recipe.covariance {
            self.choose_tokens(rule, recipe, batch)?;
        }
        let (records, advantage) = (&batch.records, batch.advantages.view());
        let objective = self.rl_objective(&recipe.settings);
        let backward = self.forward_backward(records, advantage, &batch.weight, objective)?;
        moved.get_or_insert_with(interrupt::hold);
        let updated = self.optim_step(&backward, update)?;
        self.guard(updated.applied, step)?;
        Ok((backward.figures, updated))
    }

    /// Marks the tokens that the loss treats by their covariance, which is the one under the policy
    /// that is about to be updated.
    fn choose_tokens(&self, rule: Covariance, recipe: &Recipe, batch: &mut Batch) -> Result<()> {
        let rl = &self.config.rl;
        let columns =
            score_records(&self.model, &batch.records, true, rl.temperature, rl.micro_batch)?;
        let mut advantage = batch.advantages.of_tokens(&batch.records).into_iter();
        let mut tokens = Vec::new();
        for (record, column) in batch.records.iter().zip(&columns) {
            for (t, a) in record.scored().zip(advantage.by_ref()) {
                let (logp, old_logp) = (column[t] as f64, record.old_logp[t] as f64);
                tokens.push(Candidate { advantage: a as f64, logp, old_logp });
            }
        }
        // Updates are counted, so that each draws its own tokens, also after a resume.
        let t = self.optimizer.t;
        let words = [1 << 31, t as u32, (t >> 32) as u32];
        let mut rng = Rng::new(self.config.seed, Purpose::Control, words);
        let mut chosen = choose(rule, &recipe.settings.loss, &tokens, &mut rng).into_iter();
        for record in &mut batch.records {
            let scored: Vec<usize> = record.scored().collect();
            let marks = scored.into_iter().zip(chosen.by_ref());
            match rule {
                Covariance::Clip { .. } => {
                    record.token_weight = vec![1.0; record.ids.len()];
                    marks.for_each(|(t, chosen)| record.token_weight[t] = !chosen as u8 as f32);
                }
                Covariance::Kl { .. } => {
                    record.selected = vec![0; record.ids.len()];
                    marks.for_each(|(t, chosen)| record.selected[t] = chosen as u8);
                }
            }
        }
        Ok(())
    }

    /// One advantage per record from the group's rewards, less `beta` times the sequence's KL.
    fn group_advantages(
        &self,
        records: &[Record],
        settings: GroupSettings,
        beta: f64,
    ) -> Result<(Vec<f32>, Vec<GroupStats>)> {
        let held = |r: &Record| match beta > 0.0 {
            true => (r.reward as f64 - beta * sequence_kl(r)) as f32,
            false => r.reward,
        };
        let rewards: Vec<f32> = records.iter().map(held).collect();
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
            settings,
            advantage: ViewMut::from(&mut advantage),
            groups: Some(&mut groups),
        };
        group_advantage(&self.model.device, args)?;
        Ok((advantage, groups))
    }
}

/// Σ log π − log π_ref over the scored tokens, as they were sampled.
fn sequence_kl(record: &Record) -> f64 {
    record.scored().map(|t| record.old_logp[t] as f64 - record.ref_logp[t] as f64).sum()
}

/// Sums over all scored tokens of all completions, as they were sampled.
struct SampledFigures {
    tokens: usize,
    entropy: f64,
    /// k3 to the reference; none without one.
    kl: Option<f64>,
}

impl SampledFigures {
    fn of(records: &[Record]) -> SampledFigures {
        let scored = ScoredTokens::of(records);
        let entropy = scored.gather(records, |r| &r.entropy).into_iter().map(f64::from).sum();
        let old = scored.gather(records, |r| &r.old_logp);
        let k3 = |(old, reference): (&f32, f32)| {
            let k = reference as f64 - *old as f64;
            k.exp_m1() - k
        };
        let kl = scored.gather_all(records, |r| &r.ref_logp);
        let kl = kl.map(|column| old.iter().zip(column).map(k3).sum());
        SampledFigures { tokens: scored.len(), entropy, kl }
    }
}

/// Means over the tokens of all completions, under TRL's names, and over those of the update. A mean
/// over nothing is NaN, and the metrics files hold null.
fn policy_values(figures: &Figures, sampled: &SampledFigures, recipe: &Recipe) -> Values {
    let (s, n, all) = (&figures.stats, figures.tokens as f64, sampled.tokens as f64);
    // Tokens that are left out have advantage 0 and are clipped on neither side.
    let (low, high) = (s.n_clip_lo as f64, s.n_clip_hi as f64);
    // A KL in the loss leaves nothing out, so that the update has seen every token.
    let kl = match recipe.settings.needs_reference() {
        true => s.sum_kl[2] / all,
        false => sampled.kl.map_or(f64::NAN, |sum| sum / all),
    };
    let moved_kl = if sampled.kl.is_some() { s.sum_kl[2] / n } else { f64::NAN };
    vec![
        ("loss", figures.loss),
        ("kl", kl),
        ("entropy", sampled.entropy / all),
        ("clip_ratio/low_mean", low / all),
        ("clip_ratio/high_mean", high / all),
        ("clip_ratio/region_mean", (low + high) / all),
        ("update/tokens", n),
        ("update/kl", moved_kl),
        ("update/entropy", s.sum_entropy / n),
        ("update/clip_ratio", (low + high) / n),
    ]
}
