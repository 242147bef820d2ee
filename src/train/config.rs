//! The settings of a run: a TOML file whose every key is optional, and `--set a.b=c` on top.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::train::optimizer::Residence;

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
        /// What is learnt.
        task: TaskConfig = TaskConfig::default(),
        /// Shape of the decoder.
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
    /// Shape of the decoder (Llama).
    ModelSection {
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
        /// Demonstrations.
        demos: usize = 4_000,
        /// Demonstrations per step.
        batch: usize = 64,
        /// Peak learning rate.
        learning_rate: f64 = 2e-3,
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
        /// Preset of the loss.
        loss: String = "grpo".into(),
        /// Ratio clip below 1.
        clip_low: f64 = 0.2,
        /// Ratio clip above 1.
        clip_high: f64 = 0.2,
        /// Weight of the KL to the frozen base model; 0 = the reference is not computed.
        beta: f64 = 0.0,
        /// group (baseline: group mean), loo (leave one out), gae (critic).
        advantage: String = "group".into(),
        /// Divide group advantages by: group, batch, none.
        scale: String = "group".into(),
        /// Peak learning rate.
        learning_rate: f64 = 2e-3,
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

/// `value` is one of `allowed`.
fn one_of(key: &str, value: &str, allowed: &[&str]) -> Result<()> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(Error::config(key, format!("`{value}` is not one of {}", allowed.join(", "))))
}

fn within(key: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::config(key, format!("{value} is not in {}..={}", range.start(), range.end())))
}

