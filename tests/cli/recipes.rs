//! Recipes on the command line: what lists them, where they lie among the settings, what a run keeps.

#![cfg(feature = "hf")]

use std::fs;

use super::runs::{gradus, latest, must, text};
use gradus_rft::recipes;
use serde_json::Value;

#[test]
fn recipes_are_listed_and_printed() {
    let listed = must(gradus(&["recipes"]));
    for recipe in recipes::ALL {
        assert!(listed.contains(&format!("\n{}", recipe.name)) || listed.starts_with(recipe.name));
        assert_eq!(must(gradus(&["recipes", recipe.name])), recipe.text);
    }
    for arguments in [
        &["recipes", "grop"][..],
        &["config", "--recipe", "grop"],
        &["config", "--set", "recipe=grop"],
    ] {
        let output = gradus(arguments).output().unwrap();
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(shown.contains("`grop` is not one of ace, "), "{shown}");
        assert!(shown.contains("; did you mean grpo?"), "{shown}");
        assert!(shown.contains("hint: gradus recipes lists the recipes"), "{shown}");
    }
    let both = ["config", "--recipe", "grpo", "--set", "recipe=ats"];
    let output = gradus(&both).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// Defaults, recipe, file, command line: what is later in this list wins, wherever it is written.
#[test]
fn a_recipe_lies_under_all_that_a_user_sets() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let plain = write("plain.toml", "[rl]\nprompts = 3\ngroup = 5\n");
    let named = write("named.toml", "recipe = \"grpo\"\n[rl]\nprompts = 3\ngroup = 5\n");
    // A recipe that begins with 4-bit weights wants a model, or a word about a fresh one.
    let shown = |arguments: &[&str]| {
        must(gradus(&[&["config", "--set", "model.ffn=288"], arguments].concat()))
    };
    let want = shown(&["--recipe", "grpo", "--config", &plain, "--set", "rl.group=2"]);
    for key in ["recipe = \"grpo\"", "beta = 0.04", "prompts = 3", "group = 2", "hidden = 96"] {
        assert!(want.lines().any(|line| line == key), "{key}: {want}");
    }
    for same in [
        &["--set", "rl.group=2", "--set", "recipe=grpo", "--config", &plain][..],
        &["--config", &named, "--set", "rl.group=2"],
        &["--config", &named, "--set", "rl.group=2", "--recipe", "grpo"],
    ] {
        assert_eq!(shown(same), want, "{same:?}");
    }
    let without = shown(&["--config", &named, "--set", "recipe="]);
    assert_eq!(without, shown(&["--config", &plain]));
    let on_disk = must(gradus(&["config", "--recipe", "grpo", "--model", "anywhere"]));
    assert!(on_disk.contains("\ngroup = 64\n") && on_disk.contains("\nsteps = 200\n"), "{on_disk}");
    let explained = shown(&["--explain", "--config", &named, "--set", "rl.group=2"]);
    let line = |key: &str| {
        let found = explained.lines().find(|line| line.starts_with(&format!("{key} = ")));
        found.unwrap_or_default().to_string()
    };
    for (key, end) in [
        ("rl.group", "[user]"),
        ("rl.prompts", "[user]"),
        ("recipe", "[user]"),
        ("rl.beta", "[recipe grpo]"),
        ("rl.top_p", "[TRL: 1.0]"),
    ] {
        assert!(line(key).ends_with(end), "{key}: {}", line(key));
    }
}

#[test]
fn a_run_says_which_recipe_it_is_of_and_goes_on_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let train = |more: &[&str]| {
        let mut command = gradus(&["train", "--out", out, "--recipe", "grpo", "--resume", "auto"]);
        for set in [
            "model.hidden=16",
            "model.layers=1",
            "model.heads=2",
            "model.kv_heads=2",
            "model.head_dim=8",
            "model.ffn=16",
            "lora.rank=2",
            "rl.steps=2",
            "rl.prompts=2",
            "rl.group=2",
            "eval.max_prompts=2",
        ] {
            command.args(["--set", set]);
        }
        command.args(more);
        must(command)
    };
    train(&[]);
    let run = latest(folder.path());
    let summary: Value =
        serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["recipe"], "grpo");
    let kept = fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(kept.contains("recipe = \"grpo\"\n") && kept.contains("\nbeta = 0.04\n"), "{kept}");
    assert!(train(&[]).contains("resuming"), "the same recipe");
    assert_eq!(latest(folder.path()), run);
    let other = train(&["--set", "rl.beta=0.0"]);
    assert!(other.contains("rl.beta was 0.04, is 0.0; a new run begins"), "{other}");
    assert!(must(gradus(&["eval", "--run", run.to_str().unwrap()])).contains("accuracy"));
}

/// Supervised fine-tuning alone asks no reward; without one there is no score, and an adapter all the same.
#[test]
fn qlora_teaches_an_adapter_on_rows_alone() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    let row = |i: usize| format!("{{\"prompt\":\"{i}+1=\",\"completion\":\"{}\"}}\n", i + 1);
    fs::write(&rows, (0..24).map(row).collect::<String>()).unwrap();
    let model = crate::common::root().join("tests/golden/models/llama");
    let out = folder.path().join("runs");
    let train = |rate: &str| {
        let mut command = gradus(&["train", "--recipe", "qlora", "--set", rate]);
        command.arg("--model").arg(&model).arg("--data").arg(&rows).arg("--out").arg(&out);
        for set in [
            "lora.rank=4",
            "sft.batch=8",
            "sft.warmup_steps=1",
            "rl.max_new_tokens=2",
            "eval.max_prompts=1",
        ] {
            command.args(["--set", set]);
        }
        must(command);
        let metrics = fs::read_to_string(latest(&out).join("metrics.jsonl")).unwrap();
        let loss =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
        metrics.lines().map(loss).collect::<Vec<f64>>()
    };
    let (still, taught) = (train("sft.learning_rate=0"), train("sft.learning_rate=3e-2"));
    assert_eq!(still[0], taught[0], "fresh adapters change nothing");
    let last = still.len() - 1;
    assert!(taught[last] < 0.8 * still[last], "{taught:?} {still:?}");
    let run = latest(&out);
    let summary: Value =
        serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert!(summary["final_accuracy"].is_null(), "{summary}");
    let adapter = fs::read(run.join("adapter/adapter_config.json")).unwrap();
    let adapter: Value = serde_json::from_slice(&adapter).unwrap();
    let (rank, alpha) = (adapter["r"].as_u64(), adapter["lora_alpha"].as_f64());
    assert_eq!((rank, alpha), (Some(4), Some(16.0)), "{adapter}");
}
