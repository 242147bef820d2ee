//! What a run starts from: the task with its vocabulary, and a fresh model or one from a folder.

use std::path::Path;
use std::sync::Arc;

use crate::device::Device;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::model::{Decoder, ModelConfig, RopeScaling};
use crate::pretrained::{LoadOptions, Pretrained};
use crate::text::{Bytes, Codec};
use crate::train::config::RunConfig;
use crate::train::task::{Countdown, Task};

/// The beginning of a run; no weight has been read.
pub(crate) struct Base {
    pub task: Arc<dyn Task>,
    folder: Option<Pretrained>,
}

impl Base {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// `Config`, `Format` or `Io` for a folder, a tokenizer, data or a reward that cannot be had.
    pub fn open(config: &RunConfig) -> Result<Base> {
        let folder = match config.model.path.as_str() {
            "" => None,
            path => Some(Pretrained::open(path.as_ref())?),
        };
        let codec = folder.as_ref().map(|folder| codec(folder)).transpose()?;
        let t = &config.task;
        let targets = t.min_target as i64..=t.max_target as i64;
        let task = Countdown::new(config.seed, t.digits, &t.operators, targets)?;
        let task = match codec {
            Some(codec) => task.with_codec(codec),
            None => task,
        };
        Ok(Base { task: Arc::new(task), folder })
    }

    /// What tells the folder's weights from others; empty without a folder.
    pub fn fingerprint(&self) -> String {
        self.folder.as_ref().map_or(String::new(), |folder| folder.files.fingerprint())
    }

    /// Whether the weights are read once, frozen, and never move.
    pub fn is_frozen(&self, config: &RunConfig) -> bool {
        self.folder.is_some() && config.phases.first().is_some_and(|p| p == "quantize")
    }

    /// The model on `device`: that of the folder, 4-bit at once if that is the first phase, or a
    /// fresh one.
    pub fn model<T: Float>(mut self, config: &RunConfig, device: Device) -> Result<Decoder<T>> {
        let (prompt, answer) = self.task.lengths();
        let new = match config.rl.max_new_tokens {
            0 => answer,
            n => n,
        };
        let frozen = self.is_frozen(config);
        let Some(folder) = &mut self.folder else {
            let shape = fresh(config, self.task.codec().len(), prompt + answer.max(new) + 1);
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
        if !frozen && folder.config.quantized {
            let reason = "a 4-bit model cannot train before the phase `quantize`";
            return Err(Error::config("phases", reason));
        }
        let options = LoadOptions {
            quantize: config.nf4_options().filter(|_| frozen),
            trainable: !frozen,
            max_positions: Some(positions),
        };
        folder.load(device, &options)
    }
}

/// The vocabulary of a folder.
fn codec(folder: &Pretrained) -> Result<Arc<dyn Codec>> {
    let (path, rows) = (folder.files.folder(), folder.config.model.vocab);
    if rows == 256 && !path.join("tokenizer.json").exists() {
        return Ok(Arc::new(Bytes::new(&folder.config.eos)));
    }
    Err(no_tokenizer(path))
}

fn no_tokenizer(path: &Path) -> Error {
    Error::format(path, "no tokenizer.json in this folder")
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
