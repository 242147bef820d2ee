//! What a run starts from: the task with its vocabulary, and a fresh model or one from a folder.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Decoder, ModelConfig, RopeScaling};
use crate::pretrained::{LoadOptions, Pretrained};
use crate::reward::Reward;
use crate::reward::command::CommandOptions;
use crate::reward::http::HttpOptions;
use crate::reward::spec::{SpecOptions, parse_all};
use crate::text::{Bytes, Codec, END};
use crate::train::config::RunConfig;
use crate::train::phase::Phase;
use crate::train::task::{Countdown, Task};
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::{Error, Result};

/// What a run reads before its weights: the task, and the model's folder.
pub(crate) struct RunInputs {
    pub task: Arc<dyn Task>,
    /// What a person should know about it.
    pub notes: Vec<String>,
    folder: Option<Pretrained>,
}

impl RunInputs {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// `Config`, `Format` or `Io` for a folder, a tokenizer, data or a reward that cannot be had.
    pub fn open(config: &RunConfig) -> Result<RunInputs> {
        let folder = match config.model.path.as_str() {
            "" => None,
            path => Some(Pretrained::open(path.as_ref())?),
        };
        let mut notes = Vec::new();
        let reward = reward(config)?;
        let task: Arc<dyn Task> = match &folder {
            Some(folder) => {
                let codec = codec(folder, &mut notes)?;
                on_text(config, Some(folder.files.folder()), codec, reward, &mut notes)?
            }
            None if config.data.path.is_empty() => {
                Arc::new(countdown(config)?.with(None, reward, None))
            }
            None => on_text(config, None, Arc::new(Bytes::new(&[END])), reward, &mut notes)?,
        };
        Ok(RunInputs { task, notes, folder })
    }

    /// What tells the folder's weights from others; empty without a folder.
    pub fn fingerprint(&self) -> String {
        self.folder.as_ref().map_or(String::new(), |folder| folder.files.fingerprint())
    }

    /// Whether the weights are read once, frozen, and never move.
    pub fn is_frozen(&self, config: &RunConfig) -> bool {
        self.folder.is_some() && config.phases.first() == Some(&Phase::Quantize)
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
        let (prompt, answer) = self.task.lengths();
        let new = match config.rl.max_new_tokens {
            0 => answer,
            n => n,
        };
        let frozen = self.is_frozen(config);
        let longest_demo = match config.phases.contains(&Phase::Sft) {
            true => self.task.longest_demo()?,
            false => 0,
        };
        // Prompts of one's own may be as long as those of a data set.
        let own = if config.data.path.is_empty() { 0 } else { config.data.max_prompt_tokens };
        let Some(folder) = &mut self.folder else {
            let positions = prompt.max(own) + answer.max(new) + 1;
            let shape = fresh(config, self.task.codec().len(), positions);
            return Decoder::random(&shape, device, config.seed);
        };
        // One for a token that begins sequences, one for the position behind the last.
        let positions = prompt + new + 2;
        let most = folder.config.model.max_positions;
        if positions > most {
            let reason = format!(
                "prompts of {prompt} tokens and {new} new ones need {positions} positions, \
                 the model has {most}"
            );
            return Err(Error::config("rl.max_new_tokens", reason));
        }
        if longest_demo > most {
            let reason = format!(
                "the longest demonstration for `sft` has {longest_demo} tokens, the model has {most} \
                 positions"
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
            max_positions: Some(
                positions.max(config.data.max_prompt_tokens + new + 2).max(longest_demo),
            ),
        };
        match outline {
            true => folder.outline(device, &options),
            false => folder.load(device, &options),
        }
    }
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
    let (timeout, retries) = (Duration::from_secs_f64(reward.timeout), reward.retries as u32);
    let defaults = CommandOptions::default();
    let workers = if reward.workers == 0 { defaults.workers } else { reward.workers };
    let startup = if reward.startup == 0.0 { 2.0 * reward.timeout } else { reward.startup };
    let startup = Duration::from_secs_f64(startup);
    let options = SpecOptions {
        command: CommandOptions { workers, timeout, startup, retries, ..defaults },
        http: HttpOptions { timeout, retries, ..HttpOptions::default() },
        code_time: Some(timeout),
    };
    match parse_all(&reward.functions, &options) {
        Err(Error::Config { reason, .. }) => Err(Error::config("reward.functions", reason)),
        made => made.map(Some),
    }
}

/// The vocabulary of a folder.
fn codec(folder: &Pretrained, notes: &mut Vec<String>) -> Result<Arc<dyn Codec>> {
    let (path, rows) = (folder.files.folder(), folder.config.model.vocab);
    if path.join("tokenizer.json").exists() {
        return tokenizer(path, rows);
    }
    if rows == 256 {
        notes.push("  no tokenizer.json: the model's 256 ids are taken for bytes".into());
        return Ok(Arc::new(Bytes::new(&folder.config.eos)));
    }
    Err(Error::format(path, "no tokenizer.json in this folder"))
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
    use crate::train::task::dataset::{DataTask, PromptWriter};
    let writer = PromptWriter::new(&config.data, folder)?;
    if config.data.path.is_empty() {
        let converse = Arc::new(move |messages: &[serde_json::Value]| writer.converse(messages));
        return Ok(Arc::new(countdown(config)?.with(Some(codec), reward, Some(converse))));
    }
    let Some(reward) = reward else {
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
    }
}
