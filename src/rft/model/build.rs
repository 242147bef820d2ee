//! A decoder built from a source of weights, parameter by parameter in a fixed order. Only one
//! parameter at a time is held beside the decoder.

use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, HEAD};
use crate::model::layer::Layer;
use crate::model::linear::{Linear, Weight};
use crate::model::params::{ParamId, Parameters};
use crate::model::rope_table::RopeTable;
use gradus::device::{Allocator, Device};
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::quant::{Nf4Matrix, Nf4Tensor};

/// What a parameter starts from if nothing was learned yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Start {
    /// Normal draws of this standard deviation.
    Normal(f64),
    /// Ones.
    Ones,
    /// Zeros.
    Zeros,
}

/// Where the parameters of a new decoder come from.
pub(crate) trait WeightSource {
    /// Whether the dense parameters are to be trained, and so need their f32 values.
    fn trains(&self) -> bool;

    /// The values of parameter `name`.
    fn values<F: Float>(&mut self, name: &str, shape: &[usize], start: Start) -> Result<Vec<F>>;

    /// The 4-bit form of the `[n, k]` weight `name`, if that is what the decoder is to hold.
    /// `block`: the weight is one of a block's, which may be quantized while they are read.
    fn quantized(
        &mut self,
        name: &str,
        [n, k]: [usize; 2],
        block: bool,
    ) -> Result<Option<Nf4Tensor>> {
        let _ = (name, n, k, block);
        Ok(None)
    }

    /// Whether weights that are dense stay dense when the model is quantized.
    fn keeps_dense(&self) -> bool {
        false
    }
}

struct Builder<'a, T, S> {
    device: &'a Device,
    params: Parameters<T>,
    source: S,
}

impl<T: Float> Decoder<T> {
    /// A decoder of `config` on `device` with the weights of `source`, which comes back.
    pub(crate) fn build<S: WeightSource>(
        config: &ModelConfig,
        device: Device,
        source: S,
    ) -> Result<(Decoder<T>, S)> {
        config.validate()?;
        let mut build = Builder { device: &device, params: Parameters::new(&device), source };
        let (embed_std, shape) = (deviation(config.hidden), [config.vocab, config.hidden]);
        let start = Start::Normal(embed_std);
        let embed = build.parameter(config.full_name("embed_tokens.weight"), &shape, start)?;
        let layers =
            (0..config.layers).map(|l| build.layer(config, l)).collect::<Result<Vec<_>>>()?;
        let norm = build.norm(config.full_name("norm"), config.hidden)?;
        let (n, k) = (config.vocab, config.hidden);
        let (name, weight) = match config.tie_embeddings {
            true => (config.full_name("embed_tokens"), Weight::Dense(embed)),
            false => ("lm_head".into(), build.weight(HEAD.into(), [n, k], start, false)?),
        };
        let head = Linear { name, n, k, weight, bias: None, lora: None, keep_dense: true };
        let rope = RopeTable::new(
            &device,
            config.max_positions,
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
        )?;
        let Builder { params, source, .. } = build;
        let (config, allocator) = (config.clone(), Allocator::new(&device));
        Ok((Decoder { config, params, device, allocator, embed, layers, norm, head, rope }, source))
    }
}

#[cfg(feature = "serve")]
impl<T: Float> Decoder<T> {
    /// Makes the rotary table reach `positions` positions, which the model must have been made for.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub(crate) fn cover(&mut self, positions: usize) -> Result<()> {
        let config = &mut self.config;
        config.max_positions = positions;
        let (theta, scaling) = (config.rope_theta, config.rope_scaling);
        self.rope = RopeTable::new(&self.device, positions, config.head_dim, theta, scaling)?;
        Ok(())
    }
}

/// Standard deviation of a weight with `k` inputs.
fn deviation(k: usize) -> f64 {
    1.0 / (k as f64).sqrt()
}

impl<T: Float, S: WeightSource> Builder<'_, T, S> {
    fn parameter(&mut self, name: String, shape: &[usize], start: Start) -> Result<ParamId> {
        if self.source.trains() {
            let values = self.source.values(&name, shape, start)?;
            return self.params.push(name, shape, values);
        }
        let values = self.source.values(&name, shape, start)?;
        self.params.push_frozen(name, shape, values)
    }

    fn weight(
        &mut self,
        key: String,
        shape: [usize; 2],
        start: Start,
        block: bool,
    ) -> Result<Weight> {
        Ok(match self.source.quantized(&key, shape, block)? {
            Some(packed) => Weight::Nf4(Nf4Matrix::new(self.device, packed)?),
            None => Weight::Dense(self.parameter(key, &shape, start)?),
        })
    }

    fn linear(&mut self, name: String, [n, k]: [usize; 2], std: f64, bias: bool) -> Result<Linear> {
        let start = Start::Normal(std);
        let weight = self.weight(format!("{name}.weight"), [n, k], start, true)?;
        let bias = match bias {
            true => Some(self.parameter(format!("{name}.bias"), &[n], Start::Zeros)?),
            false => None,
        };
        let keep_dense = self.source.keeps_dense();
        Ok(Linear { name, n, k, weight, bias, lora: None, keep_dense })
    }

    fn norm(&mut self, name: String, width: usize) -> Result<ParamId> {
        self.parameter(name + ".weight", &[width], Start::Ones)
    }

    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer> {
        let (h, f, bias) = (config.hidden, config.ffn, config.qkv_bias);
        let (q, kv) = (config.q_dim(), config.kv_dim());
        // GPT-2's rule (Radford et al. 2019 §2.3) for what writes to the residual stream.
        let residual = 1.0 / (2.0 * config.layers as f64).sqrt();
        let name = |part: &str| config.full_name(&format!("layers.{index}.{part}"));
        let attn = |part: &str| name(&format!("self_attn.{part}"));
        let mlp = |part: &str| name(&format!("mlp.{part}"));
        let norm1 = self.norm(name("input_layernorm"), h)?;
        let norm2 = self.norm(name("post_attention_layernorm"), h)?;
        let (mut q_norm, mut k_norm) = (None, None);
        if config.qk_norm {
            q_norm = Some(self.norm(attn("q_norm"), config.head_dim)?);
            k_norm = Some(self.norm(attn("k_norm"), config.head_dim)?);
        }
        Ok(Layer {
            norm1,
            norm2,
            q_norm,
            k_norm,
            q: self.linear(attn("q_proj"), [q, h], deviation(h), bias)?,
            k: self.linear(attn("k_proj"), [kv, h], deviation(h), bias)?,
            v: self.linear(attn("v_proj"), [kv, h], deviation(h), bias)?,
            o: self.linear(attn("o_proj"), [h, q], deviation(q) * residual, false)?,
            gate: self.linear(mlp("gate_proj"), [f, h], deviation(h), false)?,
            up: self.linear(mlp("up_proj"), [f, h], deviation(h), false)?,
            down: self.linear(mlp("down_proj"), [h, f], deviation(f) * residual, false)?,
        })
    }
}
