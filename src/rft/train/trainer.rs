//! A run: the model, its optimizer, and the phases it goes through.
//!
//! The verbs are the ones users of training services know: [`Trainer::sample`],
//! [`Trainer::forward_backward`], [`Trainer::optim_step`], [`Trainer::save_state`],
//! [`Trainer::load_state`]. The phases in [`crate::train::phase`] are loops over these verbs.

use std::sync::{Arc, Mutex, PoisonError};

use crate::model::Decoder;
use crate::pretrained::{Adapter, AdapterConfig};
use crate::reward::{Outcome, Reward, RewardInput};
use crate::text::Codec;
use crate::train::buffer::Buffers;
use crate::train::config::{CheckpointingKey, Drawn, PhasePlan, RunConfig};
use crate::train::critic::{Critic, CriticBatch};
use crate::train::env::{Environment, Judged, LastAnswer, Played, Rounds, World};
use crate::train::infer::eval::Evaluation;
use crate::train::inputs::{RunInputs, Stage, Stages, lora_options};
use crate::train::rollout::{Hooks, OnToken, Rollout, RolloutKey, Sampler, Sampling, rollout_with};
use crate::train::run::summary::SampleLine;
use crate::train::task::{Prompt, Task};
use crate::train::teacher::Teacher;
use crate::train::update::layers::LayerRates;
use crate::train::update::optimizer::{Optimizer, Update, Updated};
use crate::train::update::recipe::Recipe;
use crate::train::update::record::{Record, TokenClass};
use crate::train::update::reference::Reference;
use crate::train::update::step::{self, Backward, Objective};
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::Advantage;
use gradus::rng::Purpose;

/// Sequences that a thread of the CPU decodes together, if `rl.slots` does not say.
pub(crate) const CPU_SLOTS: usize = 128;

/// Sequences that a GPU decodes together, if `rl.slots` does not say.
const GPU_SLOTS: usize = 512;

/// Everything a run moves.
pub struct Trainer<T: Float = f32> {
    /// The run's settings.
    pub config: RunConfig,
    /// The policy.
    pub model: Decoder<T>,
    /// State of the policy's optimizer.
    pub optimizer: Optimizer,
    /// The critic and its optimizer's state, if the run has one.
    pub critic: Option<Critic>,
    /// What the collect phase gathered for the critic, since this trainer was made.
    pub collected: Option<CriticBatch>,
    /// What earlier phases of the running one's kind have drawn: it goes on behind them.
    pub before: Drawn,
    /// Prompts, demonstrations, verifier.
    pub task: Arc<dyn Task>,
    /// What answers the policy between its turns, if anything does.
    pub(crate) world: Option<World>,
    /// How the policy goes on with its own answers, if it does.
    pub(crate) rounds: Option<Arc<Rounds>>,
    /// Those of the run, and of each of its phases.
    stages: Stages,
    /// Samples episodes that are as long as can be, for a memory plan.
    pub(crate) longest: bool,
    /// Records that outlive their batch.
    pub buffers: Buffers,
    /// Whether a phase of the run keeps records beyond their batch.
    pub(crate) keeps_records: bool,
    /// Updates that a run that keeps records has made, whatever made them: the version of the policy.
    pub version: u64,
    /// State of the optimizer of the phase in `rl.then`, which goes on from one call to the next.
    pub(crate) inner: Option<Optimizer>,
    /// Updates in a row that were skipped because something was not finite.
    pub skipped: usize,
    /// What keeps the run within its memory.
    pub fit: Fit,
    /// What rollouts on a GPU keep from one step to the next.
    pub(crate) sampler: Mutex<Option<Sampler<T>>>,
    /// What the KL is measured to.
    pub(crate) reference: Reference<T>,
    /// Whom the phase `distill` learns from, once it needs it.
    pub(crate) teacher: Option<Teacher<T>>,
    /// Scores training completions; the task's verifier unless the caller sets another.
    pub reward: Arc<dyn Reward>,
    /// Scores held-out completions.
    pub(crate) verifier: Arc<dyn Reward>,
    /// The base weights are those of a folder and never move: states leave them out.
    pub(crate) frozen_base: bool,
    /// What a person should know about task and model.
    pub(crate) notes: Vec<String>,
    /// What tells the base weights from others; empty for a fresh model.
    pub(crate) base: String,
    /// What the adapters were attached by.
    pub(crate) adapter: Option<AdapterConfig>,
}

