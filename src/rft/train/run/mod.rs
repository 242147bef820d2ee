//! `gradus train`: a run from its configuration to its summary, resumable at every checkpoint.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::io::{interrupt, system_memory};
use crate::pretrained::Adapter;
use crate::train::config::{ModelDtype, PhasePlan, RunConfig};
use crate::train::infer::eval::Evaluation;
use crate::train::phase::Phase;
use crate::train::trainer::Trainer;
use gradus::dtype::{Float, bf16};
use gradus::error::{Error, Result};
use gradus::escape::escaped;

mod advice;
mod best;
pub mod checkpoint;
pub mod examples;
mod figures;
mod fitting;
mod folder;
mod identity;
pub mod memory_plan;
pub mod metrics;
pub mod plot;
pub mod progress;
pub mod summary;
pub mod tensorboard;

use advice::FlatSteps;
use checkpoint::Checkpoint;
use examples::{Examples, ExamplesWriter};
use figures::{Position, RunFigures};
use folder::RunFolder;
use identity::Identity;
use memory_plan::MemoryPlan;
use metrics::{Metric, Metrics, MetricsWriter, Row};
use plot::Curve;
use progress::{Progress, line};
use summary::{Scored, Stage, Summary};

/// Where a run starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// From nothing, in a new folder.
    #[default]
    No,
    /// From the newest checkpoint of `<out>/latest`, or from nothing if there is none.
    Auto,
    /// From the newest checkpoint of this run folder.
    From(PathBuf),
}

/// A run under way.
pub(crate) struct Run<T: Float> {
    pub trainer: Trainer<T>,
    pub figures: RunFigures,
    /// Watches for steps that teach nothing.
    pub flat: FlatSteps,
    folder: RunFolder,
    metrics: MetricsWriter,
    examples: ExamplesWriter,
    /// The settings of the run; those of its phases are laid over them.
    config: RunConfig,
    plans: Vec<PhasePlan>,
    begun: Instant,
    /// Seconds of training before this process.
    before: f64,
    /// Where the newest checkpoint stands.
    saved: Option<Position>,
}

/// Runs `config` to its end and returns the summary. Everything it writes is under
/// `<out>/<name>-s<seed>-<time>/`, which `<out>/latest` points at.
///
/// # Errors
/// `Config` before anything is written; `Io` if a file cannot be written (the newest checkpoint
/// stays valid); `Training` after repeated steps that are not finite; `Reward` if the reward
/// function fails too often; `Interrupted` after a signal, with a checkpoint of the last step that
/// was done as a whole: what was cut short is done again, to the same bits, by a run that resumes. A
/// signal before the first step, while model and data are read, leaves nothing.
pub fn train(config: RunConfig, resume: &Resume) -> Result<Summary> {
    config.validate()?;
    config.validate_phases()?;
    if !matches!(resume, Resume::From(_)) {
        folder::check_place(config.out.as_ref())?;
    }
    let _listening = interrupt::listen()?;
    on_threads(config.threads, || match config.model.dtype {
        ModelDtype::Bf16 => Run::<bf16>::open(config, resume)?.run(),
        ModelDtype::F32 => Run::<f32>::open(config, resume)?.run(),
    })
}

/// Runs `body` on one of that many threads, 0 for one a core. Its parallel loops then begin where they are asked
/// for: one that another thread asks for waits twice for a thread to wake up.
///
/// # Errors
/// `Config` if they cannot be started; what `body` says.
pub(crate) fn on_threads<R: Send>(
    threads: usize,
    body: impl FnOnce() -> Result<R> + Send,
) -> Result<R> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| {
        Error::config("threads", format!("{threads} threads cannot be started: {e}"))
    })?;
    pool.install(body)
}

