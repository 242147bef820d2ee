//! The settings of a run: a TOML file whose every key is optional, and `--set a.b=c` on top.

use std::collections::BTreeMap;
use std::path::Path;

mod auto;
mod check;
mod choice;
pub mod explain;
mod set;

pub use auto::Auto;
pub(crate) use choice::{AdvantageKey, Control, KlKey, ScaleKey, Schedule};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::io::json;
use crate::train::optimizer::Residence;
use gradus::device::Device;
use gradus::dtype::DType;
use gradus::error::{Error, Result};
use gradus::quant::{Nf4Options, QuantType};

macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident : $type:ty = $default:expr),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$doc])* pub $field: $type),* }

        impl Default for $name {
            fn default() -> $name {
                $name { $($field: $default),* }
            }
        }
    };
}

section! {
    /// A whole run.
    RunConfig {
        /// Names every random draw of the run.
        seed: u64 = 0,
        /// Folder that holds the run folders.
        out: String = "runs".into(),
        /// First part of the run folder's name.
        name: String = "demo".into(),
        /// Worker threads; 0 = one per core. Results do not depend on it.
        threads: usize = 0,
        /// cpu, cuda, cuda:1, ..., or auto: a CUDA device if there is a driver.
        device: String = "auto".into(),
        /// Phases in order: sft, quantize, collect, value_fit, rl.
        phases: Vec<String> = ["sft", "quantize", "rl"].map(String::from).to_vec(),
        /// What is learnt, without data.
        task: TaskConfig = TaskConfig::default(),
        /// Prompts from a file.
        data: DataConfig = DataConfig::default(),
        /// How completions are scored.
        reward: RewardConfig = RewardConfig::default(),
        /// The decoder.
        model: ModelSection = ModelSection::default(),
        /// Supervised warm-up.
        sft: SftConfig = SftConfig::default(),
        /// 4-bit weights.
        quantize: QuantizeConfig = QuantizeConfig::default(),
        /// Adapters.
        lora: LoraConfig = LoraConfig::default(),
        /// Reinforcement fine-tuning.
        rl: RlConfig = RlConfig::default(),
        /// The critic, for `rl.advantage = "gae"`.
        value: ValueConfig = ValueConfig::default(),
        /// Held-out accuracy.
        eval: EvalConfig = EvalConfig::default(),
        /// Saved states.
        checkpoint: CheckpointConfig = CheckpointConfig::default(),
    }
}

section! {
    /// The task: Countdown-lite.
    TaskConfig {
        /// `countdown`.
        name: String = "countdown".into(),
        /// Digits in a prompt.
        digits: usize = 3,
        /// Operators an answer may use.
        operators: String = "+-".into(),
        /// Smallest target.
        min_target: u32 = 0,
        /// Largest target.
        max_target: u32 = 30,
    }
}

section! {
    /// Prompts from a file.
    DataConfig {
        /// A .jsonl, .json or .parquet file, or a folder of them; empty: the task's own prompts.
        path: String = String::new(),
        /// Held-out prompts; empty: a share of `path`.
        heldout: String = String::new(),
        /// Share of `path` that is held out, chosen by a hash of the prompt.
        heldout_share: f64 = 0.1,
        /// How a row becomes a prompt: auto, prompt, messages, gsm8k or countdown.
        format: String = "auto".into(),
        /// A template (minijinja) over the row's fields that writes the prompt, instead of `format`.
        template: String = String::new(),
        /// System message of chat prompts.
        system: String = String::new(),
        /// Whether prompts go through the model's chat template: auto (if it has one), on or off.
        chat: String = "auto".into(),
        /// Prompts with more tokens are left out.
        max_prompt_tokens: usize = 512,
    }
}

section! {
    /// How completions are scored.
    RewardConfig {
        /// Rewards that are added up: names, `WEIGHT*NAME`, `cmd:COMMAND` or a URL. Empty: the task's
        /// verifier.
        functions: Vec<String> = Vec::new(),
        /// The column with the right answers, or a path such as `reward_model.ground_truth`; empty:
        /// the column that each reward names as its own.
        answer: String = String::new(),
        /// Whether special tokens are left out of the text that is scored.
        skip_special_tokens: bool = true,
        /// Processes of a `cmd:` reward, 0 = one per thread.
        workers: usize = 0,
        /// Seconds a sample may take, with all its tests where a program is judged.
        timeout: f64 = 30.0,
        /// Further seconds that a `cmd:` may take until it first answers, for example to load a model;
        /// 0 = twice `timeout`.
        startup: f64 = 0.0,
        /// Further tries of a failed call.
        retries: usize = 1,
    }
}

