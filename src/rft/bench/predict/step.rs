//! Predicted steps of a whole model: a decode step, the prefill, a micro-batch of training, an update, and
//! the step of GRPO that they make up.
//!
//! The trainer's own code runs on the recording device, with one block and with two, on weights of
//! zeros. A model of more blocks is extrapolated: every block does the same. Only the launches of a part
//! are recorded, of each a few blocks of threads; what comes before them does nothing.

use std::collections::BTreeMap;
use std::fmt;

use gradus::device::TimedLaunches;
use gradus::device::timing::rates::Gpu as Model;
use gradus::dtype::Float;
use gradus::ops::{Advantage, presets};
use gradus::quant::Nf4Options;
use gradus::rng::Purpose;
use gradus::view::View;
use gradus::{Result, bf16};
use serde_json::{Value, json};

use super::least::Least;
use super::{Recorded, Recorder, Spent};
use crate::bench::floors::Floors;
use crate::model::{Decoder, LoraOptions, ModelConfig, RopeScaling};
use crate::train::rollout::{Hooks, RolloutKey, Sampling, rollout_with};
use crate::train::update::optimizer::{Optimizer, Residence, Update};
use crate::train::update::record::{Record, TokenClass};
use crate::train::update::step::{Backward, Objective, forward_backward};

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

/// Rank of the adapters.
pub const RANK: usize = 16;

/// Parts of a step, in the order in which they are recorded.
pub const PARTS: [&str; 4] = ["decode step", "prefill", "micro-batch", "update"];

/// A part of a step.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// How often a step has it.
    pub count: usize,
    /// Its launches, all blocks together.
    pub all: Spent,
    /// Launches of each further block.
    pub launches_of_a_block: f64,
    /// The same by kernel.
    pub kernels: BTreeMap<String, Spent>,
    /// What it cannot do without.
    pub least: Least,
    /// Microseconds of its floor, and what that waits for.
    pub floor: (f64, &'static str),
}

/// A step of GRPO with one update.
#[derive(Clone, Debug)]
pub struct StepPrediction {
    /// The parts: see [`PARTS`].
    pub parts: Vec<Part>,
}

impl StepPrediction {
    fn sum(&self, of: impl Fn(&Part) -> f64) -> f64 {
        self.parts.iter().map(|part| part.count as f64 * of(part)).sum()
    }

    /// Seconds of the step, without the host's work.
    pub fn seconds(&self) -> f64 {
        1e-6 * self.sum(|part| part.all.us)
    }

    /// Seconds of its floor.
    pub fn floor(&self) -> f64 {
        1e-6 * self.sum(|part| part.floor.0)
    }

    /// The parts as JSON.
    pub fn json(&self) -> Value {
        let spent = |s: &Spent| {
            json!({
                "us": s.us, "launches": s.launches, "memory_bytes": s.memory_bytes,
                "l2_bytes": s.l2_bytes, "busiest": s.busiest.0, "share": s.busiest.1,
            })
        };
        let part = |p: &Part| {
            let kernels = p.kernels.iter().map(|(kernel, its)| (kernel.clone(), spent(its)));
            let kernels: BTreeMap<String, Value> = kernels.collect();
            json!({
                "part": p.name, "count": p.count, "all": spent(&p.all), "floor_us": p.floor.0,
                "floor_binds": p.floor.1, "least_bytes": p.least.bytes, "least_flops": p.least.flops,
                "launches_of_a_block": p.launches_of_a_block, "kernels": kernels,
            })
        };
        json!({
            "seconds": self.seconds(),
            "floor_seconds": self.floor(),
            "memory_bytes": self.sum(|p| p.all.memory_bytes),
            "least_bytes": self.sum(|p| p.least.bytes),
            "launches": self.sum(|p| p.all.launches),
            "parts": self.parts.iter().map(part).collect::<Vec<_>>(),
        })
    }
}