impl<T: Float> Run<T> {
    fn open(config: RunConfig, resume: &Resume) -> Result<Run<T>> {
        let plans = config.plan()?;
        let device = config.open_device()?;
        let identity = Identity::of(&config, &device)?;
        let begun = find_run(resume, &config, &identity)?;
        let plan = MemoryPlan::of_run::<T>(&config, &device)?;
        let mut trainer = Trainer::on(config.clone(), device)?;
        trainer.fit = plan.as_ref().map(|plan| plan.fit).unwrap_or_default();
        trainer.check_teachers()?;
        trainer.check_warmups(&config, &plans)?;
        line(&format!("  device {}", trainer.model.device.name()));
        plan.iter().for_each(|plan| line(&format!("  memory {plan}")));
        trainer.notes.iter().for_each(|note| line(note));
        plans.iter().find_map(advice::partial_reward).iter().for_each(|note| line(note));
        if let (Some(plan), Some(arena)) = (plan, trainer.model.allocator.arena()) {
            arena.reserve(plan.activations as usize)?;
        }
        let fresh = || RunFigures { base: trainer.base.clone(), ..RunFigures::default() };
        let (folder, figures, saved) = match begun {
            None => {
                let out = trainer.config.out.as_ref();
                (RunFolder::create(out, &trainer.config, &identity)?, fresh(), None)
            }
            Some((folder, None)) => (folder, fresh(), None),
            Some((folder, Some(checkpoint))) => {
                let figures = go_on(&mut trainer, &folder, checkpoint)?;
                let saved = figures.position();
                (folder, figures, Some(saved))
            }
        };
        let metrics = MetricsWriter::open(folder.path(), figures.global)?;
        let examples = ExamplesWriter::open(folder.path(), figures.examples)?;
        let before = figures.elapsed;
        let (flat, begun) = (FlatSteps::default(), Instant::now());
        Ok(Run {
            trainer,
            folder,
            metrics,
            examples,
            figures,
            config,
            plans,
            flat,
            begun,
            before,
            saved,
        })
    }

    /// From here on there is something to save.
    fn run(mut self) -> Result<Summary> {
        let done = self.run_phases().and_then(|()| self.finish());
        if let Err(Error::Interrupted { .. }) = done {
            if self.saved != Some(self.figures.position()) {
                self.save().map_err(|error| self.explained(error))?;
            }
            line(&format!(
                "stopped; the same command with --resume {} goes on",
                self.folder.path().display()
            ));
        }
        done.map_err(|error| self.explained(error))
    }

    /// What a step refuses after the run has begun is the run's failure, and no wrong setting; a file
    /// that is not there is mostly a folder that is not.
    fn explained(&self, error: Error) -> Error {
        match error {
            Error::InvalidArgument { .. } | Error::NonFinite { .. } => {
                let plan = self.plans.get(self.figures.phase);
                let phase = plan.map_or("end", |plan| plan.name.as_str());
                let step = self.figures.step;
                Error::Training { reason: format!("phase {phase}, step {step}: {error}") }
            }
            Error::Io { .. } => self.folder.check().err().unwrap_or(error),
            error => error,
        }
    }

    fn run_phases(&mut self) -> Result<()> {
        if self.figures.position() == RunFigures::default().position() {
            self.figures.weights_before = self.trainer.model.weight_bytes();
            if !self.trainer.frozen_base {
                let evaluation = self.trainer.evaluate()?;
                self.note_examples(&evaluation, 0)?;
                let accuracy = evaluation.accuracy;
                self.note_suites()?;
                self.figures.base_accuracy = accuracy;
                self.figures.scored(Scored::AsItWas, accuracy);
            }
        } else {
            // The run before may have been killed before it wrote what belongs to its checkpoint.
            self.export()?;
        }
        while let Some(plan) = self.plans.get(self.figures.phase).cloned() {
            self.trainer.enter(&plan);
            plan.kind.enter(self)?;
            self.run_steps(&plan)?;
            plan.kind.finish(self)?;
            let f = &mut self.figures;
            (f.phase, f.step, f.entered, f.left) = (f.phase + 1, 0, false, false);
            self.save()?;
        }
        Ok(())
    }

    /// What the phase behind the one that runs does.
    pub(super) fn next_kind(&self) -> Option<Phase> {
        self.plans.get(self.figures.phase + 1).map(|plan| plan.kind)
    }

    /// Does something under the settings of the phase before the one that runs.
    pub(super) fn in_phase_before(
        &mut self,
        work: impl FnOnce(&mut Trainer<T>) -> Result<()>,
    ) -> Result<()> {
        let runs = self.figures.phase;
        self.trainer.enter(&self.plans[runs - 1]);
        let done = work(&mut self.trainer);
        self.trainer.enter(&self.plans[runs]);
        done
    }

    /// The held-out score under the settings of the run, whatever those of the phase are, so that scores
    /// before and after a phase can be compared.
    pub(super) fn evaluate(&mut self) -> Result<Evaluation> {
        self.trainer.leave(&self.config);
        let evaluation = self.trainer.evaluate();
        let evaluation = evaluation.and_then(|it| self.note_suites().map(|()| it));
        self.plans.get(self.figures.phase).iter().for_each(|plan| self.trainer.enter(plan));
        let evaluation = evaluation?;
        self.note_examples(&evaluation, self.figures.global)?;
        Ok(evaluation)
    }