section! {
    /// The decoder: a folder, or the shape of a fresh one (Llama).
    ModelSection {
        /// A Hugging Face folder; the shape is then its own.
        path: String = String::new(),
        /// A PEFT adapter to go on from.
        adapter: String = String::new(),
        /// Width of the residual stream.
        hidden: usize = 96,
        /// Blocks.
        layers: usize = 2,
        /// Query heads.
        heads: usize = 4,
        /// Key/value heads.
        kv_heads: usize = 4,
        /// Width of a head.
        head_dim: usize = 24,
        /// Width of the MLP.
        ffn: usize = 288,
        /// eps of the norms.
        norm_eps: f64 = 1e-5,
        /// Base of the rotary frequencies.
        rope_theta: f64 = 10_000.0,
        /// Head shares the embedding.
        tie_embeddings: bool = false,
        /// What weights and activations are kept in: f32 or bf16. What trains is f32 either way.
        dtype: String = "f32".into(),
    }
}

section! {
    /// Supervised warm-up.
    SftConfig {
        /// Passes over the demonstrations.
        epochs: usize = 6,
        /// Demonstrations; 0 = every training row of the data once, 4,000 where there is no end of them.
        demos: usize = 4_000,
        /// Demonstrations per step.
        batch: usize = 64,
        /// Peak learning rate; auto: 2e-4 for adapters, 2e-5 for whole weights.
        learning_rate: Auto = Auto::Value(2e-3),
        /// Decay of AdamW's second moment.
        beta2: f64 = 0.95,
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0,
        /// Steps of linear warm-up.
        warmup_steps: usize = 20,
        /// constant, linear or cosine.
        lr_schedule: String = "linear".into(),
        /// Largest global gradient norm.
        grad_clip: f64 = 1.0,
    }
}

section! {
    /// 4-bit weights.
    QuantizeConfig {
        /// nf4, fp4 or none.
        r#type: String = "nf4".into(),
        /// Values per block.
        blocksize: usize = 64,
        /// Quantise the block maxima too.
        double_quant: bool = true,
    }
}

section! {
    /// Adapters.
    LoraConfig {
        /// Rank.
        rank: usize = 16,
        /// The update is scaled by alpha / rank.
        alpha: f64 = 32.0,
        /// all-linear, or names such as `q_proj,v_proj`.
        targets: String = "all-linear".into(),
        /// Scale by alpha / sqrt(rank).
        rslora: bool = false,
    }
}

section! {
    /// Reinforcement fine-tuning.
    RlConfig {
        /// Steps.
        steps: usize = 600,
        /// Prompts per step.
        prompts: usize = 64,
        /// Samples per prompt.
        group: usize = 8,
        /// Updates per batch of rollouts.
        updates_per_batch: usize = 1,
        /// Sequences per micro-batch.
        micro_batch: usize = 32,
        /// Sampling temperature; log-probs are of that distribution.
        temperature: f64 = 1.0,
        /// Nucleus of the sampler.
        top_p: f64 = 1.0,
        /// Largest k of the sampler, 0 = off.
        top_k: i64 = 0,
        /// Sequences decoded together: per thread on the CPU, in all on a GPU; 0 = what fits the
        /// device.
        slots: usize = 0,
        /// Smallest relative probability of the sampler, 0 = off.
        min_p: f64 = 0.0,
        /// Longest completion; 0 = what the task needs.
        max_new_tokens: usize = 0,
        /// Texts that end a completion, which keeps them.
        stop: Vec<String> = Vec::new(),
        /// Whether completions that were cut off carry no loss.
        mask_truncated_completions: bool = false,
        /// Preset of the loss. What other keys leave at auto is the preset's.
        loss: String = "grpo".into(),
        /// Lower clip bound in the loss's own terms, for PPO the distance from a ratio of 1; auto: the
        /// preset's.
        clip_low: Auto = Auto::Auto,
        /// Upper clip bound; auto: the preset's.
        clip_high: Auto = Auto::Auto,
        /// Weight of the KL to the policy that RL began with, 0 = none; auto: the preset's.
        beta: Auto = Auto::Auto,
        /// Where the KL is put: loss, reward; auto: where the preset has it.
        kl: String = "auto".into(),
        /// group (baseline: group mean), loo (leave one out), gae (critic); auto: the preset's.
        advantage: String = "auto".into(),
        /// Divide group advantages by: group, batch, none; auto: the preset's.
        scale: String = "auto".into(),
        /// Peak learning rate; auto: 1e-5 for adapters, 1e-6 for whole weights.
        learning_rate: Auto = Auto::Value(2e-3),
        /// adamw, or paged_adamw: moments in host memory, brought to the GPU in chunks.
        optim: String = "adamw".into(),
        /// Decay of AdamW's first moment.
        beta1: f64 = 0.9,
        /// Decay of AdamW's second moment.
        beta2: f64 = 0.95,
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0,
        /// Largest global gradient norm.
        grad_clip: f64 = 1.0,
        /// constant, linear or cosine.
        lr_schedule: String = "linear".into(),
        /// Steps of linear warm-up.
        warmup_steps: usize = 10,
        /// Negative control: none, shuffled_rewards or zero_lr.
        control: String = "none".into(),
    }
}