/// What keys that say "what fits" stand for: a memory plan decides. No bit of a result depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// What `rl.gradient_checkpointing = "auto"` stands for.
    pub recompute: bool,
    /// How much of the sampler's cache is there; see [`Sampling::cache_percent`].
    pub cache_percent: usize,
}

impl Default for Fit {
    /// Everything in memory at once.
    fn default() -> Fit {
        Fit { recompute: false, cache_percent: 100 }
    }
}

/// Prompts of a step with their completions.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// Token ids of the prompts.
    pub prompt_ids: Vec<Vec<i32>>,
    /// Completions of each prompt.
    pub rollouts: Vec<Vec<Rollout>>,
    /// Their texts, in order; of an episode that of the last answer.
    pub texts: Vec<String>,
    /// What else is known of episodes, in order; empty without an environment.
    pub played: Vec<Played>,
    /// What the continuations of each sample came to, in order; empty without rounds.
    pub(crate) last: Vec<Vec<LastAnswer>>,
}

impl Trainer {
    /// A fresh f32 model for `config`'s task on the device that it names, all parameters trainable.
    ///
    /// # Errors
    /// `Config` for whatever the configuration asks for and cannot be had, before anything runs.
    pub fn new(config: RunConfig) -> Result<Trainer> {
        let device = config.open_device()?;
        Trainer::on(config, device)
    }
}

impl<T: Float> Trainer<T> {
    /// A fresh model for `config`'s task, or the one of `model.path`, on `device`. `T` has to be the
    /// configuration's `model.dtype`.
    ///
    /// # Errors
    /// `Config` for whatever the configuration asks for and cannot be had, before anything runs; what
    /// reading the model's folder meets.
    pub fn on(config: RunConfig, device: Device) -> Result<Trainer<T>> {
        Trainer::build(config, device, false)
    }

    /// A trainer for a memory plan, with zeros in the place of a folder's weights.
    pub(crate) fn outline(config: RunConfig, device: Device) -> Result<Trainer<T>> {
        Trainer::build(config, device, true)
    }

    fn build(config: RunConfig, device: Device, outline: bool) -> Result<Trainer<T>> {
        config.validate()?;
        if config.model.dtype.dtype() != T::DTYPE {
            let reason = format!(
                "{}, but this trainer computes in {}",
                config.model.dtype.name(),
                T::DTYPE.name()
            );
            return Err(Error::config("model.dtype", reason));
        }
        lora_options(&config).check()?;
        let inputs = RunInputs::open(&config)?;
        let Stage { task, world, rounds } = inputs.stage.clone();
        let stages = inputs.stages();
        let (verifier, frozen_base) = (task.verifier(), inputs.is_frozen());
        let (fingerprint, notes) = (inputs.fingerprint(), inputs.notes.clone());
        let model = inputs.model(&config, device, outline)?;
        let optimizer = Optimizer::new(&model.device, &model.params, config.rl.optim.residence())?;
        Ok(Trainer {
            keeps_records: config.plan()?.iter().any(|plan| plan.config.rl.keeps_records()),
            config,
            model,
            optimizer,
            critic: None,
            collected: None,
            before: Drawn::default(),
            task,
            world,
            rounds,
            stages,
            longest: false,
            buffers: Buffers::default(),
            version: 0,
            inner: None,
            skipped: 0,
            fit: Fit::default(),
            sampler: Mutex::new(None),
            reference: Reference::NotTaken,
            teacher: None,
            reward: verifier.clone(),
            verifier,
            frozen_base,
            notes,
            base: fingerprint,
            adapter: None,
        })
    }

    /// Takes over the settings of a phase, its prompts and its reward. `plan` is one of
    /// [`RunConfig::plan`] of the configuration that this trainer was made for.
    pub fn enter(&mut self, plan: &PhasePlan) {
        self.config = plan.config.clone();
        self.before = plan.before;
        // What may move is the phase's own; the next step of RL asks.
        self.optimizer.restrict(Vec::new());
        if let Some(stage) = self.stages.phases.get(plan.number) {
            self.take(stage.clone());
        }
    }

    /// Goes back to the settings of the run itself, its prompts and its reward.
    pub(crate) fn leave(&mut self, config: &RunConfig) {
        self.config = config.clone();
        self.before = Drawn::default();
        self.take(self.stages.run.clone());
    }

