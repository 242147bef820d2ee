//! What a run starts from: the task with its vocabulary, and a fresh model or one from a folder.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::io::system_memory::total_memory;
use crate::model::{Decoder, LoraOptions, ModelConfig, RopeScaling};
use crate::pretrained::{LoadOptions, Pretrained};
use crate::reward::Reward;
use crate::reward::command::CommandOptions;
use crate::reward::http::HttpOptions;
use crate::reward::spec::{Clamp, Combine, SpecOptions, parse_all};
use crate::text::{Bytes, Codec, END, WithoutPictures};
use crate::train::config::{Bounds, CombineKey, DistillSource, PhasePlan, RunConfig};
use crate::train::env::{self, Frame, Rounds, World};
use crate::train::phase::Phase;
use crate::train::phase::scored::{check_answers, crosses};
use crate::train::task::{Countdown, Task};
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::{Error, Result};

/// What a run reads before its weights: the tasks of its phases, and the model's folder.
pub(crate) struct RunInputs {
    /// The task of the run itself.
    pub stage: Stage,
    /// What a person should know about the tasks.
    pub notes: Vec<String>,
    plans: Vec<PhasePlan>,
    /// One for each phase.
    phases: Vec<Stage>,
    folder: Option<Pretrained>,
}

/// Where prompts and rewards come from, and what answers the policy.
#[derive(Clone)]
pub(crate) struct Stage {
    pub task: Arc<dyn Task>,
    pub world: Option<World>,
    pub rounds: Option<Arc<Rounds>>,
}

/// The stages of a run.
pub(crate) struct Stages {
    /// For the run itself: its evaluations are on the held-out prompts of this one.
    pub run: Stage,
    /// For each of its phases; the same one where the settings are.
    pub phases: Vec<Stage>,
}

impl RunInputs {
    /// Opens what `config` and its phases name.
    ///
    /// # Errors
    /// `Config`, `Format` or `Io` for a folder, a tokenizer, data or a reward that cannot be had.
    pub fn open(config: &RunConfig) -> Result<RunInputs> {
        let folder = match config.model.path.as_str() {
            "" => None,
            path => Some(Pretrained::open(path.as_ref())?),
        };
        let mut notes = Vec::new();
        let plans = config.plan()?;
        let reads = |config: &RunConfig| !config.data.path.is_empty();
        let reads = reads(config) || plans.iter().any(|plan| reads(&plan.config));
        let codec = match &folder {
            Some(folder) => Some(codec(folder, &mut notes)?),
            None if reads => Some(Arc::new(Bytes::new(&[END])) as Arc<dyn Codec>),
            None => None,
        };
        let on = codec.map(|codec| (codec, folder.as_ref().map(|folder| folder.files.folder())));
        let stage = stage(config, on.as_ref(), &mut notes)?;
        let mut known = vec![(config, stage.clone())];
        let mut phases = Vec::new();
        for plan in &plans {
            let found = known.iter().find(|(known, _)| same_stage(known, &plan.config));
            let found = match found {
                Some((_, stage)) => stage.clone(),
                None => {
                    notes.push(format!("   phase {}", plan.name));
                    let own = self::stage(&plan.config, on.as_ref(), &mut notes)
                        .map_err(|error| config.in_phase(&plan.name, error))?;
                    same_vocabulary(plan, stage.task.codec(), own.task.codec())?;
                    known.push((&plan.config, own.clone()));
                    own
                }
            };
            phases.push(found);
        }
        drop(known);
        Ok(RunInputs { stage, notes, plans, phases, folder })
    }

    /// The tasks of the run and of its phases.
    pub fn stages(&self) -> Stages {
        Stages { run: self.stage.clone(), phases: self.phases.clone() }
    }