section! {
    /// The critic of `rl.advantage = "gae"`.
    ValueConfig {
        /// Rollout batches the collect phase gathers.
        collect_steps: usize = 4,
        /// Critic updates of the value_fit phase.
        fit_steps: usize = 50,
        /// Critic learning rate.
        learning_rate: f64 = 1e-2,
        /// ε of the value clip, infinity = off; auto: the preset's.
        clip: Auto = Auto::Auto,
        /// Discount.
        gamma: f64 = 1.0,
        /// GAE's λ.
        lambda: f64 = 0.95,
    }
}

section! {
    /// Held-out accuracy.
    EvalConfig {
        /// RL steps between evaluations.
        every: usize = 100,
        /// Held-out prompts.
        max_prompts: usize = 256,
        /// Completions per prompt.
        samples: usize = 2,
        /// Sampling temperature; 0 = greedy.
        temperature: f64 = 1.0,
    }
}

section! {
    /// Saved states.
    CheckpointConfig {
        /// Steps between checkpoints.
        every: usize = 100,
        /// Checkpoints kept.
        keep: usize = 2,
    }
}

impl RunConfig {
    /// The defaults of a run on a model from disk: small batches of longer completions, and the
    /// optimizer settings of QLoRA (arXiv:2305.14314, appendix B) and TRL 1.16.
    pub fn pretrained() -> RunConfig {
        RunConfig {
            name: "rft".into(),
            phases: ["quantize", "rl"].map(String::from).to_vec(),
            sft: SftConfig {
                epochs: 3,
                demos: 0,
                batch: 16,
                learning_rate: Auto::Auto,
                beta2: 0.999,
                warmup_steps: 10,
                lr_schedule: "constant".into(),
                grad_clip: 0.3,
                ..SftConfig::default()
            },
            rl: RlConfig {
                steps: 200,
                prompts: 8,
                micro_batch: 4,
                max_new_tokens: 128,
                learning_rate: Auto::Auto,
                beta2: 0.999,
                ..RlConfig::default()
            },
            eval: EvalConfig { every: 20, max_prompts: 32, samples: 1, ..EvalConfig::default() },
            checkpoint: CheckpointConfig { every: 20, ..CheckpointConfig::default() },
            ..RunConfig::default()
        }
    }

    /// Reads a TOML file. Keys it leaves out have the defaults of the demo, or, if it names a
    /// `model.path`, those of [`RunConfig::pretrained`].
    ///
    /// # Errors
    /// `Io`; `Format` for a file that is no TOML or has keys that do not exist.
    pub fn load(path: &Path) -> Result<RunConfig> {
        RunConfig::read(path, RunConfig::default())
    }