    /// Prompts, reward and environment of a stage, unless they are there: a reward and an environment that
    /// were set stay.
    fn take(&mut self, stage: Stage) {
        if !Arc::ptr_eq(&stage.task, &self.task) {
            self.verifier = stage.task.verifier();
            self.reward = self.verifier.clone();
            self.task = stage.task;
            (self.world, self.rounds) = (stage.world, stage.rounds);
        }
    }

    /// Replaces the reward: a closure, or anything else that scores completions.
    pub fn with_reward(mut self, reward: impl Reward + 'static) -> Trainer<T> {
        self.reward = Arc::new(reward);
        self
    }

    /// Gives the environment of `env.kind = "own"`.
    ///
    /// # Errors
    /// `Config` where `env.kind` is anything else, and for one that scores nothing where nothing else does.
    pub fn with_environment(
        mut self,
        environment: impl Environment + 'static,
    ) -> Result<Trainer<T>> {
        if !environment.scores() && self.config.reward.functions.is_empty() {
            let reason = "empty, and the environment does not score its episodes";
            return Err(Error::config("reward.functions", reason));
        }
        match &mut self.world {
            Some(world) if self.config.env.kind == "own" => {
                world.environment = Some(Arc::new(environment));
                Ok(self)
            }
            Some(_) | None => {
                let got = &self.config.env.kind;
                let reason = format!("`{got}`, and an environment of one's own is called own");
                Err(Error::config("env.kind", reason))
            }
        }
    }

    /// What the configuration asks of the ops in the `rl` phase.
    ///
    /// # Errors
    /// `Config`, as [`Recipe::of`].
    pub fn recipe(&self) -> Result<Recipe> {
        Recipe::of(&self.config, self.most_sampled() as f64)
    }

    /// How training rollouts are drawn.
    pub fn sampling(&self) -> Sampling {
        let rl = &self.config.rl;
        Sampling {
            temperature: rl.temperature,
            top_k: rl.top_k,
            top_p: rl.top_p,
            min_p: rl.min_p,
            greedy: false,
            max_new_tokens: self.max_new_tokens(),
            stops: self.task.codec().stops().into(),
            slots: match (self.config.rl.slots, &self.model.device) {
                (0, Device::Cpu) => CPU_SLOTS,
                (0, Device::Gpu(_)) => GPU_SLOTS,
                (n, _) => n,
            },
            longest_prompt: self.task.lengths().0 + self.most_between(),
            cache_percent: self.fit.cache_percent,
        }
    }

    /// Whether updates compute each block's activations again on their way back.
    pub(crate) fn recomputes(&self) -> bool {
        match self.config.rl.gradient_checkpointing {
            CheckpointingKey::Auto => self.fit.recompute,
            CheckpointingKey::On => true,
            CheckpointingKey::Off => false,
        }
    }

    /// Most tokens of an answer.
    pub(crate) fn max_new_tokens(&self) -> usize {
        match self.config.rl.max_new_tokens {
            0 => self.task.lengths().1,
            n => n,
        }
    }

    /// `samples` completions of each prompt with the current policy, or episodes if there is an environment.
    pub fn sample(&self, prompts: Vec<Prompt>, samples: usize, step: u64) -> Result<Sampled> {
        self.sample_as(&self.sampling(), prompts, samples, step)
    }

    /// As [`Trainer::sample`], drawn as `sampling` says.
    pub(crate) fn sample_as(
        &self,
        sampling: &Sampling,
        prompts: Vec<Prompt>,
        samples: usize,
        step: u64,
    ) -> Result<Sampled> {
        let key = RolloutKey { seed: self.config.seed, purpose: Purpose::Sample, step };
        self.sample_with(prompts, samples, sampling, key)
    }

    fn sample_with(
        &self,
        prompts: Vec<Prompt>,
        samples: usize,
        sampling: &Sampling,
        key: RolloutKey,
    ) -> Result<Sampled> {
        match (&self.world, &self.rounds) {
            (Some(world), _) => self.play(world, prompts, samples, sampling, key),
            (None, Some(rounds)) => self.play_rounds(rounds, prompts, samples, sampling, key),
            (None, None) => self.complete(prompts, samples, sampling, key, None),
        }
    }

