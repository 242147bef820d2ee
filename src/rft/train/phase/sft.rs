//! The phase `sft`: masked cross-entropy on demonstrations.

use crate::reward::verify::conclusion;
use crate::text::Codec;
use crate::train::config::readers::{OF_TASK, Reader};
use crate::train::config::{DistillSource, Drawn, PhasePlan, RunConfig, SftConfig};
use crate::train::env::Shown;
use crate::train::phase::{Neighbors, Phase, PhaseSpec, check_warmup, warmed_up, warmup_steps};
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::run::progress::line;
use crate::train::run::summary::Scored;
use crate::train::run::{Run, shown};
use crate::train::task::Demo;
use crate::train::trainer::Trainer;
use crate::train::update::layers::LayerRates;
use crate::train::update::optimizer::Update;
use crate::train::update::record::{Record, TokenClass};
use crate::train::update::step::Objective;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::presets;
use gradus::ops::{Advantage, PolicySettings};
use gradus::rng::{Purpose, Rng};
use gradus::view::View;

/// Demonstrations of an epoch where the task never runs out of them.
const ENDLESS_DEMOS: usize = 4_000;

/// Steps of warm-up where `sft.warmup_steps` does not say: of a fresh model, and of one from disk.
const WARMUP: u64 = 20;
const FOLDER_WARMUP: u64 = 10;

pub(crate) struct Sft;

impl PhaseSpec for Sft {
    const SECTION: &'static str = "sft";
    const TRAINS: bool = true;
    const READERS: &'static [&'static [Reader]] = &[
        OF_TASK,
        &[Reader::Sft, Reader::Demos, Reader::MicroBatch, Reader::Backward, Reader::Adapters],
    ];

    fn draws(config: &RunConfig) -> Drawn {
        Drawn { epochs: config.sft.epochs as u64, ..Drawn::default() }
    }

    fn check(at: &Neighbors<'_>) -> Result<()> {
        check_buffer_warmup(&at.plan().config.sft)
    }

    fn steps<T: Float>(trainer: &Trainer<T>) -> u64 {
        trainer.sft_steps()
    }

    fn step<T: Float>(run: &mut Run<T>, step: u64) -> Result<Metrics> {
        run.trainer.sft_step(step)
    }

    fn finish<T: Float>(run: &mut Run<T>) -> Result<()> {
        if let (Some(name), 0) = (run.trainer.config.sft.buffer()?, run.trainer.demos()) {
            line(&format!("     sft the buffer `{name}` is empty: nothing is learned"));
        }
        let accuracy = run.evaluate()?.accuracy;
        run.trainer.drain_source()?;
        line(&format!("     sft held-out score {}", shown(accuracy)));
        run.figures.sft_accuracy = accuracy;
        run.figures.scored(Scored::Sft, accuracy);
        let now = run.elapsed();
        let points = [(0.0, run.figures.base_accuracy), (now, accuracy)];
        let points = points.into_iter().filter_map(|(time, score)| Some((time, score?)));
        run.figures.accuracy.extend(points);
        Ok(())
    }

    fn probe<T: Float>(probe: &mut Probe<T>) -> Result<()> {
        let records = longest(probe)?;
        let settings = presets::sft().settings;
        let dropout = probe.trainer.dropout(Phase::Sft, 0);
        let objective = Objective { dropout, ..probe.trainer.sft_objective(&settings) };
        probe.update(records, objective)?;
        // Nothing was computed, but adapters count as moved from here on.
        probe.trainer.optimizer.t = probe.trainer.optimizer.t.max(1);
        Ok(())
    }
}

/// Refuses a count of warm-up steps for a buffer: how many steps it gives is known when it is full.
///
/// # Errors
/// `Config`.
pub(crate) fn check_buffer_warmup(sft: &SftConfig) -> Result<()> {
    let count = sft.warmup_steps.value().filter(|&steps| steps > 1.0);
    match (sft.buffer()?, count) {
        (Some(name), Some(count)) => {
            let reason = format!(
                "{count} steps, but how many the phase has depends on what the buffer `{name}` then \
                 holds; take a share of them, such as 0.1, or 0"
            );
            Err(Error::config("sft.warmup_steps", reason))
        }
        (Some(_), None) | (None, _) => Ok(()),
    }
}

/// Records like those of a step: demonstrations, or what a buffer may hold, which is completions and
/// demonstrations.
pub(super) fn longest<T: Float>(probe: &mut Probe<T>) -> Result<Vec<Record>> {
    if probe.trainer.config.sft.buffer()?.is_none() {
        return probe.trainer.demonstrations(0);
    }
    let mut records = probe.rollouts()?;
    let trainer = &probe.trainer;
    let demos = (0..trainer.config.sft.batch as u64).map_while(|i| trainer.task.demo(i).ok());
    for demo in demos {
        records.push(trainer.demonstration(&demo)?);
    }
    Ok(records)
}

