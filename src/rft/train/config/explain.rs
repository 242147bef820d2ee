//! `gradus config --explain`: every key with its value, its meaning and where the default is from.

use crate::train::config::RunConfig;

/// (key, meaning, source of the default).
const KEYS: &[(&str, &str, &str)] = &[
    ("seed", "names every random draw of the run", "ours"),
    ("out", "folder that holds the run folders", "ours"),
    ("name", "first part of the run folder's name", "ours"),
    ("threads", "worker threads, 0 = one per core; results do not depend on it", "ours"),
    ("device", "cpu, cuda, cuda:N, or auto: a CUDA device if there is a driver", "ours"),
    (
        "phases",
        "phases in order: sft, quantize, collect, value_fit, rl",
        "ReFT (2401.08967): SFT, then RL",
    ),
    ("task.name", "countdown", "ours"),
    ("task.digits", "digits in a prompt", "pilot, docs/LOG.md"),
    ("task.operators", "operators an answer may use, out of +-*", "pilot"),
    ("task.min_target", "smallest target", "pilot"),
    ("task.max_target", "largest target", "pilot"),
    (
        "data.path",
        "prompts: .jsonl, .json, .parquet or a folder of them; empty: the task's",
        "ours",
    ),
    ("data.heldout", "held-out prompts; empty: a share of data.path", "ours"),
    ("data.heldout_share", "share of data.path held out, by a hash of the prompt", "ours"),
    ("data.format", "how a row becomes a prompt: auto, prompt, messages, gsm8k, countdown", "ours"),
    ("data.template", "a template over the row's fields that writes the prompt", "ours"),
    ("data.system", "system message of chat prompts", "ours"),
    ("data.chat", "prompts through the model's chat template: auto, on, off", "ours"),
    ("data.max_prompt_tokens", "prompts with more tokens are left out", "TRL: 512"),
    ("reward.functions", "rewards that are added up; empty: the task's verifier", "ours"),
    (
        "reward.answer",
        "column or dotted path of the right answers; empty: each reward's own column",
        "verl: reward_model.ground_truth",
    ),
    ("reward.skip_special_tokens", "leave special tokens out of what is scored", "TRL: true"),
    ("reward.workers", "processes of a cmd: reward, 0 = one per thread", "ours"),
    ("reward.timeout", "seconds a sample may take, all its tests together", "ours"),
    (
        "reward.startup",
        "further seconds until a cmd: first answers, 0 = twice reward.timeout",
        "ours",
    ),
    ("reward.retries", "further tries of a failed call", "ours"),
    ("model.path", "a Hugging Face folder; the shape is then its own", "ours"),
    ("model.adapter", "a PEFT adapter to go on from", "ours"),
    ("model.hidden", "width of the residual stream", "pilot"),
    ("model.layers", "blocks", "pilot"),
    ("model.heads", "query heads", "pilot"),
    ("model.kv_heads", "key/value heads, a divisor of heads", "pilot"),
    ("model.head_dim", "width of a head, even", "pilot"),
    ("model.ffn", "width of the gated MLP", "pilot"),
    ("model.norm_eps", "eps of the RMSNorms", "Llama: 1e-5"),
    ("model.rope_theta", "base of the rotary frequencies", "RoFormer: 10000"),
    ("model.tie_embeddings", "the head shares the embedding's matrix", "Llama: false"),
    ("model.dtype", "weights and activations: f32 or bf16; what trains is f32", "ours"),
    ("sft.epochs", "passes over the demonstrations", "pilot; model folder: TRL 3"),
    (
        "sft.demos",
        "demonstrations, 0 = every training row once, 4,000 where they never end",
        "pilot; model folder: all rows",
    ),
    ("sft.batch", "demonstrations per step", "pilot; model folder: QLoRA 16"),
    (
        "sft.learning_rate",
        "peak learning rate; auto: 2e-4 for adapters, 2e-5 for whole weights",
        "pilot; model folder: QLoRA 2e-4, TRL 2e-5",
    ),
    ("sft.beta2", "decay of AdamW's second moment", "pilot; model folder: QLoRA 0.999"),
    ("sft.weight_decay", "decoupled weight decay", "ours"),
    ("sft.warmup_steps", "steps of linear warm-up", "pilot; model folder: QLoRA 3 % of a run"),
    (
        "sft.lr_schedule",
        "constant, linear or cosine decay to 0",
        "pilot; model folder: QLoRA constant",
    ),
    ("sft.grad_clip", "largest global gradient norm", "TRL: 1.0; model folder: QLoRA 0.3"),
    ("quantize.type", "nf4, fp4 or none", "QLoRA (2305.14314): nf4"),
    ("quantize.blocksize", "values per block, a power of two from 32 to 4096", "QLoRA: 64"),
    ("quantize.double_quant", "quantise the block maxima too", "QLoRA: true"),
    ("lora.rank", "rank of the adapters", "pilot"),
    ("lora.alpha", "the update is scaled by alpha / rank", "pilot"),
    ("lora.targets", "all-linear, or names such as q_proj,v_proj", "QLoRA: all linear layers"),
    ("lora.rslora", "scale by alpha / sqrt(rank)", "PEFT use_rslora: false"),
    ("rl.steps", "steps", "pilot; model folder: ours"),
    ("rl.prompts", "prompts per step", "pilot; model folder: 8 of 8 samples, TRL's sizes"),
    ("rl.group", "samples per prompt", "TRL: 8"),
    ("rl.updates_per_batch", "updates per batch of rollouts", "TRL num_iterations: 1"),
    ("rl.micro_batch", "sequences per micro-batch; changes rounding, not meaning", "ours"),
    ("rl.temperature", "sampling temperature; log-probs are of that distribution", "TRL: 1.0"),
    ("rl.top_p", "nucleus of the sampler", "TRL: 1.0"),
    ("rl.top_k", "largest k of the sampler, 0 = off", "TRL: 0"),
    ("rl.min_p", "smallest relative probability of the sampler, 0 = off", "TRL: off"),
    ("rl.slots", "sequences decoded together, 0 = what fits the device", "ours"),
    ("rl.max_new_tokens", "longest completion, 0 = what the task needs", "ours"),
    ("rl.stop", "texts that end a completion, which keeps them", "ours: none"),
    (
        "rl.mask_truncated_completions",
        "completions that were cut off carry no loss",
        "TRL: false; DAPO (2503.14476): true",
    ),
    (
        "rl.loss",
        "preset of the loss; what the next six keys leave at auto is the preset's",
        "DeepSeekMath (2402.03300): grpo",
    ),
    (
        "rl.clip_low",
        "lower clip bound in the loss's terms, for PPO the distance from 1",
        "auto: the preset's",
    ),
    ("rl.clip_high", "upper clip bound, likewise", "auto: the preset's"),
    (
        "rl.beta",
        "weight of the KL to the policy RL began with, 0 = none",
        "auto: the preset's; TRL: 0.0",
    ),
    ("rl.kl", "where that KL is put: loss, reward", "auto: the preset's; GRPO: loss, ReFT: reward"),
    (
        "rl.advantage",
        "group (baseline: group mean), loo (leave one out), gae (critic)",
        "auto: the preset's; GRPO: group, ReFT: gae",
    ),
    (
        "rl.scale",
        "divide group advantages by: group, batch, none",
        "auto: the preset's; TRL: group, Dr. GRPO: none",
    ),
    ("rl.optim", "adamw, or paged_adamw: moments in host memory (needs a GPU)", "QLoRA: paged"),
    (
        "rl.learning_rate",
        "peak learning rate; auto: 1e-5 for adapters, 1e-6 for whole weights",
        "pilot; model folder: TRL GRPO 1e-6, adapters ten times that (LoRA Without Regret)",
    ),
    ("rl.beta1", "decay of AdamW's first moment", "AdamW: 0.9"),
    ("rl.beta2", "decay of AdamW's second moment", "pilot; model folder: AdamW 0.999"),
    ("rl.weight_decay", "decoupled weight decay", "TRL: 0.0"),
    ("rl.grad_clip", "largest global gradient norm", "TRL: 1.0"),
    ("rl.lr_schedule", "constant, linear or cosine decay to 0", "TRL: linear"),
    ("rl.warmup_steps", "steps of linear warm-up", "pilot"),
    ("rl.control", "negative control: none, shuffled_rewards or zero_lr", "ours"),
    ("value.collect_steps", "rollout batches of the collect phase", "VLA-RL (2505.18719)"),
    ("value.fit_steps", "critic updates of the value_fit phase", "VLA-RL: 5; pilot"),
    ("value.learning_rate", "critic learning rate", "pilot"),
    (
        "value.clip",
        "clip of the critic's change in a batch, inf = off",
        "auto: the preset's; ReFT: 0.2",
    ),
    ("value.gamma", "discount", "ReFT: 1.0"),
    ("value.lambda", "GAE's lambda", "ReFT: 0.95"),
    ("eval.every", "RL steps between evaluations", "ours"),
    ("eval.max_prompts", "held-out prompts", "ours"),
    ("eval.samples", "completions per held-out prompt", "ours"),
    ("eval.temperature", "sampling temperature of evaluations, 0 = greedy", "ours"),
    ("checkpoint.every", "steps between checkpoints", "ours"),
    ("checkpoint.keep", "checkpoints kept", "ours"),
];

/// One line per key of `config`.
pub fn explain(config: &RunConfig) -> String {
    let table = toml::Table::try_from(config.without_secrets()).unwrap_or_default();
    let value = |key: &str| {
        let mut at = toml::Value::Table(table.clone());
        for part in key.split('.') {
            at = at.get(part).cloned().unwrap_or(toml::Value::String("?".into()));
        }
        at.to_string()
    };
    let line = |&(key, meaning, source): &(&str, &str, &str)| {
        format!("{:<46} # {meaning} [{source}]\n", format!("{key} = {}", value(key)))
    };
    KEYS.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(prefix: &str, table: &toml::Table, out: &mut Vec<String>) {
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                toml::Value::Table(inner) => leaves(&path, inner, out),
                _ => out.push(path),
            }
        }
    }

    #[test]
    fn every_key_is_explained_and_nothing_else() {
        let mut keys = Vec::new();
        leaves("", &toml::Table::try_from(RunConfig::default()).unwrap(), &mut keys);
        let mut explained: Vec<String> = KEYS.iter().map(|k| k.0.to_string()).collect();
        keys.sort();
        explained.sort();
        assert_eq!(keys, explained);
    }
}
