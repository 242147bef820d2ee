//! The phase `distill`: the policy learns a teacher's distributions, on its own rollouts or on
//! demonstrations.

use crate::train::config::readers::{OF_EPISODES, OF_TASK, Reader};
use crate::train::config::{
    Auto, DistillConfig, DistillSource, DivergenceKey, Drawn, RestKey, RunConfig, SftConfig,
};
use crate::train::phase::sft::{check_buffer_warmup, longest};
use crate::train::phase::{Neighbors, Phase, PhaseSpec, check_warmup};
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::run::progress::line;
use crate::train::run::{Run, shown};
use crate::train::trainer::Trainer;
use crate::train::update::distill::{Lesson, distill_backward};
use crate::train::update::likeliest::Likeliest;
use crate::train::update::record::Record;
use crate::train::update::step::Objective;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{Divergence, PolicySettings, presets};

pub(crate) struct Distill;

/// Steps of rollouts, so that no other kind of phase has these draws.
const DISTILL_STEPS: u64 = 1 << 41;

impl PhaseSpec for Distill {
    const SECTION: &'static str = "distill";
    const TRAINS: bool = true;
    const STEPS: &'static str = "rl.steps";
    const READERS: &'static [&'static [Reader]] = &[
        OF_TASK,
        OF_EPISODES,
        &[
            Reader::Distill,
            Reader::Demos,
            Reader::Prompts,
            Reader::Sample,
            Reader::Update,
            Reader::MicroBatch,
            Reader::Backward,
            Reader::Adapters,
        ],
    ];

    fn draws(config: &RunConfig) -> Drawn {
        let steps = config.rl.steps as u64;
        match config.distill.source {
            DistillSource::Rollout => {
                Drawn { steps, prompts: steps * config.rl.prompts as u64, epochs: 0 }
            }
            DistillSource::Demos => Drawn { epochs: config.sft.epochs as u64, ..Drawn::default() },
        }
    }

    fn check(at: &Neighbors<'_>) -> Result<()> {
        let distill = &at.plan().config.distill;
        if distill.teacher.is_empty() {
            return Err(Error::config("distill.teacher", "empty: name the teacher's folder"));
        }
        if distill.divergence != DivergenceKey::Jsd && distill.beta != Auto::Auto {
            let divergence = distill.divergence.name();
            let reason = format!("is the weight in jsd, but distill.divergence is {divergence}");
            return Err(Error::config("distill.beta", reason));
        }
        if distill.rest != RestKey::Drop && distill.top_k == 0 {
            let rest = distill.rest.name();
            let reason = format!("`{rest}`, but distill.top_k is 0: no token is left out");
            return Err(Error::config("distill.rest", reason));
        }
        let (rl, sft) = (&at.plan().config.rl, &at.plan().config.sft);
        check_guidance(distill, sft)?;
        match distill.source {
            DistillSource::Rollout => {
                check_warmup("rl.warmup_steps", rl.warmup_steps, rl.steps as u64)
            }
            DistillSource::Demos => check_buffer_warmup(sft),
        }
    }

    fn steps<T: Float>(trainer: &Trainer<T>) -> u64 {
        match trainer.config.distill.source {
            DistillSource::Rollout => trainer.config.rl.steps as u64,
            DistillSource::Demos => trainer.sft_steps(),
        }
    }

    fn step<T: Float>(run: &mut Run<T>, step: u64) -> Result<Metrics> {
        let records = run.trainer.lessons(step)?;
        run.trainer.distill_step(step, &records)
    }

    fn finish<T: Float>(run: &mut Run<T>) -> Result<()> {
        let accuracy = run.evaluate()?.accuracy;
        line(&format!(" distill held-out score {}", shown(accuracy)));
        let now = run.elapsed();
        run.figures.accuracy.extend(accuracy.map(|accuracy| (now, accuracy)));
        Ok(())
    }

    fn probe<T: Float>(probe: &mut Probe<T>) -> Result<()> {
        probe.trainer.hold_teacher(true)?;
        probe.count_state();
        let records = match probe.trainer.config.distill.source {
            DistillSource::Rollout => probe.rollouts()?,
            DistillSource::Demos => longest(probe)?,
        };
        let settings = presets::sft().settings;
        let dropout = probe.trainer.dropout(Phase::Distill, 0);
        let objective = Objective { dropout, ..probe.trainer.lesson_objective(&settings) };
        probe.update_by(records, objective, |trainer, records, objective| {
            let lesson = Lesson { objective, ..trainer.lesson(&settings)? };
            Ok(distill_backward(&trainer.model, records, lesson)?.0)
        })?;
        // Nothing was computed, but adapters count as moved from here on.
        probe.trainer.optimizer.t = probe.trainer.optimizer.t.max(1);
        Ok(())
    }
}

