//! A model of two hundred weights on disk, plain and in 4 bits.

use std::fs;
use std::path::{Path, PathBuf};

use gradus_rft::io::safetensors::{TensorData, Tensors, write_pt};
use gradus_rft::pretrained::Pretrained;
use gradus::quant::Nf4Options;

const CONFIG: &str = r#"{"model_type": "qwen2", "vocab_size": 3, "hidden_size": 4, "intermediate_size": 4,
 "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8,
 "tie_word_embeddings": true, "dtype": "float32", "eos_token_id": [1, 2],
 "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0,
  "high_freq_factor": 4.0, "original_max_position_embeddings": 4}}"#;

const SHAPES: [(&str, &[usize]); 14] = [
    ("model.embed_tokens", &[3, 4]),
    ("model.norm", &[4]),
    ("model.layers.0.input_layernorm", &[4]),
    ("model.layers.0.post_attention_layernorm", &[4]),
    ("model.layers.0.self_attn.q_proj", &[4, 4]),
    ("model.layers.0.self_attn.k_proj", &[2, 4]),
    ("model.layers.0.self_attn.v_proj", &[2, 4]),
    ("model.layers.0.self_attn.o_proj", &[4, 4]),
    ("model.layers.0.mlp.gate_proj", &[4, 4]),
    ("model.layers.0.mlp.up_proj", &[4, 4]),
    ("model.layers.0.mlp.down_proj", &[4, 4]),
    ("model.layers.0.self_attn.q_proj.bias", &[4]),
    ("model.layers.0.self_attn.k_proj.bias", &[2]),
    ("model.layers.0.self_attn.v_proj.bias", &[2]),
];

/// Writes the model to `folder/plain` and `folder/nf4`, in memory where the system has such a disk.
pub fn folders() -> [PathBuf; 2] {
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
    let root = root.join(format!("gradus-fuzz-{}", std::process::id()));
    let plain = root.join("plain");
    fs::create_dir_all(&plain).expect("a folder");
    fs::write(plain.join("config.json"), CONFIG).expect("a file");
    let mut tensors = Tensors::new();
    for (name, shape) in SHAPES {
        let name = if name.ends_with("bias") { name.into() } else { format!("{name}.weight") };
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32).sin()).collect();
        tensors.insert(name, TensorData::new(shape, &values));
    }
    write_pt(&plain.join("model.safetensors"), &tensors).expect("a file");
    let nf4 = root.join("nf4");
    let mut model = Pretrained::open(&plain).expect("the model");
    model.quantize_to(&nf4, &Nf4Options::default(), &mut |_, _| ()).expect("a folder");
    [plain, nf4]
}