/// Kernels of a part that are printed.
const SHOWN: usize = 8;

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (us, (floor, binds)) = (self.all.us, self.floor);
        writeln!(
            f,
            "{:<12} {us:>10.1} us x {:>4} = {:>7.3} s   floor {floor:.1} us ({binds}), {:.0} %   {:.2} GB of least {:.2}   \
             {:.0} launches, {:.0} of a block",
            self.name,
            self.count,
            1e-6 * us * self.count as f64,
            100.0 * floor / us,
            1e-9 * self.all.memory_bytes,
            1e-9 * self.least.bytes,
            self.all.launches,
            self.launches_of_a_block,
        )?;
        let mut kernels: Vec<_> = self.kernels.iter().collect();
        kernels.sort_by(|a, b| b.1.us.total_cmp(&a.1.us));
        for (kernel, spent) in kernels.iter().take(SHOWN) {
            let (busiest, share) = spent.busiest;
            writeln!(
                f,
                "    {kernel:<32} {:>10.1} us  {:>5.1} %  {:>5.0} launches   {busiest} {:.0} %",
                spent.us,
                100.0 * spent.us / us,
                spent.launches,
                100.0 * share,
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for StepPrediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| write!(f, "{part}"))?;
        writeln!(
            f,
            "step         {:.2} s, floor {:.2} s   {:.0} GB of least {:.0}   {:.0} launches",
            self.seconds(),
            self.floor(),
            1e-9 * self.sum(|p| p.all.memory_bytes),
            1e-9 * self.sum(|p| p.least.bytes),
            self.sum(|p| p.all.launches),
        )
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
        language_part: false,
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

    /// Tokens that a sequence has on the mean while it is sampled.
    pub fn context(&self) -> usize {
        self.prompt_tokens + self.new_tokens / 2
    }

    /// How often a step has each part.
    fn counts(&self) -> [usize; 4] {
        let micro_batches = (self.prompts * self.samples).div_ceil(self.micro_batch);
        [self.new_tokens - 1, 1, micro_batches, 1]
    }

    /// The step of a model of `layers` blocks, from what models of one and of two do.
    fn parts(
        &self,
        [one, two]: &[[Recorded; 4]; 2],
        layers: usize,
        gpu: &Model,
    ) -> Result<StepPrediction> {
        let (floors, least) = (Floors::nominal(gpu.name), Least::of(self, layers));
        let part = |i: usize| -> Result<Part> {
            let kernels = extrapolated(&one[i], &two[i], layers, gpu)?;
            let mut all = Spent::default();
            kernels.values().for_each(|spent| all.add(spent));
            let launches = [&one[i], &two[i]].map(|r| r.launches.len() as f64);
            Ok(Part {
                name: PARTS[i],
                count: self.counts()[i],
                all,
                launches_of_a_block: launches[1] - launches[0],
                kernels,
                least: least[i],
                floor: least[i].floor(&floors),
            })
        };
        Ok(StepPrediction { parts: (0..PARTS.len()).map(part).collect::<Result<_>>()? })
    }

    /// The parts of a step of a model of so many blocks.
    fn record(&self, layers: usize) -> Result<[Recorded; 4]> {
        let recorder = Recorder::new()?;
        recorder.record_only(TimedLaunches::Nothing);
        let config = ModelConfig { layers, ..self.model.clone() };
        let mut model = Decoder::<bf16>::zeros(&config, recorder.device().clone())?;
        model.quantize(&Nf4Options::default())?;
        let targets = "all-linear".to_string();
        model.attach_lora(&LoraOptions { rank: RANK, alpha: 32.0, targets, rslora: false }, 0)?;
        recorder.record_only(TimedLaunches::All);
        let prefill = recorder.record(true, |_| self.sample(&model, self.prompt_tokens, 1))?;
        // Of three tokens the first comes from the prompt, the second from launches that give scratch memory
        // its size, the third from their graph.
        recorder.record_only(TimedLaunches::OfGraphs);
        let decode = recorder.record(true, |_| self.sample(&model, self.context(), 3))?;
        // A first pass makes tables and scratch memory.
        let records = self.records();
        recorder.record_only(TimedLaunches::Nothing);
        self.train(&model, &records)?;
        recorder.record_only(TimedLaunches::All);
        let mut backward = None;
        let micro_batch = recorder.record(true, |_| {
            backward = Some(self.train(&model, &records)?);
            Ok(())
        })?;
        let mut optimizer = Optimizer::new(recorder.device(), &model.params, Residence::Device)?;
        let update = recorder.record(true, |device| {
            let Some(Backward { gradients, .. }) = &backward else { return Ok(()) };
            optimizer.step(device, &mut model.params, gradients, UPDATE).map(drop)
        })?;
        Ok([decode, prefill, micro_batch, update])
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

    fn train<T: Float>(&self, model: &Decoder<T>, records: &[Record]) -> Result<Backward> {
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
        forward_backward(model, records, advantage, &weight, objective)
    }
}

/// An update as any other.
const UPDATE: Update =
    Update { learning_rate: 1e-5, beta1: 0.9, beta2: 0.999, weight_decay: 0.0, grad_clip: 1.0 };

/// What the kernels of `layers` blocks cost, from those of one block and of two.
fn extrapolated(
    one: &Recorded,
    two: &Recorded,
    layers: usize,
    gpu: &Model,
) -> Result<BTreeMap<String, Spent>> {
    let (first, second) = (one.by_kernel(gpu)?, two.by_kernel(gpu)?);
    let more = (layers - 1) as f64;
    let each = |(kernel, both): (String, Spent)| {
        let at_first = first.get(&kernel).copied().unwrap_or_default();
        let spent = at_first.with_further(&both, more);
        (kernel, spent)
    };
    Ok(second.into_iter().map(each).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::vocabulary::{Pass, head};
    use gradus::device::timing::rates::{H100, H200};

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
        for (two, ten) in two.parts.iter().zip(&ten.parts) {
            let (name, block) = (two.name, two.launches_of_a_block);
            assert!(two.all.us > 0.0, "{two:?}");
            assert!(block > 5.0 || name == "update", "{two:?}");
            assert_eq!(ten.all.launches, two.all.launches + 8.0 * block, "{name}");
            assert!(name == "update" || ten.all.us > 2.0 * two.all.us, "{two}{ten}");
            assert!(two.floor.0 > 0.0 && two.floor.0 < two.all.us, "{two}");
            assert!(ten.least.bytes > two.least.bytes && two.all.memory_bytes > 0.0, "{two}");
        }
        assert_eq!(two.parts.iter().map(|p| p.count).collect::<Vec<_>>(), [15, 1, 2, 1]);
        let sum: f64 = two.parts.iter().map(|p| 1e-6 * p.all.us * p.count as f64).sum();
        assert!((two.seconds() / sum - 1.0).abs() < 1e-12);
    }

    /// `cargo test -p gradus-rft --features emu --lib -- --ignored the_reference_step`, as `gradus bench --device emu
    /// --shapes model --json` with both GPUs.
    #[test]
    #[ignore = "minutes, gigabytes: writes benches/results/predicted_step.json"]
    fn the_reference_step() {
        let shape = StepShape::reference();
        let recorded = [1, 2].map(|layers| shape.record(layers).unwrap());
        let of = |gpu: &Model| {
            let step = shape.parts(&recorded, shape.model.layers, gpu).unwrap();
            println!("{}\n{step}", gpu.name);
            (gpu.name.to_string(), step.json())
        };
        let steps: BTreeMap<String, Value> = [H200, H100].iter().map(of).collect();
        let what = "predicted, not measured: Qwen2.5 with 7 billion parameters, NF4, adapters of rank 16, 16 prompts of \
                    256 tokens, 8 samples of 512 tokens, 4 sequences a micro-batch";
        let text = format!("{:#}\n", json!({ "what": what, "steps": steps }));
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/results/predicted_step.json");
        std::fs::write(path, text).unwrap();
    }

    /// Heads of 128,256 tokens, likewise.
    #[test]
    #[ignore = "minutes, gigabytes: writes benches/results/predicted_heads.json"]
    fn the_heads() {
        let mut rows = Vec::new();
        for tokens in [1024, 8192] {
            for pass in [Pass::Forward, Pass::Score, Pass::Train] {
                let case = head::<bf16>([tokens, 4096, 128_256], pass);
                let recorded = Recorder::new().unwrap().case(&case).unwrap();
                for gpu in [H200, H100] {
                    let predicted = recorded.predict(&gpu).unwrap();
                    println!("{} {}", gpu.name, predicted.line(&case, &Floors::nominal(gpu.name)));
                    rows.push(predicted.json(&case, gpu.name));
                }
            }
        }
        let text = format!("{:#}\n", json!({ "what": "predicted, not measured", "rows": rows }));
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/results/predicted_heads.json");
        std::fs::write(path, text).unwrap();
    }
}
