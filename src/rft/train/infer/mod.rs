//! Asking a run or a model: samples, scores, talk.

pub mod eval;

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::model::Weight;
use crate::pretrained::Generation;
use crate::reward::{Reward, RewardOutcome, finite};
use crate::text::Codec;
use crate::train::config::{ModelDtype, QuantizeType, RunConfig};
use crate::train::env;
use crate::train::infer::eval::Evaluation;
use crate::train::rollout::{RolloutKey, Sampling};
use crate::train::run::progress::line;
use crate::train::run::summary::SampleLine;
use crate::train::run::{checkpoint, on_threads};
use crate::train::task::Prompt;
use crate::train::trainer::Trainer;
use gradus::dtype::{Float, bf16};
use gradus::error::{Error, Result};
use gradus::escape::escaped;
use gradus::rng::Purpose;

/// What is asked.
#[derive(Clone, Debug)]
pub enum RunOrModel {
    /// The newest state of the run in this folder.
    Run(PathBuf),
    /// The model, and the adapter if there is one, that a configuration names.
    Model(RunConfig),
}

impl RunOrModel {
    pub(crate) fn config(&self) -> Result<RunConfig> {
        let config = match self {
            RunOrModel::Run(folder) => RunConfig::of_run(&folder.join("config.toml"))?,
            RunOrModel::Model(config) => config.clone(),
        };
        config.validate()?;
        Ok(config)
    }

    /// The model, ready to sample from.
    pub(crate) fn trainer<T: Float>(&self, config: RunConfig) -> Result<Trainer<T>> {
        let trainer = match self {
            RunOrModel::Run(folder) => open_run(folder)?,
            RunOrModel::Model(_) => {
                let device = config.open_device()?;
                let adapted = !config.model.adapter.is_empty();
                let mut trainer = Trainer::on(config, device)?;
                trainer.notes.iter().for_each(|note| line(note));
                if adapted {
                    trainer.quantize()?;
                }
                trainer
            }
        };
        line(&format!("  weights {}", weights(&trainer)));
        Ok(trainer)
    }
}

/// What the model computes with, in words.
fn weights<T: Float>(trainer: &Trainer<T>) -> String {
    let kinds: BTreeSet<&str> = trainer
        .model
        .linears()
        .map(|linear| match &linear.weight {
            Weight::Nf4(w) => w.quant_type().name(),
            Weight::Dense(_) => T::DTYPE.name(),
        })
        .collect();
    let mut text = kinds.into_iter().collect::<Vec<_>>().join(" and ");
    if trainer.model.has_adapters() {
        text += " with adapters";
    }
    text
}

/// How a run or a model is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    /// The prompt; held-out prompts without one.
    pub prompt: Option<String>,
    /// Completions per prompt.
    pub samples: usize,
    /// Sampling temperature, 0 for the most likely token at every place; without one `rl.temperature`.
    pub temperature: Option<f64>,
}

/// How a model is asked unless the caller says otherwise.
#[derive(Clone, Debug)]
pub struct ModelDefaults {
    /// Weights as they are stored, and the sampling settings of the folder's `generation_config.json`.
    pub config: RunConfig,
    /// 0 if that file wants the most likely tokens.
    pub temperature: Option<f64>,
    /// What of that file is not applied.
    pub ignored: Vec<String>,
}

/// Defaults for asking the model in `folder`.
///
/// # Errors
/// `Io` or `Format` for a file that cannot be read.
pub fn model_defaults(folder: &Path) -> Result<ModelDefaults> {
    let mut config = RunConfig::pretrained();
    config.quantize.r#type = QuantizeType::None;
    let Some(generation) = Generation::load(folder)? else {
        return Ok(ModelDefaults { config, temperature: None, ignored: Vec::new() });
    };
    let rl = &mut config.rl;
    (rl.top_k, rl.top_p, rl.min_p) = (generation.top_k, generation.top_p, generation.min_p);
    if generation.temperature > 0.0 {
        rl.temperature = generation.temperature;
    }
    let temperature = (generation.temperature == 0.0).then_some(0.0);
    Ok(ModelDefaults { config, temperature, ignored: generation.ignored })
}

/// Sampling as `trainer`'s configuration has it, at another temperature if one is given.
pub(crate) fn sampling<T: Float>(
    trainer: &Trainer<T>,
    temperature: Option<f64>,
) -> Result<Sampling> {
    let sampling = trainer.sampling();
    Ok(match temperature {
        None => sampling,
        Some(0.0) => Sampling { temperature: 1.0, greedy: true, ..sampling },
        Some(t) if t.is_finite() && t > 0.0 => Sampling { temperature: t, ..sampling },
        Some(t) => {
            return Err(Error::config("temperature", format!("{t} is not a finite number >= 0")));
        }
    })
}