    /// What the model says after so many steps of the run goes into `samples.jsonl`.
    pub(super) fn note_examples(&mut self, evaluation: &Evaluation, global: u64) -> Result<()> {
        if evaluation.examples.is_empty() {
            return Ok(());
        }
        self.folder.check()?;
        let plan = self.plans.get(self.figures.phase);
        let wrote = self.examples.write(Examples {
            global,
            phase: plan.map_or(String::new(), |plan| plan.name.clone()),
            score: evaluation.accuracy,
            samples: evaluation.examples.clone(),
        })?;
        self.figures.examples += wrote as u64;
        Ok(())
    }

    /// Scores of the first evaluation on the sets of `data.suites`, under the settings of the run.
    fn note_suites(&mut self) -> Result<()> {
        if self.figures.suites.is_none() {
            let scores = self.trainer.evaluate_suites()?;
            let scores = scores.into_iter().map(|(name, its)| (name, its.accuracy)).collect();
            self.figures.suites = Some(scores);
        }
        Ok(())
    }

    fn run_steps(&mut self, plan: &PhasePlan) -> Result<()> {
        let phase = plan.kind;
        let total = phase.steps(&self.trainer);
        let begins = !std::mem::replace(&mut self.figures.entered, true);
        if self.figures.step == 0 && begins {
            phase.begin(self);
        }
        let mut progress = Progress::new(&plan.name, self.figures.step, total);
        let every = self.trainer.config.checkpoint.every as u64;
        while self.figures.step < total {
            let begun = Instant::now();
            let flat_before = self.figures.flat_steps;
            let mut metrics = phase.step(self, self.figures.step)?;
            let flat = self.figures.flat_steps > flat_before;
            metrics.push(Metric::StepTime, begun.elapsed().as_secs_f64());
            let (global, step) = (self.figures.global, self.figures.step);
            let row = Row { global, phase: plan.name.clone(), step, metrics };
            self.folder.check()?;
            self.metrics.write(&row)?;
            self.figures.step += 1;
            self.figures.global += 1;
            progress.update(self.figures.step, || message(&row.metrics, flat));
            self.keep_best(&row.metrics)?;
            if self.figures.global.is_multiple_of(every) {
                self.save()?;
            }
            interrupt::check()?;
        }
        progress.finish();
        Ok(())
    }

    /// Seconds of training.
    pub(super) fn elapsed(&self) -> f64 {
        self.before + self.begun.elapsed().as_secs_f64()
    }

    fn save(&mut self) -> Result<()> {
        self.folder.check()?;
        self.metrics.sync()?;
        let folder = self.folder.path().join("checkpoints");
        let checkpoint = self.checkpoint(&folder)?;
        checkpoint::save(&folder, &checkpoint, self.trainer.config.checkpoint.keep)?;
        self.saved = Some(self.figures.position());
        self.export()
    }

    /// The state of the run as it stands, for `folder`.
    fn checkpoint(&mut self, folder: &Path) -> Result<Checkpoint> {
        self.figures.elapsed = self.elapsed();
        let meta = serde_json::to_value(&self.figures)
            .map_err(|e| Error::format(folder, format!("checkpoint figures: {e}")))?;
        Ok(Checkpoint {
            step: self.figures.global + self.figures.phase as u64,
            fingerprint: self.config.fingerprint(),
            meta,
            tensors: self.trainer.save_state()?,
        })
    }

    /// Whether models of this run make sense outside: those from a folder, and those of bytes.
    fn has_folders(&self) -> bool {
        !self.trainer.base.is_empty() || !self.trainer.config.data.path.is_empty()
    }

    /// Writes the adapter for PEFT, once there is one, and if there is a base model to go with it:
    /// the folder that the run began with, or, if that moved before it was frozen, its own.
    fn export(&self) -> Result<()> {
        self.export_to(&self.folder.path().join("adapter"))
    }

    fn export_to(&self, folder: &Path) -> Result<()> {
        let Some(config) = self.trainer.adapter.as_ref().filter(|_| self.has_folders()) else {
            return Ok(());
        };
        let base = match self.trainer.frozen_base {
            true => self.trainer.config.model.path.clone(),
            false => self.write_model()?,
        };
        let config = config.clone().on_base(&base);
        Adapter::of(&self.trainer.model, &config)?.save(folder)
    }

