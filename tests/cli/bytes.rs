//! Toys as files, and fresh byte models that learn from files.
#![cfg(feature = "hf")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::runs::{gradus, latest, must, outcome, read_of, text};

/// A byte model that takes no time.
const TINY: &[&str] = &[
    "model.hidden=16",
    "model.heads=2",
    "model.kv_heads=2",
    "model.head_dim=8",
    "model.ffn=32",
    "model.layers=1",
    "sft.demos=0",
    "sft.epochs=2",
    "rl.steps=3",
    "rl.prompts=4",
    "rl.group=4",
    "lora.rank=2",
    "eval.max_prompts=8",
    "eval.samples=1",
    "checkpoint.every=1",
    "threads=1",
];

fn toy(path: &Path, arguments: &[&str]) {
    let output = gradus(&[&["toy"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    std::fs::write(path, output.stdout).unwrap();
}

fn train(folder: &Path, out: &str, extra: &[&str]) -> Command {
    let mut command = gradus(&["train", "--data", "toy.jsonl", "--out", out]);
    command.current_dir(folder);
    let more: Vec<&str> =
        extra.iter().copied().filter(|word| word.starts_with("phases=")).collect();
    for set in read_of(TINY, &more) {
        command.args(["--set", &set]);
    }
    command.args(extra);
    command
}

#[test]
fn toys_are_listed_with_their_rewards_and_written_as_lines() {
    let listed = must(gradus(&["toy"]));
    assert!(listed.contains("sort5 ") && listed.contains("--reward 'exact'"), "{listed}");
    let lines = must(gradus(&["toy", "make", "--rows", "3", "--seed", "5"]));
    assert_eq!(lines.lines().count(), 3, "{lines}");
    assert!(lines.starts_with(r#"{"prompt":""#) && lines.contains(r#""completion":""#), "{lines}");
    let output = gradus(&["toy", "sort4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output);
    assert!(said.contains("`sort4` is not one of make, "), "{said}");
    assert!(said.contains("; did you mean sort3 or sort5 or sort7?"), "{said}");
    assert!(said.contains("hint: gradus toy lists"), "{said}");
}

/// Every phase, then questions; killed on the way, the same bits.
#[test]
fn a_byte_model_learns_from_a_file_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    toy(&folder.path().join("toy.jsonl"), &["sort3", "--rows", "300"]);
    let reward = ["--reward", "exact"];
    let shown = must(train(folder.path(), "whole", &reward));
    assert!(shown.contains("data ") && shown.contains(" held out"), "{shown}");
    let run = latest(&folder.path().join("whole"));
    let want = outcome(&run);
    assert!(want.1.last().unwrap()["reward"].is_number(), "{want:?}");
    let exported = |name: &str| run.join(name).to_string_lossy().into_owned();
    let (model, adapter) = (exported("model"), exported("adapter"));
    let curve = std::fs::read_to_string(run.join("curve.svg")).unwrap();
    assert!(curve.contains("toy.jsonl: held-out score"), "{curve}");
    let asked = |arguments: &[&str]| {
        let mut command = gradus(&[arguments, &["--run", run.to_str().unwrap()]].concat());
        command.current_dir(folder.path());
        must(command)
    };
    let accuracy = asked(&["eval", "--temperature", "0"]);
    assert!(accuracy.contains("accuracy"), "{accuracy}");
    // What is left behind is what was scored.
    let left = ["eval", "--model", &model, "--adapter", &adapter, "--data", "toy.jsonl"];
    let sets = ["data.heldout_share=0.1", "eval.max_prompts=8", "rl.max_new_tokens=4"];
    let mut command = gradus(&[&left[..], &["--reward", "exact", "--temperature", "0"]].concat());
    command.current_dir(folder.path());
    for set in sets {
        command.args(["--set", set]);
    }
    let last = |text: &str| text.lines().find(|l| l.contains("accuracy")).unwrap().to_string();
    assert_eq!(last(&must(command)), last(&accuracy));
    assert!(asked(&["sample", "-n", "1"]).contains("log-prob"));
    // No row is behind a prompt of one's own, which may be longer than those of the file.
    let own = asked(&["sample", "-n", "1", "--prompt", "29481>"]);
    assert!(own.contains("29481>") && !own.contains("wrong") && !own.contains("failed"), "{own}");

    killed(folder.path(), &reward);
    assert_eq!(outcome(&latest(&folder.path().join("cut"))), want);
}

/// A run into `cut` that is killed a few times and goes on to its end.
fn killed(folder: &Path, extra: &[&str]) {
    let resumed = [extra, &["--resume", "auto"]].concat();
    let mut kills = 0;
    for pause in [50, 100, 150, 250] {
        let mut child = train(folder, "cut", &resumed).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        kills += child.try_wait().unwrap().is_none() as usize;
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(kills > 0, "every run ended before it could be killed");
    must(train(folder, "cut", &resumed));
}

/// What one run wrote is the teacher of another, of another width; nobody names a reward.
#[test]
fn a_byte_model_teaches_another() {
    let folder = tempfile::tempdir().unwrap();
    toy(&folder.path().join("toy.jsonl"), &["sort3", "--rows", "300"]);
    let taught = ["--reward", "exact", "--set", "phases=sft", "--set", "sft.epochs=6"];
    must(train(folder.path(), "first", &taught));
    let teacher = latest(&folder.path().join("first")).join("model");
    let teacher = format!("distill.teacher={}", teacher.display());
    let sets = ["phases=distill", &teacher, "rl.steps=30", "model.hidden=24"];
    let sets: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    must(train(folder.path(), "whole", &sets));
    let want = outcome(&latest(&folder.path().join("whole")));
    let loss = |rows: &[_]| -> f64 {
        let loss = |row: &std::collections::BTreeMap<String, serde_json::Value>| {
            row["loss"].as_f64().unwrap()
        };
        rows.iter().map(loss).sum()
    };
    let (first, last) = (loss(&want.1[..5]), loss(&want.1[25..]));
    assert!(last < 0.8 * first, "{first} {last}");
    killed(folder.path(), &sets);
    assert_eq!(outcome(&latest(&folder.path().join("cut"))), want);
}

#[test]
fn what_a_file_lacks_is_said_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("toy.jsonl");
    let rows = (0..20).map(|row| format!("{{\"prompt\": \"{row}?\"}}\n"));
    std::fs::write(&data, rows.collect::<String>()).unwrap();
    let refused = |extra: &[&str], says: &str| {
        let output = train(folder.path(), "runs", extra).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(says), "{says}: {}", text(&output));
        assert!(!folder.path().join("runs").exists());
    };
    refused(&[], "say how completions of data.path are scored");
    let arm = ["--reward", "format:^a$"];
    refused(&arm, "need an answer in every row");
    refused(&[&arm[..], &["--set", "data.chat=on"]].concat(), "the model has no chat template");
    refused(&["--set", "model.adapter=x"], "belongs to a model from disk");
    std::fs::write(&data, "{\"prompt\": \"0?\", \"completion\": 5}\n".repeat(20)).unwrap();
    refused(&arm, "the first of them has `completion` 5, expected a text or messages");
}
