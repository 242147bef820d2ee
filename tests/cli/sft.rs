//! Supervised fine-tuning of a model from disk on a data file, as a user does it: what is written, and
//! that it is what was learned.
#![cfg(feature = "hf")]

use std::path::Path;
use std::process::Command;

use super::runs::{gradus, latest, must, outcome, read_of};
use serde_json::Value;

fn golden() -> String {
    crate::common::root().join("tests/golden/models/llama").to_string_lossy().into_owned()
}

/// A run of `phases` on the golden Llama and a toy.
fn run(folder: &Path, phases: &str) -> std::path::PathBuf {
    let rows = must(gradus(&["toy", "sort3", "--rows", "24"]));
    std::fs::write(folder.join("toy.jsonl"), rows).unwrap();
    let (model, phases) = (golden(), format!("phases={phases}"));
    let mut command = gradus(&["train", "--model", &model, "--data", "toy.jsonl"]);
    command.current_dir(folder).args(["--reward", "exact", "--out", "runs", "--set", &phases]);
    let sets = [
        "sft.epochs=4",
        "sft.learning_rate=1e-2",
        "sft.packing=64",
        "quantize.blocksize=64",
        "lora.rank=4",
        "rl.max_new_tokens=4",
        "eval.max_prompts=4",
        "threads=1",
    ];
    for set in read_of(&sets, &["model.path=x", "data.path=y", &phases]) {
        command.args(["--set", &set]);
    }
    must(command);
    let run = latest(&folder.join("runs"));
    let (_, rows) = outcome(&run);
    let loss = |row: usize| rows[row]["loss"].as_f64().unwrap();
    assert!(loss(rows.len() - 1) < 0.8 * loss(0), "{} {}", loss(0), loss(rows.len() - 1));
    run
}

/// What `gradus eval` says of a run, or of a model.
fn accuracy(folder: &Path, of: &[&str]) -> String {
    let mut command: Command = gradus(&[&["eval", "--temperature", "0"], of].concat());
    command.current_dir(folder);
    let said = must(command);
    said.lines().find(|line| line.contains("accuracy")).unwrap().to_string()
}

const ASKED: [&str; 10] = [
    "--data",
    "toy.jsonl",
    "--reward",
    "exact",
    "--set",
    "data.heldout_share=0.1",
    "--set",
    "eval.max_prompts=4",
    "--set",
    "rl.max_new_tokens=4",
];

#[test]
fn qlora_on_a_file_leaves_an_adapter_for_peft() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), "quantize,sft");
    let (run, adapter) = (run.to_string_lossy().into_owned(), run.join("adapter"));
    let config = std::fs::read(adapter.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["peft_type"], &config["task_type"]), (&"LORA".into(), &"CAUSAL_LM".into()));
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(4), Some(32.0)));
    assert_eq!(config["base_model_name_or_path"], golden());
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
    // Scored on the 4-bit weights that it was learned on.
    let adapter = adapter.to_string_lossy().into_owned();
    let model = ["--model", &golden(), "--adapter", &adapter, "--set", "quantize.type=nf4"];
    let own = accuracy(folder.path(), &["--run", &run]);
    assert_eq!(accuracy(folder.path(), &[&model[..], &ASKED].concat()), own);
}

#[test]
fn sft_of_all_weights_leaves_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), "sft");
    let (run, model) = (run.to_string_lossy().into_owned(), run.join("model"));
    assert!(!Path::new(&run).join("adapter").exists());
    let model = model.to_string_lossy().into_owned();
    let own = accuracy(folder.path(), &["--run", &run]);
    assert_eq!(accuracy(folder.path(), &[&["--model", &model][..], &ASKED].concat()), own);
}