    /// The run and its phases: settings and task.
    fn each<'a>(
        &'a self,
        run: &'a RunConfig,
    ) -> impl Iterator<Item = (&'a RunConfig, &'a dyn Task)> {
        let phases = self.plans.iter().map(|plan| &plan.config).zip(&self.phases);
        let all = [(run, &self.stage)].into_iter().chain(phases);
        all.map(|(config, stage)| (config, stage.task.as_ref()))
    }

    /// What tells the folder's weights from others; empty without a folder.
    pub fn fingerprint(&self) -> String {
        self.folder.as_ref().map_or(String::new(), |folder| folder.files.fingerprint())
    }

    /// Whether the weights are read once, frozen, and never move.
    pub fn is_frozen(&self) -> bool {
        let first = self.plans.first().map(|plan| plan.kind);
        self.folder.is_some() && first == Some(Phase::Quantize)
    }

    /// The model on `device`: that of the folder, 4-bit at once if that is the first phase, or a
    /// fresh one.
    /// `outline`: for a memory plan, without reading a weight.
    pub fn model<T: Float>(
        mut self,
        config: &RunConfig,
        device: Device,
        outline: bool,
    ) -> Result<Decoder<T>> {
        let frozen = self.is_frozen();
        let (demos, answers) = (self.longest_demo()?, self.longest_answer()?);
        let Some(mut folder) = self.folder.take() else {
            let longest = self.each(config).map(|(config, task)| {
                let ((prompt, answer), (_, new)) = (task.lengths(), sampled_lengths(config, task));
                // Prompts of one's own may be as long as those of a data set.
                let own =
                    if config.data.path.is_empty() { 0 } else { config.data.max_prompt_tokens };
                prompt.max(own) + answer.max(new) + 1
            });
            let longest = longest.max().unwrap_or(0).max(demos).max(answers);
            let shape = fresh(config, self.stage.task.codec().len(), longest);
            refuse_giants::<T>(&shape)?;
            return Decoder::random(&shape, device, config.seed);
        };
        let most = folder.config.model.max_positions;
        let positions = self.each(config).map(|(config, task)| positions(config, task, most));
        let positions = positions.collect::<Result<Vec<_>>>()?;
        if demos > most {
            let reason = format!(
                "the longest demonstration has {demos} tokens, the model has {most} positions"
            );
            return Err(Error::config("data.path", reason));
        }
        if answers > most {
            let reason = format!(
                "the longest answer has {answers} tokens with its prompt, the model has {most} positions"
            );
            return Err(Error::config("data.path", reason));
        }
        if !frozen && folder.config.quantized {
            let reason = "a 4-bit model cannot train before the phase `quantize`";
            return Err(Error::config("phases", reason));
        }
        let options = LoadOptions {
            quantize: config.nf4_options().filter(|_| frozen),
            trainable: !frozen,
            max_positions: positions.into_iter().max().map(|n| n.max(demos).max(answers)),
        };
        match outline {
            true => folder.outline(device, &options),
            false => folder.load(device, &options),
        }
    }

    /// Tokens of the longest demonstration that a phase learns from.
    fn longest_demo(&self) -> Result<usize> {
        let mut longest = 0;
        for (plan, Stage { task, .. }) in self.plans.iter().zip(&self.phases) {
            let demos = match plan.kind {
                Phase::Sft => true,
                Phase::Distill => plan.config.distill.source == DistillSource::Demos,
                Phase::Quantize | Phase::Collect | Phase::ValueFit | Phase::Rl => false,
            };
            let learns = demos && plan.config.sft.buffer()?.is_none();
            let rl = &plan.config.rl;
            let begins = plan.kind == Phase::Rl && rl.prefix_samples > 0;
            if learns || begins || (plan.kind.rolls_out() && !rl.divert.is_empty()) {
                longest = task.longest_demo()?.max(longest);
            }
        }
        Ok(longest)
    }

    /// Tokens of the longest scored answer of a file, with its prompt, that a phase learns from.
    fn longest_answer(&self) -> Result<usize> {
        let mut longest = 0;
        for (plan, Stage { task, .. }) in self.plans.iter().zip(&self.phases) {
            if plan.kind == Phase::Rl {
                longest = check_answers(&plan.config, task.as_ref())?.max(longest);
            }
        }
        Ok(longest)
    }
}

/// Tokens of the longest prompt, and most tokens behind one: of a completion, or of an episode.
fn sampled_lengths(config: &RunConfig, task: &dyn Task) -> (usize, usize) {
    let (prompt, answer) = task.lengths();
    let answer = if config.rl.max_new_tokens == 0 { answer } else { config.rl.max_new_tokens };
    match config.env.kind.is_empty() {
        true => (prompt, answer),
        false => (prompt, config.env.limits(answer).tokens),
    }
}