    /// `samples` completions of each prompt; `on_token` sees tokens as they are drawn.
    pub(crate) fn complete(
        &self,
        prompts: Vec<Prompt>,
        samples: usize,
        sampling: &Sampling,
        key: RolloutKey,
        on_token: Option<OnToken<'_>>,
    ) -> Result<Sampled> {
        let prompt_ids = prompts.iter().map(|p| self.task.encode(p)).collect::<Result<Vec<_>>>()?;
        let (codec, stop) = (self.task.codec(), self.config.rl.stop.as_slice());
        let ends = |tokens: &[i32]| ends_with(codec, stop, tokens);
        let hooks = Hooks { on_token, ends: (!stop.is_empty()).then_some(&ends) };
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        let rollouts =
            rollout_with(&mut sampler, &self.model, &prompt_ids, samples, sampling, key, hooks)?;
        let decode = |r: &Rollout| self.spell(&r.tokens);
        let texts = rollouts.iter().flatten().map(decode).collect::<Result<_>>()?;
        Ok(Sampled { prompts, prompt_ids, rollouts, texts, ..Sampled::default() })
    }

    /// The text of an answer, as rewards and environments read it.
    pub(crate) fn spell(&self, tokens: &[i32]) -> Result<String> {
        match self.config.reward.skip_special_tokens {
            true => self.task.codec().decode(tokens),
            false => self.task.codec().decode_spelled(tokens),
        }
    }

    /// Loss and gradients of `records`; see [`step::forward_backward`].
    pub fn forward_backward(
        &self,
        records: &[Record],
        advantage: Advantage<'_, f32>,
        seq_weight: &[f32],
        objective: Objective<'_>,
    ) -> Result<Backward> {
        step::forward_backward(&self.model, records, advantage, seq_weight, objective)
    }

    /// One AdamW update.
    pub fn optim_step(&mut self, backward: &Backward, update: Update) -> Result<Updated> {
        self.optim_step_by_layers(backward, update, LayerRates::EVEN)
    }

    pub(crate) fn fresh_optimizer(&self) -> Result<Optimizer> {
        Optimizer::new(&self.model.device, &self.model.params, self.config.rl.optim.residence())
    }

    /// Quantizes the blocks' weights that are not 4-bit yet, freezes the model, attaches adapters,
    /// fresh ones or those of `model.adapter`, and starts an optimizer for them. Returns the bytes
    /// of the weights that were quantized.
    ///
    /// # Errors
    /// What [`Decoder::quantize`] and [`Adapter::attach`] refuse; `OutOfMemory`.
    pub fn quantize(&mut self) -> Result<u64> {
        let mut bytes = 0;
        if let Some(options) = self.config.nf4_options() {
            bytes = self.model.quantize(&options)?;
        }
        let (options, model) = (lora_options(&self.config), &self.config.model);
        self.adapter = Some(if model.adapter.is_empty() {
            self.model.attach_lora(&options, self.config.seed)?;
            AdapterConfig::new(&options, &self.model.config, &model.path)?
                .with_dropout(self.config.lora.dropout)
        } else {
            let adapter = Adapter::load(model.adapter.as_ref())?;
            adapter.attach(&mut self.model)?;
            adapter.config
        });
        self.optimizer = self.fresh_optimizer()?;
        // Its moments belong to what trained before.
        self.inner = None;
        self.reference = Reference::NotTaken;
        Ok(bytes)
    }

    /// Accuracy on the held-out prompts, with the same draws at every call, so that two evaluations
    /// differ by the policy alone.
    pub fn evaluate(&self) -> Result<Evaluation> {
        self.evaluate_on(self.task.heldout(self.config.eval.max_prompts), 0)
    }

    /// The same on each set of `data.suites`, by name; draws are those of no other set.
    pub fn evaluate_suites(&self) -> Result<Vec<(String, Evaluation)>> {
        let suites = self.task.suites(self.config.eval.max_prompts).into_iter();
        let one = |(set, (name, prompts))| Ok((name, self.evaluate_on(prompts, set)?));
        (1..).zip(suites).map(one).collect()
    }

    /// Scores on `prompts`, which are the held-out set of this number.
    fn evaluate_on(&self, prompts: Vec<Prompt>, set: u64) -> Result<Evaluation> {
        let eval = &self.config.eval;
        let sampling = Sampling {
            temperature: if eval.temperature > 0.0 { eval.temperature } else { 1.0 },
            greedy: eval.temperature == 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..self.sampling()
        };
        let key = RolloutKey { seed: self.config.seed, purpose: Purpose::Eval, step: set };
        let sampled = self.sample_with(prompts, eval.samples, &sampling, key)?;
        Evaluation::of(self.verifier.as_ref(), &sampled)
    }
}

