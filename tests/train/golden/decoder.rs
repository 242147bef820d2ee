//! A Llama of the textbook in f64, one sequence at a time: it shares no line with the crate's.

use std::collections::BTreeMap;

use gradus::Device;
use gradus::quant::Nf4Tensor;
use gradus_rft::model::{Decoder, ModelConfig, RopeScaling, Weight};

/// Tensors by name, row by row.
pub type Tensors = BTreeMap<String, Vec<f64>>;

/// What does not move: extents and scales.
pub struct Shape {
    config: ModelConfig,
    /// What B·A of a linear map is multiplied by.
    scale: f64,
    /// What logits are divided by.
    pub temperature: f64,
}

/// Multiplies element `column` of what the adapter of a linear map reads at a position.
pub type Mask<'a> = &'a dyn Fn(&str, usize, usize) -> f64;

/// The weights of a model as they are read: 4-bit ones dequantized.
pub fn tensors(model: &Decoder) -> Tensors {
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
    let of = |p: &gradus_rft::model::Parameter<f32>| (p.name.clone(), wide(p.values().unwrap()));
    let mut all: Tensors = model.params.iter().filter(|p| !p.is_empty()).map(of).collect();
    for linear in model.linears() {
        if let Weight::Nf4(w) = &linear.weight {
            let packed = Nf4Tensor::from_parts(w.to_parts().unwrap()).unwrap();
            let dense = packed.dequantize::<f32>(&Device::Cpu).unwrap();
            all.insert(format!("{}.weight", linear.name), wide(dense));
        }
    }
    all
}

/// w·x for w `[n, k]`.
fn product(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn add(x: &[f64], y: Vec<f64>) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

impl Shape {
    pub fn of(model: &Decoder, scale: f64) -> Shape {
        let config = model.config.clone();
        assert!(!config.qkv_bias && !config.qk_norm && !config.tie_embeddings);
        assert_eq!(config.rope_scaling, RopeScaling::None);
        Shape { config, scale, temperature: 1.0 }
    }

    fn norm(&self, x: &[f64], gain: &[f64]) -> Vec<f64> {
        let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let rms = (square + self.config.norm_eps).sqrt();
        x.iter().zip(gain).map(|(x, g)| x / rms * g).collect()
    }

    /// W·x, and scale·B·(A·mask(x)) if there is an adapter.
    fn linear(&self, w: &Tensors, name: &str, at: usize, x: &[f64], mask: Mask<'_>) -> Vec<f64> {
        let y = product(&w[&format!("{name}.weight")], x);
        let Some(a) = w.get(&format!("{name}.lora_A.weight")) else { return y };
        let read: Vec<f64> = x.iter().enumerate().map(|(j, x)| mask(name, at, j) * x).collect();
        let low = product(a, &read);
        let high = product(&w[&format!("{name}.lora_B.weight")], &low);
        y.iter().zip(high).map(|(y, h)| y + self.scale * h).collect()
    }

    /// A head turned by the angles of position `at`, halves against each other.
    fn rotated(&self, head: &[f64], at: usize) -> Vec<f64> {
        let half = head.len() / 2;
        let angle =
            |i: usize| at as f64 * self.config.rope_theta.powf(-2.0 * i as f64 / head.len() as f64);
        let turn = |i: usize| {
            let (sin, cos) = angle(i % half).sin_cos();
            match i < half {
                true => head[i] * cos - head[i + half] * sin,
                false => head[i] * cos + head[i - half] * sin,
            }
        };
        (0..head.len()).map(turn).collect()
    }

    /// Logits behind every token of a sequence.
    pub fn logits(&self, w: &Tensors, ids: &[i32], mask: Mask<'_>) -> Vec<Vec<f64>> {
        let c = &self.config;
        let row = |id: &i32| {
            w["model.embed_tokens.weight"][*id as usize * c.hidden..][..c.hidden].to_vec()
        };
        let mut x: Vec<Vec<f64>> = ids.iter().map(row).collect();
        for layer in 0..c.layers {
            self.block(w, &format!("model.layers.{layer}"), &mut x, mask);
        }
        let head =
            |x: &Vec<f64>| product(&w["lm_head.weight"], &self.norm(x, &w["model.norm.weight"]));
        let cool = |z: Vec<f64>| z.into_iter().map(|z| z / self.temperature).collect();
        x.iter().map(head).map(cool).collect()
    }

    fn block(&self, w: &Tensors, name: &str, x: &mut [Vec<f64>], mask: Mask<'_>) {
        let c = &self.config;
        let gain = |part: &str| &w[&format!("{name}.{part}.weight")];
        let normed: Vec<Vec<f64>> =
            x.iter().map(|x| self.norm(x, gain("input_layernorm"))).collect();
        let project = |part: &str, turns: bool| -> Vec<Vec<Vec<f64>>> {
            let part = format!("{name}.self_attn.{part}");
            let heads = |(t, h): (usize, &Vec<f64>)| {
                let y = self.linear(w, &part, t, h, mask);
                let turn = |head: &[f64]| {
                    if turns { self.rotated(head, t) } else { head.to_vec() }
                };
                y.chunks(c.head_dim).map(turn).collect()
            };
            normed.iter().enumerate().map(heads).collect()
        };
        let (q, k, v) =
            (project("q_proj", true), project("k_proj", true), project("v_proj", false));
        let shared = c.heads / c.kv_heads;
        for (t, x) in x.iter_mut().enumerate() {
            let mut read = Vec::new();
            for (h, q) in q[t].iter().enumerate() {
                let dot = |k: &Vec<f64>| k.iter().zip(q).map(|(k, q)| k * q).sum::<f64>();
                let scale = (c.head_dim as f64).sqrt();
                let weight: Vec<f64> =
                    (0..=t).map(|s| (dot(&k[s][h / shared]) / scale).exp()).collect();
                let sum: f64 = weight.iter().sum();
                let mean =
                    |i: usize| (0..=t).map(|s| weight[s] * v[s][h / shared][i]).sum::<f64>() / sum;
                read.extend((0..c.head_dim).map(mean));
            }
            *x = add(x, self.linear(w, &format!("{name}.self_attn.o_proj"), t, &read, mask));
            let g = self.norm(x, gain("post_attention_layernorm"));
            let part =
                |part: &str, x: &[f64]| self.linear(w, &format!("{name}.mlp.{part}"), t, x, mask);
            let silu = part("gate_proj", &g).into_iter().map(|z| z / (1.0 + (-z).exp()));
            let act: Vec<f64> = silu.zip(part("up_proj", &g)).map(|(a, b)| a * b).collect();
            *x = add(x, part("down_proj", &act));
        }
    }
}