    /// Writes the base weights as they are now, unless they are there: they no longer move. Returns
    /// where.
    fn write_model(&self) -> Result<String> {
        let path = self.folder.path().join("model");
        if !path.exists() {
            let from = Path::new(&self.trainer.config.model.path);
            let model = &self.trainer.model;
            match self.trainer.base.is_empty() {
                true => model.save_fresh(&path, self.trainer.task.codec().stops())?,
                false => model.save_pretrained(&path, from)?,
            }
        }
        let path = path.canonicalize().map_err(Error::io(&path))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Folders of the adapter and of the model that the run leaves; empty where it leaves none.
    fn exported(&self) -> Result<(String, String)> {
        let (on_disk, moved) = (self.has_folders(), !self.trainer.frozen_base);
        let model = if on_disk && moved { self.write_model()? } else { String::new() };
        let adapter = match self.trainer.adapter.is_some() && on_disk {
            true => self.folder.path().join("adapter").to_string_lossy().into_owned(),
            false => String::new(),
        };
        Ok((adapter, model))
    }

    /// What was scored, with the score at the end, which without RL may be that of the last `sft`.
    fn stages(&self, at_the_end: Option<f64>) -> Vec<Stage> {
        let mut stages = self.figures.stages.clone();
        let sft = self.plans.last().is_some_and(|plan| plan.kind == Phase::Sft);
        let model = if sft && self.figures.rl_steps == 0 { Scored::Sft } else { Scored::End };
        if stages.last().is_some_and(|last| last.model == model) {
            stages.pop();
        }
        stages.extend(at_the_end.map(|score| Stage { model, score }));
        stages
    }

    fn finish(&mut self) -> Result<Summary> {
        let evaluation = self.evaluate()?;
        let suites = self.suites()?;
        self.folder.check()?;
        let (adapter, exported_model) = self.exported()?;
        let (f, config) = (&self.figures, &self.config);
        let summary = Summary {
            seed: config.seed,
            version: env!("CARGO_PKG_VERSION").into(),
            fingerprint: config.fingerprint(),
            recipe: config.recipe.clone(),
            device: self.trainer.model.device.name().to_string(),
            base_accuracy: f.base_accuracy,
            sft_accuracy: f.sft_accuracy,
            quantized_accuracy: f.quantized_accuracy,
            final_accuracy: evaluation.accuracy,
            stages: self.stages(evaluation.accuracy),
            final_completions: evaluation.completions,
            final_error: evaluation.error,
            score_is_share: self
                .trainer
                .verifier
                .bounds()
                .is_some_and(|(low, high)| low >= 0.0 && high <= 1.0),
            steps: f.global,
            flat_steps: f.flat_steps,
            rl_steps: f.rl_steps,
            train_seconds: self.elapsed(),
            rollout_tokens_per_second: f.rollout_tokens / f.rollout_seconds.max(1e-9),
            first_ratio_max_abs_dev: f.first_ratio_max_abs_dev,
            weights_before: f.weights_before,
            weights: self.trainer.model.weight_parts(),
            peak_memory: system_memory::peak_memory().unwrap_or(0),
            folder: self.folder.path().to_string_lossy().into_owned(),
            model: config.model.path.clone(),
            adapter,
            exported_model,
            at: evaluation.at,
            suites,
            best: self.best(),
            samples: evaluation.examples,
        };
        let curve = Curve {
            title: format!("{}: {}", subject(config), summary.scores()),
            reward: f.reward.clone(),
            accuracy: f.accuracy.clone(),
            rl_start: f.rl_start,
            before_rl: f.before_rl(),
        };
        plot::draw(&self.folder.path().join("curve.svg"), &curve)?;
        summary.write(self.folder.path())?;
        self.folder.check()?;
        let table = escaped(&summary.table()).to_string();
        let _ = std::io::Write::write_all(&mut std::io::stdout(), table.as_bytes());
        Ok(summary)
    }
}

/// What is learned: the data's file or folder, or else the built-in task.
fn subject(config: &RunConfig) -> String {
    match Path::new(&config.data.path).file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => config.task.name.name().into(),
    }
}