/// `sampling` in words.
pub(crate) fn in_words(sampling: &Sampling) -> String {
    if sampling.greedy {
        return "greedy: the most likely token at every place".into();
    }
    let mut text = format!("sampling at temperature {}", sampling.temperature);
    if sampling.top_k > 0 {
        text += &format!(", top-k {}", sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        text += &format!(", top-p {}", sampling.top_p);
    }
    if sampling.min_p > 0.0 {
        text += &format!(", min-p {}", sampling.min_p);
    }
    text
}

/// The newest state of the run in `folder`, ready to sample or evaluate. `T` is the dtype of its
/// configuration.
///
/// # Errors
/// `Format` for a folder without a checkpoint; what the trainer refuses.
pub fn open_run<T: Float>(folder: &Path) -> Result<Trainer<T>> {
    let config = RunConfig::of_run(&folder.join("config.toml"))?;
    let (found, warnings) = checkpoint::load_latest(&folder.join("checkpoints"))?;
    warnings.iter().for_each(|warning| line(warning));
    let Some(found) = found else {
        return Err(Error::format(folder, "no checkpoint in this run folder"));
    };
    let device = config.open_device()?;
    let mut trainer = Trainer::on(config, device)?;
    trainer.load_state(&found.tensors)?;
    Ok(trainer)
}

/// Scores of held-out prompts, at another temperature than `eval.temperature` and with another number
/// of samples than `eval.samples` if they are given. Several samples of a prompt are asked for a vote,
/// which needs different ones.
///
/// # Errors
/// `Config` for several samples at temperature 0; what opening, sampling and the reward say.
pub fn evaluate(
    what: &RunOrModel,
    temperature: Option<f64>,
    samples: Option<usize>,
) -> Result<Evaluation> {
    let mut config = what.config()?;
    if matches!(what, RunOrModel::Model(_)) && config.data.path.is_empty() {
        let reason = "there is nothing to score: give --data FILE";
        return Err(Error::config("data.path", reason));
    }
    config.eval.temperature = temperature.unwrap_or(config.eval.temperature);
    config.eval.samples = samples.unwrap_or(config.eval.samples);
    config.validate()?;
    if samples.is_some_and(|n| n > 1) && config.eval.temperature == 0.0 {
        let reason = "0 takes the same answer every time, and a vote needs different ones; set it \
                      above 0, as --temperature does";
        return Err(Error::config("eval.temperature", reason));
    }
    on_threads(config.threads, || match config.model.dtype {
        ModelDtype::Bf16 => scores(what.trainer::<bf16>(config.clone())?, &config),
        ModelDtype::F32 => scores(what.trainer::<f32>(config.clone())?, &config),
    })
}

fn scores<T: Float>(mut trainer: Trainer<T>, config: &RunConfig) -> Result<Evaluation> {
    // A run's trainer has the settings of the run.
    trainer.config.eval = config.eval.clone();
    Ok(Evaluation { suites: trainer.evaluate_suites()?, ..trainer.evaluate()? })
}

/// Completions of one's own prompt, or of held-out prompts, each with its score and log-prob. A
/// prompt of one's own is judged by the built-in task or by a reward that was named.
///
/// # Errors
/// As [`evaluate`]; `Config` for a model without a prompt and without data.
pub fn sample(what: &RunOrModel, ask: &Ask) -> Result<Vec<SampleLine>> {
    let config = what.config()?;
    let of_model = matches!(what, RunOrModel::Model(_));
    if of_model && config.data.path.is_empty() && ask.prompt.is_none() {
        let reason = "there is nothing to ask: give --prompt TEXT, --chat or --data FILE";
        return Err(Error::config("data.path", reason));
    }
    // A run's rewards want a data row, which a prompt of one's own does not have.
    let named = of_model && (!config.reward.functions.is_empty() || env::scores(&config.env));
    let built_in = config.model.path.is_empty() && config.data.path.is_empty();
    let judged = ask.prompt.is_none() || built_in || named;
    on_threads(config.threads, || match config.model.dtype {
        ModelDtype::Bf16 => lines(&what.trainer::<bf16>(config)?, ask, judged),
        ModelDtype::F32 => lines(&what.trainer::<f32>(config)?, ask, judged),
    })
}

/// The step whose draws samples use: the last one, which no run reaches.
const STEP: u64 = u32::MAX as u64;

fn lines<T: Float>(trainer: &Trainer<T>, ask: &Ask, judged: bool) -> Result<Vec<SampleLine>> {
    let prompts = match &ask.prompt {
        Some(text) => vec![trainer.task.converse(&[message("user", text)])?],
        None => trainer.task.heldout(3),
    };
    let sampling = sampling(trainer, ask.temperature)?;
    line(&format!("  {}", in_words(&sampling)));
    // The most likely tokens are the same every time.
    let samples = if sampling.greedy { 1 } else { ask.samples.max(1) };
    let sampled = trainer.sample_as(&sampling, prompts, samples, STEP)?;
    if !judged {
        let unknown = std::iter::repeat(Ok(RewardOutcome::Abstain));
        return Ok(sampled.lines(unknown, None));
    }
    let (inputs, reward) = (sampled.inputs(), sampled.judged(trainer.verifier.as_ref()));
    let outcomes = reward.score_groups(&inputs, &sampled.groups()).into_iter().zip(&inputs);
    let outcomes = outcomes.map(|(outcome, input)| finite(outcome, input));
    Ok(sampled.lines(outcomes, Some(trainer.verifier.as_ref())))
}

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// Answers lines of standard input one by one, each in the light of all before, until it ends.
/// `/new` begins again.
///
/// # Errors
/// `Config` for a temperature that is none; what opening and sampling say.
pub fn chat(
    what: &RunOrModel,
    temperature: Option<f64>,
    print: impl Fn(&str) -> Result<()> + Sync,
) -> Result<()> {
    let config = what.config()?;
    if matches!(what, RunOrModel::Model(_)) && !config.env.kind.is_empty() {
        let reason = format!("`{}`, and in a talk a person answers", config.env.kind);
        return Err(Error::config("env.kind", reason));
    }
    on_threads(config.threads, || match config.model.dtype {
        ModelDtype::Bf16 => talk(&what.trainer::<bf16>(config)?, temperature, &print),
        ModelDtype::F32 => talk(&what.trainer::<f32>(config)?, temperature, &print),
    })
}

fn talk<T: Float>(
    trainer: &Trainer<T>,
    temperature: Option<f64>,
    print: impl Fn(&str) -> Result<()> + Sync,
) -> Result<()> {
    let sampling = sampling(trainer, temperature)?;
    line(&format!("  {}; /new begins again, ctrl-D ends", in_words(&sampling)));
    let mut messages = Vec::new();
    let mut input = std::io::stdin().lock();
    for turn in 0.. {
        print("> ")?;
        let _ = std::io::stdout().flush();
        let mut bytes = Vec::new();
        if input.read_until(b'\n', &mut bytes).map_err(Error::io("standard input"))? == 0 {
            return print("\n");
        }
        // One wrong byte does not end the talk.
        let text = String::from_utf8_lossy(&bytes);
        match text.trim() {
            "" => continue,
            "/new" => messages.clear(),
            asked => {
                messages.push(message("user", asked));
                let prompt = trainer.task.converse(&messages)?;
                let answer = streamed(trainer, &sampling, prompt, STEP - turn, &print)?;
                messages.push(message("assistant", &answer));
            }
        }
    }
    Ok(())
}

/// One answer, shown as it is drawn.
fn streamed<T: Float>(
    trainer: &Trainer<T>,
    sampling: &Sampling,
    prompt: Prompt,
    step: u64,
    print: &(impl Fn(&str) -> Result<()> + Sync),
) -> Result<String> {
    let shown = Mutex::new(Shown::default());
    let on_token = |_: usize, _: usize, token: i32| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be shown now is shown at the end.
        let _ = print(&escaped(&shown.next(trainer.task.codec(), token)).to_string());
        let _ = std::io::stdout().flush();
    };
    let key = RolloutKey { seed: trainer.config.seed, purpose: Purpose::Sample, step };
    let sampled = trainer.complete(vec![prompt], 1, sampling, key, Some(&on_token))?;
    let answer = sampled.texts.into_iter().next().unwrap_or_default();
    let shown = shown.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rest = answer.get(shown.bytes..).unwrap_or("");
    print(&format!("{}\n", escaped(rest)))?;
    Ok(answer)
}

/// How much of an answer stands on the screen.
#[derive(Default)]
struct Shown {
    tokens: Vec<i32>,
    bytes: usize,
}

impl Shown {
    /// The text that `token` completes: a character may take several.
    fn next(&mut self, codec: &dyn Codec, token: i32) -> String {
        self.tokens.push(token);
        let text = codec.decode(&self.tokens).unwrap_or_default();
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return String::new();
        }
        let more = text.get(self.bytes..).unwrap_or("").to_string();
        self.bytes += more.len();
        more
    }
}
