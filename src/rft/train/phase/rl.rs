//! The phase `rl`. [`Trainer::collect`] and [`Trainer::rl_step`] are its loop: sample, reward, advantage, loss,
//! update, log. What each of them does is in `acts.rs`; what one update computes is in
//! [`crate::train::update::step`].

use std::time::Instant;

use crate::reward::Scores;
use crate::train::config::readers::{OF_EPISODES, OF_TASK, Reader};
use crate::train::config::{Drawn, RunConfig, SourceKey};
use crate::train::infer::eval::Evaluation;
use crate::train::phase::acts::groups;
use crate::train::phase::log::StepLog;
use crate::train::phase::{Neighbors, Phase, PhaseSpec, check_warmup};
use crate::train::run::Run;
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::run::progress::line;
use crate::train::select::{Candidate, spread};
use crate::train::trainer::{Sampled, Trainer};
use crate::train::update::dropout::check_dropout;
use crate::train::update::recipe::Recipe;
use crate::train::update::record::Record;
use crate::train::update::reference::Reference;
use crate::train::update::step::Objective;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::presets::Estimator;

pub(crate) struct Rl;

impl PhaseSpec for Rl {
    const SECTION: &'static str = "rl";
    const TRAINS: bool = true;
    const READERS: &'static [&'static [Reader]] = &[
        OF_TASK,
        OF_EPISODES,
        &[
            Reader::Evaluate,
            Reader::Prompts,
            Reader::Sample,
            Reader::Turns,
            Reader::Judge,
            Reader::Keep,
            Reader::Divert,
            Reader::Store,
            Reader::Advantage,
            Reader::Update,
            Reader::MicroBatch,
            Reader::Backward,
            Reader::Rl,
            Reader::Online,
            Reader::Critic,
            Reader::Adapters,
        ],
    ];

    fn draws(config: &RunConfig) -> Drawn {
        let steps = config.rl.steps as u64;
        Drawn { steps, prompts: steps * config.rl.prompts as u64, epochs: 0 }
    }

    fn check(at: &Neighbors<'_>) -> Result<()> {
        let config = &at.plan().config;
        let recipe = Recipe::of(config, 1.0)?;
        check_dropout(config, &recipe)?;
        let behind = at.plans[..at.index].iter().any(|plan| plan.kind == Phase::Quantize);
        if behind && config.rl.changed()?.is_some() {
            let reason = "is about whole weights, and behind `quantize` adapters train";
            return Err(Error::config("rl.only_changed", reason));
        }
        config.check_credit(recipe.estimator == Estimator::Gae)?;
        check_warmup("rl.warmup_steps", config.rl.warmup_steps, config.rl.steps as u64)
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
            let evaluation = evaluation?;
            run.note_examples(&evaluation, run.figures.global + 1)?;
            let Evaluation { accuracy, vote, .. } = evaluation;
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
        probe.trainer.hold_changed()?;
        probe.count_state();
        if recipe.needs_reference() {
            if probe.trainer.config.rl.fresh_reference {
                probe.trainer.reference = Reference::NotTaken;
            }
            probe.trainer.hold_reference()?;
            probe.count_state();
        }
        records.iter_mut().for_each(Record::with_columns);
        let dropout = probe.trainer.dropout(Phase::Rl, 0);
        let objective = Objective { dropout, ..probe.trainer.rl_objective(&recipe.settings) };
        probe.update(records, objective)?;
        probe.trainer.hold_inner()?;
        probe.count_state();
        Ok(())
    }
}

impl<T: Float> Trainer<T> {
    /// The first half of the loop: completions of step `step` of a phase, and their rewards. Prompts and draws
    /// go on behind those of earlier phases. With `rl.dynamic_sampling` there are further batches until the
    /// rewards of enough prompts differ.
    pub fn collect(&self, step: u64) -> Result<(Sampled, Vec<Record>, Scores)> {
        let rl = &self.config.rl;
        let (mut sampled, mut records) = (Sampled::default(), Vec::new());
        let mut scores = Scores::default();
        for batch in 0..=rl.dynamic_sampling as u64 {
            // 1. Sample: some completions of each prompt, by the policy as it is.
            let drawn = self.sample_batch(step, batch)?;
            // 2. Reward: a score of each completion.
            let judged = self.reward_batch(step, batch, &drawn)?;
            records.extend(self.records_of(step, batch, &drawn, &judged)?);
            sampled.append(drawn);
            scores.append(judged);
            let unknown = vec![0.0; records.len()];
            if spread(&Candidate::all(&records, &unknown)) >= rl.prompts {
                break;
            }
        }
        Ok((sampled, records, scores))
    }

    /// The second half of the loop: step `step` learns from `records`.
    ///
    /// # Errors
    /// `Training` after repeated steps that are not finite; what the model and the device say.
    pub fn rl_step(&mut self, step: u64, mut records: Vec<Record>) -> Result<Metrics> {
        let recipe = self.recipe()?;
        check_dropout(&self.config, &recipe)?;
        self.hold_changed()?;
        if step == 0 && self.config.rl.fresh_reference {
            self.reference = Reference::NotTaken;
        }
        let (mut log, fresh) = (StepLog::default(), records.len());
        self.recall(step, &recipe, &mut records, &mut log)?;
        // 3. Advantage: how much better than expected a completion, or a token of it, was.
        let estimated = self.advantages(&records, &recipe)?;
        let mut batch = self.batch(records, fresh, &estimated, &recipe, &mut log)?;
        for _ in 0..batch.updates {
            // 4. Loss: forward and backward over the batch.
            let backward = self.loss(step, &recipe, &mut batch)?;
            // 5. Update: the optimizer moves the policy, and the critic if there is one.
            self.update(step, &recipe, &estimated, backward, &mut batch, &mut log)?;
        }
        // 6. Log: what outlives the step, in buffers and in the metrics.
        self.log(step, &recipe, batch, log)
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
        metrics.push_rewards(&scores);
        if batches > 0 {
            metrics.push(Metric::SampledBatches, batches as f64);
        }
        metrics.push(Metric::TokensPerSecond, self.figures.sampled(tokens, seconds));
        let value = |metric| metrics.get(metric).unwrap_or(f64::NAN);
        let (reward, flat_share) = (value(Metric::Reward), value(Metric::FracRewardZeroStd));
        let deviation = value(Metric::RatioMaxAbsDev);
        let now = self.elapsed();
        let figures = &mut self.figures;
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