/// The run to go on with, taken over for this process, and its newest checkpoint if it has one. With
/// `auto` there is none if the latest run has other settings, which are named.
fn find_run(
    resume: &Resume,
    config: &RunConfig,
    identity: &Identity,
) -> Result<Option<(RunFolder, Option<Checkpoint>)>> {
    let (folder, auto) = match resume {
        Resume::No => return Ok(None),
        Resume::Auto => (Path::new(&config.out).join("latest"), true),
        Resume::From(folder) => (folder.clone(), false),
    };
    let folder = match folder.canonicalize() {
        Err(e) if auto && e.kind() == ErrorKind::NotFound => {
            line(&format!("{} leads to no run: a new one begins", folder.display()));
            return Ok(None);
        }
        found => found.map_err(Error::io(&folder))?,
    };
    let before = Identity::read(&folder)?;
    let settings = before.other_settings(identity)?.join("; ");
    if !settings.is_empty() && auto {
        let folder = folder.display();
        line(&format!("{folder} has other settings: {settings}; a new run begins"));
        return Ok(None);
    }
    if !settings.is_empty() {
        let reason = format!("this run has other settings: {settings}");
        return Err(Error::format(folder, reason));
    }
    let files = before.other_files(identity);
    if !files.is_empty() {
        let files = files.join("; ");
        let reason = format!(
            "{files} than when this run began; restore it, or begin a new run without --resume"
        );
        return Err(Error::format(folder, reason));
    }
    if before.version != identity.version {
        let (was, is) = (&before.version, &identity.version);
        line(&format!("  this run began with gradus {was}; {is} may compute other bits"));
    }
    let owned = RunFolder::open(&folder)?;
    let (found, warnings) = checkpoint::load_latest(&folder.join("checkpoints"))?;
    warnings.iter().for_each(|warning| line(warning));
    match (&found, warnings.is_empty()) {
        (None, false) => {
            let reason = "no checkpoint of this run can be read; begin a new run without --resume";
            Err(Error::format(folder, reason))
        }
        (None, true) => {
            line(&format!("{} has no checkpoint yet: from the beginning", folder.display()));
            Ok(Some((owned, None)))
        }
        _ => Ok(Some((owned, found))),
    }
}

/// Gives `trainer` the state that `checkpoint` holds; returns the running figures.
fn go_on<T: Float>(
    trainer: &mut Trainer<T>,
    folder: &RunFolder,
    checkpoint: Checkpoint,
) -> Result<RunFigures> {
    let wrong = |reason: String| Error::format(folder.path(), reason);
    if checkpoint.fingerprint != trainer.config.fingerprint() {
        return Err(wrong("its newest checkpoint is that of a run of other settings".into()));
    }
    let figures: RunFigures = serde_json::from_value(checkpoint.meta)
        .map_err(|e| wrong(format!("checkpoint figures: {e}")))?;
    if figures.base != trainer.base {
        let reason = "the weights in `model.path` are others than when this run began";
        return Err(wrong(reason.into()));
    }
    trainer.load_state(&checkpoint.tensors)?;
    let keep = trainer.config.checkpoint.keep;
    checkpoint::settle(&folder.path().join("checkpoints"), checkpoint.step, keep)?;
    line(&format!(
        "resuming {} from checkpoint {:08}: {} steps are done",
        folder.path().display(),
        checkpoint.step,
        figures.global
    ));
    Ok(figures)
}

/// A score with three places, or that there is none.
pub(crate) fn shown(score: Option<f64>) -> String {
    score.map_or("none".into(), |score| format!("{score:.3}"))
}

/// The text behind the progress bar. What was not measured in this step is left out; `flat`: equal rewards left
/// nothing to learn.
fn message(metrics: &Metrics, flat: bool) -> String {
    let shown = [
        (Metric::Reward, "reward"),
        (Metric::EvalAccuracy, "held-out"),
        (Metric::Loss, "loss"),
        (Metric::Kl, "kl"),
        (Metric::Entropy, "entropy"),
        (Metric::ClipRegion, "clip"),
    ];
    let mut text = String::new();
    for (metric, label) in shown {
        if let Some(value) = metrics.get(metric).filter(|value| value.is_finite()) {
            // A loss just below 0 is shown as 0.
            text += &format!("{label} {:.3} ", (value * 1e3).round() / 1e3 + 0.0);
        }
    }
    if flat {
        text += "all rewards equal ";
    }
    if let Some(rate) = metrics.get(Metric::TokensPerSecond) {
        text += &match rate < 1e3 {
            true => format!("{rate:.0} tok/s"),
            false => format!("{:.1}k tok/s", rate / 1e3),
        };
    }
    text
}
