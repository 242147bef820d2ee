//! A decoder with random weights.

use crate::device::{Device, Space};
use crate::dtype::Float;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::layer::Layer;
use crate::model::linear::{Linear, Weight};
use crate::model::params::{ParamId, Parameters};
use crate::model::rope_table::RopeTable;
use crate::rng::{Purpose, Rng};

/// Draws parameters in a fixed order, each from its own stream.
struct Init<T> {
    params: Parameters<T>,
    seed: u64,
}

impl<T: Float> Init<T> {
    fn normal(&mut self, name: String, shape: &[usize], std: f64) -> Result<ParamId> {
        let stream = self.params.iter().count() as u32;
        let mut rng = Rng::new(self.seed, Purpose::Init, [0, stream, 0]);
        let data = (0..shape.iter().product()).map(|_| (rng.normal() * std) as f32).collect();
        self.params.push(name, shape, data)
    }

    fn ones(&mut self, name: String, n: usize) -> Result<ParamId> {
        self.params.push(name, &[n], vec![1.0; n])
    }

    fn linear(&mut self, name: String, n: usize, k: usize, std: f64, bias: bool) -> Result<Linear> {
        let weight = Weight::Dense(self.normal(format!("{name}.weight"), &[n, k], std)?);
        let bias = match bias {
            true => Some(self.params.push(format!("{name}.bias"), &[n], vec![0.0; n])?),
            false => None,
        };
        Ok(Linear { name, n, k, weight, bias, lora: None })
    }
}

impl<T: Float> Decoder<T> {
    /// Normal weights of standard deviation 1/√k; the maps that write to the residual stream are
    /// divided by √(2·layers) (GPT-2's rule, Radford et al. 2019 §2.3). All parameters trainable.
    pub fn random(config: &ModelConfig, device: Device, seed: u64) -> Result<Decoder<T>> {
        config.validate()?;
        let mut init = Init { params: Parameters::new(&device), seed };
        let embed_std = 1.0 / (config.hidden as f64).sqrt();
        let shape = [config.vocab, config.hidden];
        let embed = init.normal("model.embed_tokens.weight".into(), &shape, embed_std)?;
        let layers =
            (0..config.layers).map(|l| layer(&mut init, config, l)).collect::<Result<_>>()?;
        let norm = init.ones("model.norm.weight".into(), config.hidden)?;
        let head = match config.tie_embeddings {
            true => Linear {
                name: "model.embed_tokens".into(),
                n: config.vocab,
                k: config.hidden,
                weight: Weight::Dense(embed),
                bias: None,
                lora: None,
            },
            false => {
                init.linear("lm_head".into(), config.vocab, config.hidden, embed_std, false)?
            }
        };
        let rope = RopeTable::new(
            &device,
            config.max_positions,
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
        )?;
        let config = config.clone();
        let space = Space::new(&device);
        Ok(Decoder { config, params: init.params, device, space, embed, layers, norm, head, rope })
    }
}

fn layer<T: Float>(init: &mut Init<T>, config: &ModelConfig, index: usize) -> Result<Layer> {
    let (h, f, bias) = (config.hidden, config.ffn, config.qkv_bias);
    let std = |k: usize| 1.0 / (k as f64).sqrt();
    let residual = 1.0 / (2.0 * config.layers as f64).sqrt();
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let attn = |part: &str| name(&format!("self_attn.{part}"));
    let mlp = |part: &str| name(&format!("mlp.{part}"));
    let head_norm = |init: &mut Init<T>, part: &str| {
        let norm = config.qk_norm.then(|| init.ones(attn(part) + ".weight", config.head_dim));
        norm.transpose()
    };
    Ok(Layer {
        norm1: init.ones(name("input_layernorm.weight"), h)?,
        norm2: init.ones(name("post_attention_layernorm.weight"), h)?,
        q_norm: head_norm(init, "q_norm")?,
        k_norm: head_norm(init, "k_norm")?,
        q: init.linear(attn("q_proj"), config.q_dim(), h, std(h), bias)?,
        k: init.linear(attn("k_proj"), config.kv_dim(), h, std(h), bias)?,
        v: init.linear(attn("v_proj"), config.kv_dim(), h, std(h), bias)?,
        o: init.linear(attn("o_proj"), h, config.q_dim(), std(config.q_dim()) * residual, false)?,
        gate: init.linear(mlp("gate_proj"), f, h, std(h), false)?,
        up: init.linear(mlp("up_proj"), f, h, std(h), false)?,
        down: init.linear(mlp("down_proj"), h, f, std(f) * residual, false)?,
    })
}
