//! Predicted steps of a whole model: a decode step, a micro-batch of training, and the step of GRPO that
//! they make up.
//!
//! The trainer's own code runs on the recording device, with one block and with two, on weights of
//! zeros. A model of more blocks is extrapolated: every block does the same.

use std::collections::BTreeMap;
use std::fmt;

use gradus::device::timing::rates::Gpu as Model;
use gradus::dtype::Float;
use gradus::ops::{Advantage, presets};
use gradus::quant::Nf4Options;
use gradus::rng::Purpose;
use gradus::view::View;
use gradus::{Result, bf16};
use serde_json::{Value, json};

use super::{Recorded, Recorder};
use crate::model::{Decoder, LoraOptions, ModelConfig, RopeScaling};
use crate::train::rollout::{Hooks, RolloutKey, Sampling, rollout_with};
use crate::train::update::record::{Record, TokenClass};
use crate::train::update::step::{Objective, forward_backward};

/// What is trained and how: 4-bit weights with adapters of rank 16 on every map.
#[derive(Clone, Debug)]
pub struct StepShape {
    /// The decoder.
    pub model: ModelConfig,
    /// Prompts of a step, and samples of each.
    pub prompts: usize,
    /// Samples of a prompt.
    pub samples: usize,
    /// Tokens of a prompt, and of a completion.
    pub prompt_tokens: usize,
    /// Tokens of a completion.
    pub new_tokens: usize,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
}

/// A part of a step.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Microseconds.
    pub us: f64,
    /// Launches, in all and of each further block.
    pub launches: [usize; 2],
    /// Microseconds by kernel, launches included.
    pub kernels: BTreeMap<String, f64>,
}

/// A step of GRPO with one update.
#[derive(Clone, Debug)]
pub struct StepPrediction {
    /// One token for each sequence, half of the completion behind it.
    pub decode: Part,
    /// All prompts at once.
    pub prefill: Part,
    /// Forward and backward pass of a micro-batch.
    pub micro_batch: Part,
    /// Of a step.
    pub decode_steps: usize,
    /// Of a step.
    pub micro_batches: usize,
}

impl StepPrediction {
    /// Seconds of the step, without the host's work and the optimizer's.
    pub fn seconds(&self) -> f64 {
        let decode = self.decode_steps as f64 * self.decode.us;
        let train = self.micro_batches as f64 * self.micro_batch.us;
        1e-6 * (decode + self.prefill.us + train)
    }

    /// The parts as JSON.
    pub fn json(&self) -> Value {
        let part = |p: &Part, count: usize| {
            json!({
                "us": p.us, "count": count, "launches": p.launches[0],
                "launches_of_a_block": p.launches[1], "kernels": p.kernels,
            })
        };
        json!({
            "seconds": self.seconds(),
            "decode_step": part(&self.decode, self.decode_steps),
            "prefill": part(&self.prefill, 1),
            "micro_batch": part(&self.micro_batch, self.micro_batches),
        })
    }
}

impl fmt::Display for StepPrediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("decode step", &self.decode, self.decode_steps),
            ("prefill", &self.prefill, 1),
            ("micro-batch", &self.micro_batch, self.micro_batches),
        ];
        for (name, part, count) in parts {
            let seconds = 1e-6 * part.us * count as f64;
            let [all, block] = part.launches;
            writeln!(
                f,
                "{name:<12} {:>10.1} us x {count:>4} = {seconds:>7.3} s   {all} launches, {block} of a block",
                part.us
            )?;
            let mut kernels: Vec<_> = part.kernels.iter().collect();
            kernels.sort_by(|a, b| b.1.total_cmp(a.1));
            for (kernel, us) in kernels.iter().take(8) {
                writeln!(f, "    {kernel:<32} {us:>10.1} us  {:>5.1} %", 100.0 * **us / part.us)?;
            }
        }
        writeln!(f, "step         {:.2} s", self.seconds())
    }
}

/// The decoder of Qwen2.5 with 7 billion parameters.
pub fn seven_billion() -> ModelConfig {
    ModelConfig {
        vocab: 152_064,
        hidden: 3584,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        ffn: 18_944,
        norm_eps: 1e-6,
        rope_theta: 1e6,
        rope_scaling: RopeScaling::None,
        max_positions: 2048,
        qkv_bias: true,
        qk_norm: false,
        tie_embeddings: false,
    }
}

impl StepShape {
    /// 16 prompts of 256 tokens, 8 samples of 512 tokens of each, 4 sequences a micro-batch.
    pub fn reference() -> StepShape {
        StepShape {
            model: seven_billion(),
            prompts: 16,
            samples: 8,
            prompt_tokens: 256,
            new_tokens: 512,
            micro_batch: 4,
        }
    }

    /// The predicted step on a GPU.
    ///
    /// # Errors
    /// What the model and the sampler refuse.
    pub fn predict(&self, gpu: &Model) -> Result<StepPrediction> {
        self.parts(&[self.record(1)?, self.record(2)?], self.model.layers, gpu)
    }

    /// The step of a model of `layers` blocks, from what models of one and of two do.
    fn parts(
        &self,
        [one, two]: &[[Recorded; 3]; 2],
        layers: usize,
        gpu: &Model,
    ) -> Result<StepPrediction> {
        let part = |i: usize| Part::of(&one[i], &two[i], layers, gpu);
        Ok(StepPrediction {
            decode: part(0)?,
            prefill: part(1)?,
            micro_batch: part(2)?,
            decode_steps: self.new_tokens - 1,
            micro_batches: (self.prompts * self.samples).div_ceil(self.micro_batch),
        })
    }

