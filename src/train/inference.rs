//! Asking a run or a model: samples, scores, talk.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::dtype::{DType, Float, bf16};
use crate::error::{Error, Result};
use crate::reward::{Outcome, RewardOutcome};
use crate::text::Codec;
use crate::train::checkpoint;
use crate::train::config::RunConfig;
use crate::train::eval::Evaluation;
use crate::train::progress::line;
use crate::train::summary::SampleLine;
use crate::train::trainer::Trainer;

/// What is asked.
#[derive(Clone, Debug)]
pub enum Opened {
    /// The newest state of the run in this folder.
    Run(PathBuf),
    /// The model, and the adapter if there is one, that a configuration names.
    Model(RunConfig),
}

impl Opened {
    fn config(&self) -> Result<RunConfig> {
        let config = match self {
            Opened::Run(folder) => RunConfig::load(&folder.join("config.toml"))?,
            Opened::Model(config) => config.clone(),
        };
        config.validate()?;
        Ok(config)
    }

    fn trainer<T: Float>(&self, config: RunConfig) -> Result<Trainer<T>> {
        match self {
            Opened::Run(folder) => open_run(folder),
            Opened::Model(_) => {
                let device = config.open_device()?;
                let adapted = !config.model.adapter.is_empty();
                let mut trainer = Trainer::on(config, device)?;
                trainer.notes.iter().for_each(|note| line(note));
                if adapted {
                    trainer.quantize()?;
                }
                Ok(trainer)
            }
        }
    }
}

/// The newest state of the run in `folder`, ready to sample or evaluate. `T` is the dtype of its
/// configuration.
///
/// # Errors
/// `Format` for a folder without a checkpoint; what the trainer refuses.
pub fn open_run<T: Float>(folder: &Path) -> Result<Trainer<T>> {
    let config = RunConfig::load(&folder.join("config.toml"))?;
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

/// Scores of held-out prompts.
///
/// # Errors
/// What opening, sampling and the reward say.
pub fn evaluate(what: &Opened) -> Result<Evaluation> {
    let config = what.config()?;
    match config.dtype()? {
        DType::Bf16 => what.trainer::<bf16>(config)?.evaluate(),
        _ => what.trainer::<f32>(config)?.evaluate(),
    }
}

/// `samples` completions of `prompt`, or of held-out prompts, each with its score and log-prob.
///
/// # Errors
/// As [`evaluate`].
pub fn sample(what: &Opened, prompt: Option<String>, samples: usize) -> Result<Vec<SampleLine>> {
    let config = what.config()?;
    match config.dtype()? {
        DType::Bf16 => lines(&what.trainer::<bf16>(config)?, prompt, samples),
        _ => lines(&what.trainer::<f32>(config)?, prompt, samples),
    }
}

/// The step whose draws samples use: the last one, which no run reaches.
const STEP: u64 = u32::MAX as u64;

fn lines<T: Float>(
    trainer: &Trainer<T>,
    prompt: Option<String>,
    samples: usize,
) -> Result<Vec<SampleLine>> {
    let prompts = match prompt {
        Some(text) => vec![trainer.task.converse(&[message("user", &text)])?],
        None => trainer.task.heldout(3),
    };
    let sampled = trainer.sample(prompts, samples.max(1), STEP)?;
    // A prompt of one's own has no answer that a verifier could hold the completion against.
    let outcomes = trainer.verifier.score(&sampled.inputs());
    let known = |outcome: Outcome| match outcome {
        Ok(RewardOutcome::Score(score)) => score,
        _ => f32::NAN,
    };
    let scores: Vec<f32> = outcomes.into_iter().map(known).collect();
    Ok(sampled.lines(&scores))
}

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// Answers lines of standard input one by one, each in the light of all before, until it ends.
/// `/new` begins again.
///
/// # Errors
/// `Config` for a model without a chat template; what opening and sampling say.
pub fn chat(what: &Opened, print: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let config = what.config()?;
    match config.dtype()? {
        DType::Bf16 => talk(&what.trainer::<bf16>(config)?, print),
        _ => talk(&what.trainer::<f32>(config)?, print),
    }
}

fn talk<T: Float>(trainer: &Trainer<T>, print: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let mut messages = Vec::new();
    let mut input = std::io::stdin().lock();
    for turn in 0.. {
        print("> ")?;
        let _ = std::io::stdout().flush();
        let mut text = String::new();
        if input.read_line(&mut text).map_err(Error::io("standard input"))? == 0 {
            return print("\n");
        }
        match text.trim() {
            "" => continue,
            "/new" => messages.clear(),
            asked => {
                messages.push(message("user", asked));
                let prompt = trainer.task.converse(&messages)?;
                let shown = Mutex::new(Shown::default());
                let watch = |_: usize, _: usize, token: i32| {
                    let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                    // What cannot be shown now is shown at the end.
                    let _ = print(&shown.next(trainer.task.codec(), token));
                    let _ = std::io::stdout().flush();
                };
                let sampled = trainer.answer(prompt, STEP - turn, &watch)?;
                let answer = sampled.texts.first().map_or("", String::as_str);
                let shown = shown.into_inner().unwrap_or_else(PoisonError::into_inner);
                print(&format!("{}\n", answer.get(shown.bytes..).unwrap_or("")))?;
                messages.push(message("assistant", answer));
            }
        }
    }
    Ok(())
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
