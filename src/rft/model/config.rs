//! Shape of a decoder.

use crate::model::rope_table::RopeScaling;
use gradus::error::{Error, Result};

/// Extents and switches of a Llama-shaped decoder. Llama: all switches off. Qwen2: `qkv_bias`.
/// Qwen3: `qk_norm`, and `head_dim` independent of `hidden / heads`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub ffn: usize,
    /// eps of every RMSNorm.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Change of the rotary frequencies for long contexts.
    pub rope_scaling: RopeScaling,
    /// Longest sequence the rotary table covers.
    pub max_positions: usize,
    /// q, k and v projections carry a bias (Qwen2).
    pub qkv_bias: bool,
    /// RMSNorm on every query and key head (Qwen3).
    pub qk_norm: bool,
    /// The head shares the embedding's matrix.
    pub tie_embeddings: bool,
    /// The decoder is the language part of a model that also reads pictures (Qwen2.5-VL), whose
    /// weights are called `model.language_model.…`.
    pub language_part: bool,
}

impl ModelConfig {
    /// Refuses shapes that no decoder can have.
    pub fn validate(&self) -> Result<()> {
        let extents = [
            ("vocab", self.vocab),
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("max_positions", self.max_positions),
        ];
        for (name, value) in extents {
            if value == 0 || value > 1 << 24 {
                let key = format!("model.{name}");
                return Err(Error::config(key, format!("{value} is not in 1..=16777216")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let reason = format!("{} does not divide heads = {}", self.kv_heads, self.heads);
            return Err(Error::config("model.kv_heads", reason));
        }
        if !self.head_dim.is_multiple_of(2) {
            let reason = format!("{} is odd; rotary positions turn pairs", self.head_dim);
            return Err(Error::config("model.head_dim", reason));
        }
        for (name, value) in [("norm_eps", self.norm_eps), ("rope_theta", self.rope_theta)] {
            if !(value.is_finite() && value > 0.0) {
                let key = format!("model.{name}");
                return Err(Error::config(key, format!("{value} is not a finite number > 0")));
            }
        }
        Ok(())
    }

    /// The full name of what a Llama calls `model.{name}`, such as `layers.0.mlp.up_proj`.
    pub fn full_name(&self, name: &str) -> String {
        match self.language_part {
            true => format!("model.language_model.{name}"),
            false => format!("model.{name}"),
        }
    }

    /// Number of its parameters, without biases and norms of heads.
    pub fn parameters(&self) -> u128 {
        let [hidden, layers, q, kv, ffn] =
            [self.hidden, self.layers, self.q_dim(), self.kv_dim(), self.ffn].map(|n| n as u128);
        let tables = if self.tie_embeddings { 1 } else { 2 };
        let block = 2 * hidden * (q + kv) + 3 * hidden * ffn + 2 * hidden;
        tables * self.vocab as u128 * hidden + layers * block + hidden
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