/// Whether the last of `tokens` completes one of the texts `stop`. As many tokens as a text has bytes
/// are looked at, and some more, as a token may spell nothing.
pub(crate) fn ends_with(codec: &dyn Codec, stop: &[String], tokens: &[i32]) -> Result<bool> {
    let longest = stop.iter().map(String::len).max().unwrap_or(0);
    let text = codec.decode_spelled(&tokens[tokens.len().saturating_sub(longest + 8)..])?;
    Ok(stop.iter().any(|stop| text.contains(stop.as_str())))
}

impl Sampled {
    /// Appends what was sampled later.
    pub(crate) fn append(&mut self, later: Sampled) {
        self.prompts.extend(later.prompts);
        self.prompt_ids.extend(later.prompt_ids);
        self.rollouts.extend(later.rollouts);
        self.texts.extend(later.texts);
        self.played.extend(later.played);
        self.last.extend(later.last);
    }

    /// What `reward` says of what was sampled, with what the turns of episodes were worth.
    pub(crate) fn judged<'a>(&'a self, reward: &'a dyn Reward) -> Judged<'a> {
        Judged { reward, played: &self.played, last: &self.last }
    }

    /// The completions as rewards see them, prompt by prompt.
    pub fn inputs(&self) -> Vec<RewardInput<'_>> {
        let each = self.prompts.iter().zip(&self.rollouts);
        let each = each.flat_map(|(prompt, rollouts)| rollouts.iter().map(move |r| (prompt, r)));
        each.zip(&self.texts)
            .map(|((prompt, rollout), text)| RewardInput {
                prompt: &prompt.text,
                completion: text,
                finished: rollout.finished,
                fields: &prompt.fields,
            })
            .collect()
    }

    /// How many completions each prompt has.
    pub fn groups(&self) -> Vec<usize> {
        self.rollouts.iter().map(Vec::len).collect()
    }

    /// The completions with what `reward` says of each; nobody was asked without one.
    pub(crate) fn lines(
        &self,
        outcomes: impl IntoIterator<Item = Outcome>,
        reward: Option<&dyn Reward>,
    ) -> Vec<SampleLine> {
        let zero_to_one = reward.and_then(|reward| reward.bounds()) == Some((0.0, 1.0));
        let each = self.prompts.iter().zip(&self.rollouts);
        let each = each.flat_map(|(prompt, rollouts)| rollouts.iter().map(move |r| (prompt, r)));
        let told = |i: usize, text: &str| match self.played.get(i) {
            Some(played) => played.transcript.clone(),
            None => text.to_string(),
        };
        let each = each.zip(&self.texts).zip(outcomes).enumerate();
        each.map(|(i, (((prompt, rollout), text), outcome))| {
            let (score, failure) = match outcome {
                Ok(outcome) => (outcome.score(), None),
                Err(reason) => (None, Some(reason)),
            };
            SampleLine {
                prompt: prompt.text.clone(),
                question: prompt.question.clone(),
                completion: told(i, text),
                finished: rollout.finished,
                judged: reward.is_some(),
                zero_to_one,
                score,
                failure,
                logp: rollout.logp.iter().sum(),
            }
        })
        .collect()
    }

    /// One record per completion or episode; groups are prompts. What was said to the policy is no more
    /// scored than a prompt is; the beginning of a demonstration is scored as one.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (group, (prompt, rollouts)) in self.prompt_ids.iter().zip(&self.rollouts).enumerate() {
            for rollout in rollouts {
                let mut record =
                    Record { group: group as u32, finished: rollout.finished, ..Record::default() };
                record.push(prompt, TokenClass::Prompt, &[]);
                record.push(&rollout.tokens, TokenClass::Gen, &rollout.logp);
                let first = record.ids.len() - rollout.entropy.len();
                record.entropy[first..].copy_from_slice(&rollout.entropy);
                record.class[first..][..rollout.begun].fill(TokenClass::Demo);
                for said in &rollout.said {
                    record.class[first..][said.clone()].fill(TokenClass::Prompt);
                }
                records.push(record);
            }
        }
        records
    }
}
