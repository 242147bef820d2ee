//! The longest sequences that fit onto a GPU, as docs/TRAINING.md states them.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use gradus::bf16;
use gradus::device::{Driver, DriverInfo, EmuDriver};
use gradus_rft::train::{MemoryPlan, RunConfig};
use serde_json::{Map, Value, json};

use crate::common::root;

/// A Qwen2.5.
struct Qwen {
    name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    tied: bool,
}

const MODELS: [Qwen; 2] = [
    Qwen {
        name: "0.5B",
        hidden: 896,
        layers: 24,
        heads: 14,
        kv_heads: 2,
        ffn: 4864,
        vocab: 151_936,
        tied: true,
    },
    Qwen {
        name: "7B",
        hidden: 3584,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        ffn: 18_944,
        vocab: 152_064,
        tied: false,
    },
];

impl Qwen {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let kv = self.hidden / self.heads * self.kv_heads;
        let (d, f) = (self.hidden, self.ffn);
        let mut all = vec![
            ("model.embed_tokens.weight".to_string(), vec![self.vocab, d]),
            ("model.norm.weight".into(), vec![d]),
        ];
        if !self.tied {
            all.push(("lm_head.weight".into(), vec![self.vocab, d]));
        }
        for layer in 0..self.layers {
            for (name, shape) in [
                ("input_layernorm.weight", vec![d]),
                ("post_attention_layernorm.weight", vec![d]),
                ("self_attn.q_proj.weight", vec![d, d]),
                ("self_attn.q_proj.bias", vec![d]),
                ("self_attn.k_proj.weight", vec![kv, d]),
                ("self_attn.k_proj.bias", vec![kv]),
                ("self_attn.v_proj.weight", vec![kv, d]),
                ("self_attn.v_proj.bias", vec![kv]),
                ("self_attn.o_proj.weight", vec![d, d]),
                ("mlp.gate_proj.weight", vec![f, d]),
                ("mlp.up_proj.weight", vec![f, d]),
                ("mlp.down_proj.weight", vec![d, f]),
            ] {
                all.push((format!("model.layers.{layer}.{name}"), shape));
            }
        }
        all
    }

    /// A folder of the model whose file of weights has a header and holes.
    fn write(&self, folder: &Path) {
        let mut header = Map::new();
        let mut end = 0u64;
        for (name, shape) in self.tensors() {
            let begin = end;
            end += 2 * shape.iter().product::<usize>() as u64;
            let about = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] });
            header.insert(name, about);
        }
        let mut header = serde_json::to_vec(&Value::Object(header)).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = File::create(folder.join("model.safetensors")).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        file.set_len(8 + header.len() as u64 + end).unwrap();
        let config = json!({
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
            "max_position_embeddings": 1 << 19,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "eos_token_id": 1,
            "torch_dtype": "bfloat16",
        });
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let tokenizer = root().join("tests/golden/text/byte_level/tokenizer.json");
        fs::copy(tokenizer, folder.join("tokenizer.json")).unwrap();
        let rows = (0..20).map(|i| json!({ "prompt": format!("{i}"), "answer": "1" }).to_string());
        fs::write(folder.join("rows.jsonl"), rows.collect::<Vec<_>>().join("\n")).unwrap();
    }
}

/// The largest number of new tokens, in steps of 256, that a GPU has memory for: with everything kept, or with what a
/// run gives up by itself.
fn longest(folder: &Path, sequences: usize, kept: bool, memory: u64) -> usize {
    let fits = |new: usize| {
        let mut config = RunConfig::pretrained();
        let own = [
            format!("model.path={}", folder.display()),
            format!("data.path={}", folder.join("rows.jsonl").display()),
            format!("rl.max_new_tokens={new}"),
            format!("rl.micro_batch={sequences}"),
            format!("rl.gradient_checkpointing={}", if kept { "off" } else { "auto" }),
        ];
        let fixed = [
            "phases=quantize,rl",
            "model.dtype=bf16",
            "reward.functions=exact",
            "rl.prompts=1",
            "rl.group=8",
            "eval.max_prompts=1",
        ];
        let all = fixed.iter().copied().chain(own.iter().map(String::as_str));
        all.for_each(|setting| config.apply_set(setting).unwrap());
        let info = DriverInfo { memory, ..EmuDriver::new().info().clone() };
        match kept {
            true => MemoryPlan::new::<bf16>(&config, &info).unwrap().total <= memory,
            false => MemoryPlan::fitting::<bf16>(&config, &info).is_ok(),
        }
    };
    let (mut longest, mut not) = (0, 2048);
    while not - longest > 1 {
        let middle = (longest + not) / 2;
        match fits(256 * middle) {
            true => longest = middle,
            false => not = middle,
        }
    }
    256 * longest
}

#[test]
#[ignore = "minutes: plans of models with up to 7 billion parameters"]
fn the_longest_sequences_are_those_of_the_documentation() {
    let said = fs::read_to_string(root().join("docs/TRAINING.md")).unwrap();
    let mut missing = Vec::new();
    for model in &MODELS {
        let folder = tempfile::tempdir().unwrap();
        model.write(folder.path());
        for gigabytes in [24, 80] {
            let of = |sequences, kept| {
                // The driver's own share of the memory is no part of the plan.
                let tokens = longest(folder.path(), sequences, kept, (gigabytes - 1) << 30);
                match tokens / 1000 {
                    0 => format!("{tokens}"),
                    thousands => format!("{thousands},{:03}", tokens % 1000),
                }
            };
            let all = [of(8, true), of(8, false), of(1, true), of(1, false)];
            let row = format!("| {} | {gigabytes} GB | {} |", model.name, all.join(" | "));
            println!("{row}");
            if !said.contains(&row) {
                missing.push(row);
            }
        }
    }
    assert!(missing.is_empty(), "docs/TRAINING.md lacks\n{}", missing.join("\n"));
}