    /// The same with other defaults, unless the file names a model.
    pub fn read(path: &Path, defaults: RunConfig) -> Result<RunConfig> {
        let text = json::read_text(path, 1 << 20)?;
        let wrong = |e: toml::de::Error| Error::format(path, e.to_string().trim_end().to_string());
        // Read once by itself, which names the line of a wrong key.
        let own: RunConfig = toml::from_str(&text).map_err(wrong)?;
        let given: toml::Table = toml::from_str(&text).map_err(wrong)?;
        let defaults = if own.model.path.is_empty() { defaults } else { RunConfig::pretrained() };
        let mut table = defaults.to_table();
        overlay(&mut table, given);
        table.try_into().map_err(wrong)
    }

    fn to_table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("a configuration is a table")
    }

    /// All keys with their values, as TOML; addresses of rewards without their secrets.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&self.without_secrets()).expect("a configuration is a table")
    }

    /// What may be shown and written down: addresses of rewards without users, passwords and tokens.
    pub fn without_secrets(&self) -> RunConfig {
        let mut config = self.clone();
        for function in &mut config.reward.functions {
            *function = crate::reward::spec::without_secrets(function);
        }
        config
    }

    /// Keys that a run may change when it goes on: where it is stored, how often it is saved, how
    /// many threads, slots and workers compute it and how patient they are. No result depends on them.
    pub const NEUTRAL: [&str; 10] = [
        "out",
        "name",
        "threads",
        "rl.slots",
        "reward.workers",
        "reward.timeout",
        "reward.retries",
        "reward.startup",
        "checkpoint.every",
        "checkpoint.keep",
    ];

    /// SHA-256 of everything that influences results: all keys but [`RunConfig::NEUTRAL`], addresses
    /// without their secrets.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (key, value) in settings(&self.without_secrets().to_table()) {
            hash.update(format!("{key} = {value}\n"));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The device that the configuration names.
    ///
    /// # Errors
    /// `Config` for a name that is none; `NoDriver` for a CUDA device that is not there.
    pub fn open_device(&self) -> Result<Device> {
        let name = self.device.as_str();
        match (name, name.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Device::best(),
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Device::cuda(0),
            (_, Some(Ok(ordinal))) => Device::cuda(ordinal),
            _ => Err(Error::config("device", format!("`{name}` is not auto, cpu, cuda or cuda:N"))),
        }
    }

    /// How the blocks' weights are quantised, if they are.
    ///
    /// # Errors
    /// `Config` for a `quantize.type` that is none of nf4, fp4 and none.
    pub fn nf4_options(&self) -> Result<Option<Nf4Options>> {
        let quantize = &self.quantize;
        let quant_type = match quantize.r#type.as_str() {
            "none" => return Ok(None),
            "fp4" => QuantType::Fp4,
            "nf4" => QuantType::Nf4,
            other => {
                let reason = format!("`{other}` is not one of nf4, fp4, none");
                return Err(Error::config("quantize.type", reason));
            }
        };
        let (blocksize, double_quant) = (quantize.blocksize, quantize.double_quant);
        Ok(Some(Nf4Options { quant_type, blocksize, double_quant }))
    }

    /// The dtype of weights and activations.
    pub fn dtype(&self) -> Result<DType> {
        match self.model.dtype.as_str() {
            "f32" => Ok(DType::F32),
            "bf16" => Ok(DType::Bf16),
            other => {
                Err(Error::config("model.dtype", format!("`{other}` is not one of f32, bf16")))
            }
        }
    }

    /// Where the optimiser's moments live.
    pub fn residence(&self) -> Result<Residence> {
        match self.rl.optim.as_str() {
            "adamw" => Ok(Residence::Device),
            "paged_adamw" => Ok(Residence::Host),
            other => {
                let reason = format!("`{other}` is not one of adamw, paged_adamw");
                Err(Error::config("rl.optim", reason))
            }
        }
    }
}

/// The keys of a configuration that results depend on, dotted, with their values as TOML.
pub(crate) fn settings(table: &toml::Table) -> BTreeMap<String, String> {
    fn flatten(prefix: &str, table: &toml::Table, found: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(table) => flatten(&format!("{prefix}{key}."), table, found),
                value => drop(found.insert(format!("{prefix}{key}"), value.to_string())),
            }
        }
    }
    let mut found = BTreeMap::new();
    flatten("", table, &mut found);
    found.retain(|key, _| !RunConfig::NEUTRAL.contains(&key.as_str()));
    found
}

/// Puts the values of `over` in the place of those of `base`, section by section.
fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => overlay(base, over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}