/// Refuses a guided teacher where it has nothing to leave out, or is not asked as a whole.
fn check_guidance(distill: &DistillConfig, sft: &SftConfig) -> Result<()> {
    let gamma = distill.guidance;
    if gamma == 1.0 {
        return Ok(());
    }
    let reason = if distill.top_k > 0 {
        "distill.top_k asks for the likeliest tokens of a teacher that is not guided; take 0"
    } else if distill.source == DistillSource::Demos && sft.prompt_weight > 0.0 {
        "guidance reads without the prompt, whose tokens sft.prompt_weight has learned; take 0"
    } else {
        return Ok(());
    };
    Err(Error::config("distill.guidance", format!("{gamma}, but {reason}")))
}

impl<T: Float> Trainer<T> {
    /// What step `step` of the phase `distill` learns on: rollouts, which nobody scores, or
    /// demonstrations.
    ///
    /// # Errors
    /// What sampling, or the task's demonstrations, say.
    pub fn lessons(&self, step: u64) -> Result<Vec<Record>> {
        if self.config.distill.source == DistillSource::Demos {
            return self.demonstrations(step);
        }
        let rl = &self.config.rl;
        let first = self.before.prompts + step * rl.prompts as u64;
        let prompts =
            (first..first + rl.prompts as u64).map(|i| self.task.train_prompt(i)).collect();
        let drawn = DISTILL_STEPS + self.before.steps + step;
        Ok(self.sample(prompts, rl.group, drawn)?.records())
    }

    /// How both models are read, and how micro-batches are cut.
    fn lesson_objective<'a>(&self, settings: &'a PolicySettings) -> Objective<'a> {
        match self.config.distill.source {
            DistillSource::Rollout => self.rl_objective(settings),
            DistillSource::Demos => self.sft_objective(settings),
        }
    }

    /// What is learned from whom.
    fn lesson<'a>(&'a self, settings: &'a PolicySettings) -> Result<Lesson<'a, T>> {
        let Some(teacher) = &self.teacher else {
            return Err(Error::config("distill.teacher", "is not loaded"));
        };
        let distill = &self.config.distill;
        let divergence = match distill.divergence {
            DivergenceKey::ReverseKl => Divergence::ReverseKl,
            DivergenceKey::ForwardKl => Divergence::ForwardKl,
            DivergenceKey::Jsd => Divergence::Jsd { beta: distill.beta.or(0.5) },
        };
        let likeliest =
            (distill.top_k > 0).then_some(Likeliest { k: distill.top_k, rest: distill.rest });
        let objective = self.lesson_objective(settings);
        let guidance = distill.guidance;
        Ok(Lesson { teacher: &teacher.model, divergence, likeliest, guidance, objective })
    }

    /// Step `step` of the phase `distill` on `records`.
    ///
    /// # Errors
    /// `Config` for a teacher that does not fit; `Training` after repeated steps that are not finite;
    /// what the models and the device say.
    pub fn distill_step(&mut self, step: u64, records: &[Record]) -> Result<Metrics> {
        self.hold_teacher(false)?;
        let settings = presets::sft().settings;
        let mut lesson = self.lesson(&settings)?;
        lesson.objective.dropout = self.dropout(Phase::Distill, step);
        let (gradients, loss) = distill_backward(&self.model, records, lesson)?;
        let mut metrics = Metrics::from([(Metric::Loss, loss)]);
        let update = match self.config.distill.source {
            DistillSource::Rollout => {
                let sampled = self.batch_metrics(records, &[]);
                for metric in [Metric::MeanLength, Metric::ClippedRatio] {
                    metrics.push(metric, sampled.get(metric).unwrap_or(f64::NAN));
                }
                self.rl_update(step)
            }
            DistillSource::Demos => self.sft_update(step),
        };
        let device = self.model.device.clone();
        let updated = self.optimizer.step(&device, &mut self.model.params, &gradients, update)?;
        self.guard(updated.applied, step)?;
        metrics.push(Metric::GradNorm, updated.grad_norm);
        metrics.push(Metric::LearningRate, update.learning_rate);
        let tokens: usize = records.iter().map(|record| record.scored().count()).sum();
        metrics.push(Metric::NumTokens, tokens as f64);
        Ok(metrics)
    }
}