impl RunConfig {
    /// Reads a TOML file.
    pub fn load(path: &Path) -> Result<RunConfig> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        toml::from_str(&text).map_err(|e| Error::format(path, e.to_string().trim_end().to_string()))
    }

    /// Sets one key from `section.key=value`; the value is read as TOML, or as a bare string.
    pub fn apply_set(&mut self, assignment: &str) -> Result<()> {
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(Error::config(assignment, "expected key=value"));
        };
        let (key, text) = (key.trim(), text.trim());
        let mut table = self.to_table();
        let mut at = &mut table;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            let known: Vec<String> = at.keys().cloned().collect();
            let Some(entry) = at.get_mut(part) else {
                return Err(Error::config(key, unknown_key(part, &known)));
            };
            if parts.peek().is_none() {
                *entry = parse_like(key, entry, text)?;
                break;
            }
            let Some(inner) = entry.as_table_mut() else {
                return Err(Error::config(key, format!("`{part}` is a value, not a section")));
            };
            at = inner;
        }
        *self = table.try_into().map_err(|e: toml::de::Error| Error::config(key, e.message()))?;
        Ok(())
    }

    fn to_table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("a configuration is a table")
    }

    /// All keys with their values, as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a configuration is a table")
    }

    /// SHA-256 of everything that influences results: not where the run is stored, how often it is
    /// saved, or how many threads compute it.
    pub fn fingerprint(&self) -> String {
        let neutral = RunConfig {
            out: String::new(),
            name: String::new(),
            threads: 0,
            checkpoint: CheckpointConfig::default(),
            ..self.clone()
        };
        let digest = Sha256::digest(neutral.to_toml().as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
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

    /// Refuses values that no run can have, naming the key.
    pub fn validate(&self) -> Result<()> {
        self.dtype()?;
        self.residence()?;
        one_of("task.name", &self.task.name, &["countdown"])?;
        one_of("quantize.type", &self.quantize.r#type, &["nf4", "fp4", "none"])?;
        one_of("rl.advantage", &self.rl.advantage, &["group", "loo", "gae"])?;
        one_of("rl.scale", &self.rl.scale, &["group", "batch", "none"])?;
        one_of("rl.control", &self.rl.control, &["none", "shuffled_rewards", "zero_lr"])?;
        for (key, value) in
            [("sft.lr_schedule", &self.sft.lr_schedule), ("rl.lr_schedule", &self.rl.lr_schedule)]
        {
            one_of(key, value, &["constant", "linear", "cosine"])?;
        }
        for phase in &self.phases {
            crate::train::phases::Phase::parse(phase)?;
        }
        let blocksize = self.quantize.blocksize;
        if !(blocksize.is_power_of_two() && (32..=4096).contains(&blocksize)) {
            let reason = format!("{blocksize} is not a power of two from 32 to 4096");
            return Err(Error::config("quantize.blocksize", reason));
        }
        self.validate_counts()?;
        self.validate_numbers()
    }

    fn validate_counts(&self) -> Result<()> {
        let (rl, sft, eval) = (&self.rl, &self.sft, &self.eval);
        let counts = [
            ("sft.demos", sft.demos, 1, 1 << 24),
            ("sft.batch", sft.batch, 1, 1 << 16),
            ("sft.epochs", sft.epochs, 0, 1 << 16),
            ("rl.prompts", rl.prompts, 1, 1 << 16),
            ("rl.group", rl.group, 1, 1 << 12),
            ("rl.updates_per_batch", rl.updates_per_batch, 1, 1 << 10),
            ("rl.micro_batch", rl.micro_batch, 1, 1 << 16),
            ("rl.slots", rl.slots, 0, 1 << 16),
            ("rl.max_new_tokens", rl.max_new_tokens, 0, 1 << 20),
            ("lora.rank", self.lora.rank, 1, 1 << 12),
            ("eval.every", eval.every, 1, usize::MAX >> 1),
            ("eval.max_prompts", eval.max_prompts, 1, 1 << 20),
            ("eval.samples", eval.samples, 1, 1 << 12),
            ("checkpoint.every", self.checkpoint.every, 1, usize::MAX >> 1),
            ("checkpoint.keep", self.checkpoint.keep, 1, 1 << 16),
            ("threads", self.threads, 0, 1 << 12),
        ];
        for (key, value, low, high) in counts {
            if !(low..=high).contains(&value) {
                return Err(Error::config(key, format!("{value} is not in {low}..={high}")));
            }
        }
        if rl.top_k < 0 {
            return Err(Error::config("rl.top_k", format!("{} is negative", rl.top_k)));
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<()> {
        let (rl, sft, value) = (&self.rl, &self.sft, &self.value);
        let tiny = f64::MIN_POSITIVE;
        within("rl.temperature", rl.temperature, 1e-3..=1e3)?;
        within("rl.top_p", rl.top_p, tiny..=1.0)?;
        within("rl.min_p", rl.min_p, 0.0..=1.0)?;
        within("rl.clip_low", rl.clip_low, 0.0..=1.0)?;
        within("rl.clip_high", rl.clip_high, 0.0..=1e6)?;
        within("rl.beta", rl.beta, 0.0..=1e6)?;
        within("lora.alpha", self.lora.alpha, tiny..=1e6)?;
        within("eval.temperature", self.eval.temperature, 0.0..=1e3)?;
        within("value.gamma", value.gamma, 0.0..=1.0)?;
        within("value.lambda", value.lambda, 0.0..=1.0)?;
        for (key, rate) in [
            ("rl.learning_rate", rl.learning_rate),
            ("sft.learning_rate", sft.learning_rate),
            ("value.learning_rate", value.learning_rate),
        ] {
            within(key, rate, 0.0..=1e3)?;
        }
        for (key, beta) in [("rl.beta1", rl.beta1), ("rl.beta2", rl.beta2)] {
            within(key, beta, 0.0..=1.0 - 1e-12)?;
        }
        for (key, clip) in [("rl.grad_clip", rl.grad_clip), ("sft.grad_clip", sft.grad_clip)] {
            within(key, clip, tiny..=f64::INFINITY)?;
        }
        for (key, decay) in
            [("rl.weight_decay", rl.weight_decay), ("sft.weight_decay", sft.weight_decay)]
        {
            within(key, decay, 0.0..=1e3)?;
        }
        Ok(())
    }
}

fn unknown_key(part: &str, known: &[String]) -> String {
    let near: Vec<&str> =
        known.iter().map(String::as_str).filter(|k| distance(k, part) <= 3).collect();
    match near.as_slice() {
        [] => format!("no key `{part}`; known are {}", known.join(", ")),
        _ => format!("no key `{part}`; did you mean {}?", near.join(" or ")),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let cost = diagonal + (x != y) as usize;
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// `text` as a value of the kind `like` is.
fn parse_like(key: &str, like: &toml::Value, text: &str) -> Result<toml::Value> {
    use toml::Value;
    let wrong = |kind: &str| Error::config(key, format!("`{text}` is not {kind}"));
    Ok(match like {
        Value::String(_) => Value::String(text.trim_matches('"').into()),
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| wrong("a whole number"))?),
        Value::Float(_) => Value::Float(text.parse().map_err(|_| wrong("a number"))?),
        Value::Boolean(_) => Value::Boolean(text.parse().map_err(|_| wrong("true or false"))?),
        Value::Array(_) => {
            let inner = text.trim_start_matches('[').trim_end_matches(']');
            let items = inner.split(',').map(|item| item.trim().trim_matches('"'));
            Value::Array(
                items.filter(|item| !item.is_empty()).map(|i| Value::String(i.into())).collect(),
            )
        }
        _ => return Err(wrong("a value; this key is a section")),
    })
}