    /// A decode step, a prefill and a micro-batch of a model of so many blocks.
    fn record(&self, layers: usize) -> Result<[Recorded; 3]> {
        let recorder = Recorder::new()?;
        let config = ModelConfig { layers, ..self.model.clone() };
        let mut model = Decoder::<bf16>::zeros(&config, recorder.device().clone())?;
        model.quantize(&Nf4Options::default())?;
        let targets = "all-linear".to_string();
        model.attach_lora(&LoraOptions { rank: 16, alpha: 32.0, targets, rslora: false }, 0)?;
        let prefill = recorder.record(true, |_| self.sample(&model, self.prompt_tokens, 1))?;
        // The last step of a few, which is a graph: the first ones run as they are and record it.
        let context = self.prompt_tokens + self.new_tokens / 2;
        let mut decode = recorder.record(true, |_| self.sample(&model, context, 5))?;
        let first = decode.launches.len() - decode.graph.unwrap_or(decode.launches.len());
        decode.launches.drain(..first);
        let records = self.records();
        // A first pass makes tables and scratch memory.
        self.train(&model, &records)?;
        let micro_batch = recorder.record(true, |_| self.train(&model, &records))?;
        Ok([decode, prefill, micro_batch])
    }

    fn sample<T: Float>(&self, model: &Decoder<T>, context: usize, tokens: usize) -> Result<()> {
        let prompt = |p: usize| (0..context).map(|i| ((i * 7 + p) % 1000) as i32).collect();
        let prompts: Vec<Vec<i32>> = (0..self.prompts).map(prompt).collect();
        let sampling = Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            greedy: false,
            max_new_tokens: tokens,
            room: 0,
            stops: [].into(),
            slots: self.prompts * self.samples,
            longest_prompt: 0,
            cache_percent: 100,
        };
        let key = RolloutKey { seed: 0, purpose: Purpose::User, step: 0 };
        let hooks = Hooks::default();
        rollout_with(&mut None, model, &prompts, self.samples, &sampling, key, hooks).map(drop)
    }

    fn records(&self) -> Vec<Record> {
        let ids = |n: usize, of: usize| (0..n).map(|i| ((i * 11 + of) % 1000) as i32).collect();
        let record = |i: usize| {
            let mut record = Record::default();
            let (prompt, completion): (Vec<i32>, Vec<i32>) =
                (ids(self.prompt_tokens, i), ids(self.new_tokens, i + 7));
            record.push(&prompt, TokenClass::Prompt, &[]);
            record.push(&completion, TokenClass::Gen, &vec![-2.0; completion.len()]);
            record
        };
        (0..self.micro_batch).map(record).collect()
    }

    fn train<T: Float>(&self, model: &Decoder<T>, records: &[Record]) -> Result<()> {
        let settings = presets::by_name("grpo", self.new_tokens as f64)?.settings;
        let objective = Objective {
            settings: &settings,
            temperature: 1.0,
            micro_batch: self.micro_batch,
            micro_batch_tokens: usize::MAX,
            shared: false,
            shared_tokens: usize::MAX,
            recompute: false,
            critic: None,
            dropout: None,
        };
        let advantage: Vec<f32> = (0..records.len()).map(|i| i as f32 - 1.5).collect();
        let weight = vec![1.0 / records.len() as f32; records.len()];
        let advantage = Advantage::PerSequence(View::from(&advantage));
        forward_backward(model, records, advantage, &weight, objective).map(drop)
    }
}

impl Part {
    /// Of a model of `layers` blocks, from those of one and of two.
    fn of(one: &Recorded, two: &Recorded, layers: usize, gpu: &Model) -> Result<Part> {
        let (first, second) = (one.by_kernel(gpu)?, two.by_kernel(gpu)?);
        let more = (layers - 1) as f64;
        let mut kernels = BTreeMap::new();
        for (kernel, us) in &second {
            let at_first = first.get(kernel).copied().unwrap_or(0.0);
            kernels.insert(kernel.clone(), at_first + more * (us - at_first));
        }
        let block = two.launches.len() - one.launches.len();
        Ok(Part {
            us: kernels.values().sum(),
            launches: [one.launches.len() + (layers - 1) * block, block],
            kernels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus::device::timing::rates::H200;

    /// A small model: parts have times, and more blocks take longer by as much as one.
    #[test]
    fn a_step_grows_with_its_blocks() {
        let model = ModelConfig {
            vocab: 256,
            hidden: 64,
            layers: 2,
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
            ffn: 128,
            ..seven_billion()
        };
        let shape = StepShape {
            model,
            prompts: 2,
            samples: 2,
            prompt_tokens: 16,
            new_tokens: 16,
            micro_batch: 2,
        };
        let recorded = [1, 2].map(|layers| shape.record(layers).unwrap());
        let [two, ten] = [2, 10].map(|layers| shape.parts(&recorded, layers, &H200).unwrap());
        for (two, ten) in [(&two.decode, &ten.decode), (&two.micro_batch, &ten.micro_batch)] {
            assert!(two.us > 0.0 && two.launches[1] > 5, "{two:?}");
            assert_eq!(ten.launches[0], two.launches[0] + 8 * two.launches[1]);
            assert!(ten.us > 2.0 * two.us, "{} {}", two.us, ten.us);
        }
        assert_eq!((two.decode_steps, two.micro_batches), (15, 2));
        println!("{two}");
    }

    #[test]
    #[ignore = "minutes, 8 GB: prints the reference step"]
    fn the_reference_step() {
        println!("{}", StepShape::reference().predict(&H200).unwrap());
    }
}