/// Positions that rollouts of `config` take, of `most` that a model from disk has.
fn positions(config: &RunConfig, task: &dyn Task, most: usize) -> Result<usize> {
    let (prompt, new) = sampled_lengths(config, task);
    // One for a token that begins sequences, one for the position behind the last.
    let positions = prompt + new + 2;
    if positions > most {
        let mut reason = format!(
            "prompts of {prompt} tokens, {new} new ones and 2 around them need {positions} positions, \
             the model has {most}"
        );
        if let Some(room) = most.checked_sub(prompt + 2).filter(|&room| room > 0) {
            reason += &format!(": set at most {room}");
        }
        let plain = config.env.kind.is_empty();
        let key = if plain { "rl.max_new_tokens" } else { "env.max_tokens" };
        return Err(Error::config(key, reason));
    }
    // Prompts of one's own may be as long as those of a data set.
    Ok(positions.max(config.data.max_prompt_tokens + new + 2))
}

/// Whether two configurations have the same prompts, scored in the same way, and the same environment.
fn same_stage(a: &RunConfig, b: &RunConfig) -> bool {
    // Contexts of a row are as good as prompts.
    let crossed = |config: &RunConfig| matches!(crosses(config), Ok(true));
    // Where answers end decides how long demonstrations of several turns are.
    let stop = |config: &RunConfig| match config.env.kind.is_empty() {
        true => Vec::new(),
        false => config.rl.stop.clone(),
    };
    let world = |config: &RunConfig| {
        let env = config.env.clone();
        let asks = (env.question_cost, env.question_value);
        (env.kind, env.history, asks, env.continuations, env.carry, stop(config))
    };
    (&a.task, &a.data, &a.reward) == (&b.task, &b.data, &b.reward)
        && crossed(a) == crossed(b)
        && world(a) == world(b)
}

/// Makes sure that the ids of a phase mean what they mean in the rest of the run.
fn same_vocabulary(plan: &PhasePlan, run: &dyn Codec, own: &dyn Codec) -> Result<()> {
    let spelled = |codec: &dyn Codec| {
        let ids = 0..codec.len() as i32;
        ids.map(|id| codec.decode_spelled(&[id])).collect::<Result<Vec<_>>>()
    };
    if !std::ptr::addr_eq(run, own) && (spelled(run)?, run.stops()) != (spelled(own)?, own.stops())
    {
        let reason = format!("the phase `{}` has other characters than the run", plan.name);
        return Err(Error::config(format!("phase.{}", plan.name), reason));
    }
    Ok(())
}

/// Task and environment of `config`, as [`task`] and [`world`].
fn stage(
    config: &RunConfig,
    on: Option<&(Arc<dyn Codec>, Option<&Path>)>,
    notes: &mut Vec<String>,
) -> Result<Stage> {
    let world = world(config, on.and_then(|(_, folder)| *folder))?;
    let task = task(config, on, notes)?;
    if let Some(world) = &world
        && let Err(error) = world.frame.ids(task.codec(), "", None)
    {
        let reason = format!("nothing can be said in the vocabulary of this run: {error}");
        return Err(Error::config("env.kind", reason));
    }
    let rounds = rounds(config)?;
    Ok(Stage { task, world, rounds })
}

/// The environment of `config`, if it names one, for a model that is from `folder`, if it is from disk.
fn world(config: &RunConfig, folder: Option<&Path>) -> Result<Option<World>> {
    if config.env.kind.is_empty() || config.env.kind == env::ROUNDS {
        return Ok(None);
    }
    let environment = env::made(&config.env, command_options(config))?;
    Ok(Some(World { environment, frame: Arc::new(frame(config, folder)?) }))
}

/// How the policy of `config` goes on with its own answers, if it does.
fn rounds(config: &RunConfig) -> Result<Option<Arc<Rounds>>> {
    let env = &config.env;
    match env.kind == env::ROUNDS {
        true => {
            Ok(Some(Arc::new(Rounds::new(&env.carry, env.continuations, &config.data.system)?)))
        }
        false => Ok(None),
    }
}

/// How an environment's words are written.
#[cfg(feature = "hf")]
fn frame(config: &RunConfig, folder: Option<&Path>) -> Result<Frame> {
    use crate::train::config::HistoryKey;
    use crate::train::task::dataset::PromptWriter;
    let as_sampled = config.env.history == HistoryKey::AsSampled;
    PromptWriter::new(&config.data, folder)?.frame(as_sampled)
}

#[cfg(not(feature = "hf"))]
fn frame(_: &RunConfig, _: Option<&Path>) -> Result<Frame> {
    Ok(Frame::plain())
}