impl<T: Float> Trainer<T> {
    /// Refuses phases of `plans` that learn demonstrations and end in their warm-up. `config` has the
    /// settings of the run.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn check_warmups(&mut self, config: &RunConfig, plans: &[PhasePlan]) -> Result<()> {
        for plan in plans {
            let of_demos = plan.config.distill.source == DistillSource::Demos;
            let learns = plan.kind == Phase::Sft || (plan.kind == Phase::Distill && of_demos);
            let sft = &plan.config.sft;
            if learns && sft.buffer()?.is_none() {
                self.enter(plan);
                check_warmup("sft.warmup_steps", sft.warmup_steps, self.sft_steps())
                    .map_err(|error| config.in_phase(&plan.name, error))?;
            }
        }
        self.leave(config);
        Ok(())
    }

    /// SFT steps per epoch and in total.
    pub fn sft_steps(&self) -> u64 {
        self.steps_of_epoch() * self.config.sft.epochs as u64
    }

    fn steps_of_epoch(&self) -> u64 {
        self.demos().div_ceil(self.config.sft.batch) as u64
    }

    /// Demonstrations of an epoch, or records of the buffer that is learned from.
    pub(super) fn demos(&self) -> usize {
        let sft = &self.config.sft;
        if let Ok(Some(name)) = sft.buffer() {
            let all = self.buffers.len_of(name);
            return if sft.demos == 0 { all } else { sft.demos.min(all) };
        }
        match sft.demos {
            0 => self.task.demos().unwrap_or(ENDLESS_DEMOS),
            n => n,
        }
    }

    /// SFT step `step`: cross-entropy on one batch of demonstrations, averaged over its tokens.
    pub fn sft_step(&mut self, step: u64) -> Result<Metrics> {
        if step == 0 && self.config.sft.fresh_optimizer {
            self.optimizer.restart()?;
        }
        let records = self.demonstrations(step)?;
        let settings = self.sft_settings();
        let classes = || records.iter().flat_map(|r| r.scored().map(|t| r.class[t] as usize));
        let tokens = classes().count();
        // The mean is weighted as the tokens are, so that only the classes' proportion matters.
        let total: f64 = classes().map(|class| settings.class_weight[class]).sum();
        let weight = vec![1.0 / if total > 0.0 { total as f32 } else { 1.0 }; records.len()];
        let advantage = vec![1.0; records.len()];
        let update = self.sft_update(step);
        let advantage = Advantage::PerSequence(View::from(&advantage));
        let dropout = self.dropout(Phase::Sft, step);
        let objective = Objective { dropout, ..self.sft_objective(&settings) };
        let backward = self.forward_backward(&records, advantage, &weight, objective)?;
        let sft = &self.config.sft;
        let rates = LayerRates { decay: sft.layer_decay, frozen: sft.freeze_share };
        let updated = self.optim_step_by_layers(&backward, update, rates)?;
        self.guard(updated.applied, step)?;
        Ok(Metrics::from([
            (Metric::Loss, backward.figures.loss),
            (Metric::GradNorm, updated.grad_norm),
            (Metric::LearningRate, update.learning_rate),
            (Metric::NumTokens, tokens as f64),
        ]))
    }

    /// The demonstrations of step `step` of an SFT phase: a fresh shuffle of the demo set each epoch, also
    /// where an earlier phase had some.
    pub fn demonstrations(&self, step: u64) -> Result<Vec<Record>> {
        let sft = &self.config.sft;
        let demos = self.demos();
        if demos == 0 {
            let reason = format!("`{}` is empty: there is nothing to learn from", sft.source);
            return Err(Error::Training { reason });
        }
        let per_epoch = self.steps_of_epoch();
        let epoch = self.before.epochs + step / per_epoch;
        let batch = (step % per_epoch) as usize;
        let mut order: Vec<u64> = (0..demos as u64).collect();
        Rng::new(self.config.seed, Purpose::Shuffle, [0, epoch as u32, 0]).shuffle(&mut order);
        let chosen = &order[batch * sft.batch..demos.min((batch + 1) * sft.batch)];
        let learned = sft.prompt_weight > 0.0;
        if let Some(name) = sft.buffer()? {
            let all: Vec<&Record> =
                self.buffers.get(name).into_iter().flat_map(|b| b.newest(demos)).collect();
            let mut records: Vec<Record> =
                chosen.iter().map(|&index| all[index as usize].clone()).collect();
            if learned {
                records.iter_mut().for_each(Record::learn_prompt);
            }
            return self.written(records);
        }
        chosen.iter().map(|&index| self.demonstration(&self.task.demo(index)?)).collect()
    }

    /// The record of a demonstration. What is said to its answers is read and never learned.
    pub(super) fn demonstration(&self, demo: &Demo) -> Result<Record> {
        let (codec, config, mut record) = (self.task.codec(), &self.config, Record::default());
        record.push(&self.task.encode(&demo.prompt)?, TokenClass::Prompt, &[]);
        if config.sft.prompt_weight > 0.0 {
            record.learn_prompt();
        }
        let frame = self.world.as_ref().map(|world| world.frame.as_ref());
        for piece in Shown::of(demo, codec, frame, &config.rl.stop)? {
            match piece {
                Shown::Said(ids) => record.push(&ids, TokenClass::Prompt, &[]),
                Shown::Answer(text, ids) => {
                    let reasoning = match config.sft.reasoning_weight == 1.0 {
                        true => 0,
                        false => reasoning_tokens(codec, text, &ids)?,
                    };
                    record.push(&ids[..reasoning], TokenClass::Reasoning, &[]);
                    record.push(&ids[reasoning..], TokenClass::Demo, &[]);
                }
            }
        }
        Ok(record)
    }

    /// Settings of the update of SFT step `step`.
    pub(crate) fn sft_update(&self, step: u64) -> Update {
        let sft = &self.config.sft;
        let steps = self.sft_steps();
        let decay = sft.lr_schedule.factor(step, steps);
        let fitting = if self.config.model.path.is_empty() { WARMUP } else { FOLDER_WARMUP };
        let warmup = warmup_steps(sft.warmup_steps, fitting, steps);
        // QLoRA (arXiv:2305.14314, appendix B.2) for adapters, TRL 1.16's SFTConfig for whole weights.
        let peak = sft.learning_rate.or(if self.model.has_adapters() { 2e-4 } else { 2e-5 });
        Update {
            learning_rate: warmed_up(peak * decay, step, warmup),
            beta1: 0.9,
            beta2: sft.beta2,
            weight_decay: sft.weight_decay,
            grad_clip: sft.grad_clip,
        }
    }

    /// What demonstrations are scored under: the model's own distribution, whatever rollouts are
    /// sampled at.
    pub fn sft_objective<'a>(&self, settings: &'a PolicySettings) -> Objective<'a> {
        let (micro_batch, micro_batch_tokens) = match self.config.sft.packing {
            0 => (self.config.rl.sequences(), usize::MAX),
            tokens => (usize::MAX, tokens),
        };
        let (temperature, shared, critic, dropout) = (1.0, false, None, None);
        Objective {
            settings,
            temperature,
            micro_batch,
            micro_batch_tokens,
            shared,
            shared_tokens: usize::MAX,
            recompute: self.recomputes(),
            critic,
            dropout,
        }
    }

    /// Cross-entropy with the weights of the classes.
    pub(crate) fn sft_settings(&self) -> PolicySettings {
        let sft = &self.config.sft;
        let mut settings = presets::sft().settings;
        settings.class_weight[TokenClass::Context as usize] = sft.prompt_weight;
        settings.class_weight[TokenClass::Reasoning as usize] = sft.reasoning_weight;
        settings
    }
}

/// How many of an answer's tokens `ids` spell its reasoning: those that begin before what it concludes.
fn reasoning_tokens(codec: &dyn Codec, answer: &str, ids: &[i32]) -> Result<usize> {
    let end = answer.len() - conclusion(answer).map_or(0, str::len);
    // Longer prefixes spell longer texts, so that halving finds the first that is long enough.
    let (mut below, mut above) = (0, ids.len());
    while below < above {
        let middle = below + (above - below) / 2;
        match codec.decode_spelled(&ids[..middle])?.len() < end {
            true => below = middle + 1,
            false => above = middle,
        }
    }
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Bytes, END};

    #[test]
    fn reasoning_ends_behind_its_last_mark() {
        let codec = Bytes::new(&[END]);
        for (answer, reasoning) in [
            ("4", 0),
            ("<think>2+2</think>4", 18),
            ("a</think>b</think>c", 18),
            // It came to no answer.
            ("<think>2+2", 10),
        ] {
            let ids = codec.encode_rendered(answer).unwrap();
            assert_eq!(reasoning_tokens(&codec, answer, &ids).unwrap(), reasoning, "{answer}");
        }
    }
}