/// The task of `config`, in the vocabulary of a model that reads text if there is one, with its folder if it
/// is from disk.
fn task(
    config: &RunConfig,
    on: Option<&(Arc<dyn Codec>, Option<&Path>)>,
    notes: &mut Vec<String>,
) -> Result<Arc<dyn Task>> {
    let reward = reward(config)?;
    match on {
        Some((codec, folder)) => on_text(config, *folder, codec.clone(), reward, notes),
        None => Ok(Arc::new(countdown(config)?.with(None, reward, None))),
    }
}

/// Refuses a device, a shape, targets of adapters, a task and rewards that cannot be, without a file of a model
/// or of data.
///
/// # Errors
/// `Config` with the key.
pub(crate) fn check(config: &RunConfig) -> Result<()> {
    config.named_device()?;
    lora_options(config).check()?;
    if config.model.path.is_empty() {
        refuse_giants::<f32>(&fresh(config, 1, 1))?;
    }
    if config.data.path.is_empty() && config.model.path.is_empty() {
        countdown(config)?;
    }
    reward(config).map(|_| ())
}

fn countdown(config: &RunConfig) -> Result<Countdown> {
    let t = &config.task;
    let targets = t.min_target as i64..=t.max_target as i64;
    Countdown::new(config.seed, t.digits, &t.operators, targets)
}

/// The configured reward.
fn reward(config: &RunConfig) -> Result<Option<Arc<dyn Reward>>> {
    let reward = &config.reward;
    if reward.functions.is_empty() {
        return Ok(None);
    }
    let command = command_options(config);
    let CommandOptions { timeout, retries, .. } = command;
    let options = SpecOptions {
        command,
        http: HttpOptions { timeout, retries, ..HttpOptions::default() },
        code_time: Some(timeout),
        combine: match reward.combine {
            CombineKey::Sum => Combine::Sum,
            CombineKey::Harmonic => Combine::Harmonic,
            CombineKey::Min => Combine::Min,
        },
        clamp_parts: clamp(reward.clamp_parts),
        clamp: clamp(reward.clamp),
    };
    match parse_all(&reward.functions, &options) {
        Err(Error::Config { key, reason }) if key == "reward" => {
            Err(Error::config("reward.functions", reason))
        }
        made => made.map(Some),
    }
}

/// How programs outside the process are run.
pub(crate) fn command_options(config: &RunConfig) -> CommandOptions {
    let (reward, defaults) = (&config.reward, CommandOptions::default());
    let timeout = Duration::from_secs_f64(reward.timeout);
    let workers = if reward.workers == 0 { defaults.workers } else { reward.workers };
    let startup = if reward.startup == 0.0 { 2.0 * reward.timeout } else { reward.startup };
    let startup = Duration::from_secs_f64(startup);
    CommandOptions { workers, timeout, startup, retries: reward.retries as u32, ..defaults }
}

fn clamp(bounds: Bounds) -> Option<Clamp> {
    bounds.ends().map(|(low, high)| Clamp { low, high })
}

/// The vocabulary of a folder.
pub(crate) fn codec(folder: &Pretrained, notes: &mut Vec<String>) -> Result<Arc<dyn Codec>> {
    let (path, rows) = (folder.files.folder(), folder.config.model.vocab);
    let codec: Arc<dyn Codec> = if path.join("tokenizer.json").exists() {
        tokenizer(path, rows)?
    } else if rows == 256 {
        notes.push("  no tokenizer.json: the model's 256 ids are taken for bytes".into());
        Arc::new(Bytes::new(&folder.config.eos))
    } else {
        return Err(Error::format(path, "no tokenizer.json in this folder"));
    };
    let pictures = folder.config.pictures.clone();
    if !folder.config.model.language_part {
        return Ok(codec);
    }
    notes.push("  the language part alone: prompts with pictures are refused".into());
    Ok(Arc::new(WithoutPictures { codec, pictures }))
}

#[cfg(feature = "hf")]
fn tokenizer(path: &Path, rows: usize) -> Result<Arc<dyn Codec>> {
    let tokenizer = crate::text::Tokenizer::load(path)?;
    tokenizer.check(rows)?;
    Ok(Arc::new(tokenizer))
}

/// The task of a model that reads text: its data, or the built-in one in the model's vocabulary.
/// `folder` is where the model comes from, if it is from disk.
#[cfg(feature = "hf")]
fn on_text(
    config: &RunConfig,
    folder: Option<&Path>,
    codec: Arc<dyn Codec>,
    reward: Option<Arc<dyn Reward>>,
    notes: &mut Vec<String>,
) -> Result<Arc<dyn Task>> {
    use crate::reward::{RewardInput, RewardOutcome};
    use crate::train::config::SourceKey;
    use crate::train::task::dataset::{DataTask, PromptWriter};
    let writer = PromptWriter::new(&config.data, folder)?;
    if config.data.path.is_empty() {
        let converse = Arc::new(move |messages: &[serde_json::Value]| writer.converse(messages));
        return Ok(Arc::new(countdown(config)?.with(Some(codec), reward, Some(converse))));
    }
    let plans = config.plan()?;
    let unasked = |plan: &PhasePlan| match plan.kind {
        Phase::Sft | Phase::Quantize | Phase::Distill => true,
        // Scores come from the file, or the objective compares contexts and not scores.
        Phase::Rl => {
            plan.config.rl.source == SourceKey::Data || matches!(crosses(&plan.config), Ok(true))
        }
        Phase::Collect | Phase::ValueFit => false,
    };
    // Where nobody is rewarded, an evaluation has no opinion either.
    let silent = plans.iter().all(unasked).then(|| {
        let silent: Arc<dyn Reward> = Arc::new(|_: &RewardInput<'_>| Ok(RewardOutcome::Abstain));
        silent
    });
    // An environment that scores episodes needs no opinion about their last answers.
    let nothing = env::scores(&config.env).then(|| {
        let nothing: Arc<dyn Reward> =
            Arc::new(|_: &RewardInput<'_>| Ok(RewardOutcome::Score(0.0)));
        nothing
    });
    let Some(reward) = reward.or(nothing).or(silent) else {
        let reason = "empty: say how completions of data.path are scored, for example `numeric`";
        return Err(Error::config("reward.functions", reason));
    };
    Ok(Arc::new(DataTask::load(config, codec, writer, reward, notes)?))
}

#[cfg(not(feature = "hf"))]
fn tokenizer(_: &Path, _: usize) -> Result<Arc<dyn Codec>> {
    Err(without_hf())
}

#[cfg(not(feature = "hf"))]
fn on_text(
    config: &RunConfig,
    _: Option<&Path>,
    codec: Arc<dyn Codec>,
    reward: Option<Arc<dyn Reward>>,
    _: &mut Vec<String>,
) -> Result<Arc<dyn Task>> {
    match config.data.path.is_empty() {
        true => Ok(Arc::new(countdown(config)?.with(Some(codec), reward, None))),
        false => Err(without_hf()),
    }
}

#[cfg(not(feature = "hf"))]
fn without_hf() -> Error {
    let reason = "this build has no tokenizers and data loaders: enable the feature hf".into();
    Error::Unsupported { op: "train", reason }
}

/// Refuses a fresh model that the machine cannot hold, before it is made: a memory plan is made with it.
fn refuse_giants<T: Float>(shape: &ModelConfig) -> Result<()> {
    shape.validate()?;
    let (count, size) = (shape.parameters(), T::DTYPE.size() as u128);
    match total_memory().filter(|&total| count * size > total.into()) {
        None => Ok(()),
        Some(total) => {
            let gib = |bytes: u128| bytes as f64 / (1u64 << 30) as f64;
            let reason = format!(
                "a model of this shape has {count} parameters, which take {:.1} GiB; the machine has \
                 {:.1} GiB. Lower model.hidden, model.ffn or model.layers",
                gib(count * size),
                gib(total.into())
            );
            Err(Error::config("model", reason))
        }
    }
}

/// The shape of a model that starts from nothing.
fn fresh(config: &RunConfig, vocab: usize, max_positions: usize) -> ModelConfig {
    let m = &config.model;
    ModelConfig {
        vocab,
        hidden: m.hidden,
        layers: m.layers,
        heads: m.heads,
        kv_heads: m.kv_heads,
        head_dim: m.head_dim,
        ffn: m.ffn,
        norm_eps: m.norm_eps,
        rope_theta: m.rope_theta,
        rope_scaling: RopeScaling::None,
        max_positions,
        qkv_bias: false,
        qk_norm: false,
        tie_embeddings: m.tie_embeddings,
        language_part: false,
    }
}

/// How adapters are made.
pub(crate) fn lora_options(config: &RunConfig) -> LoraOptions {
    let lora = &config.lora;
    LoraOptions {
        rank: lora.rank,
        alpha: lora.alpha,
        targets: lora.targets.clone(),
        rslora: lora.rslora,
    }
}
