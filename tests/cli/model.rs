//! Runs on models from disk through the binary: from a golden folder and a file of prompts to an
//! adapter, and every way this can be refused.
#![cfg(feature = "hf")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::runs::{gradus, latest, must, outcome, read_of, text};
use gradus::Device;
use gradus_rft::model::Decoder;
use gradus_rft::pretrained::{Adapter, LoadOptions, Pretrained};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    crate::common::root().join("tests/golden/models").join(name)
}

/// Sums of two digits.
fn sums(folder: &Path) -> PathBuf {
    let path = folder.join("sums.jsonl");
    let row = |i: usize| {
        let (a, b) = (i % 10, i / 10);
        json!({"prompt": format!("{a}+{b}="), "answer": (a + b).to_string()}).to_string() + "\n"
    };
    std::fs::write(&path, (0..100).map(row).collect::<String>()).unwrap();
    path
}

/// A reward that a model of random weights can learn: the share of even bytes, by a command.
fn even(folder: &Path) -> String {
    let path = folder.join("even.py");
    let text = "import json, sys\nfor line in sys.stdin:\n    s = json.loads(line)\n    \
                c = s['completion'].encode()\n    assert s['fields']['answer'].isdigit()\n    \
                score = sum(b % 2 == 0 for b in c) / max(len(c), 1)\n    \
                print(json.dumps({'id': s['id'], 'score': score}), flush=True)\n";
    std::fs::write(&path, text).unwrap();
    format!("cmd:python3 {}", path.display())
}

fn train(folder: &Path, model: &str, extra: &[&str]) -> Command {
    let out = folder.join("runs");
    let mut command = gradus(&["train", "--model", golden(model).to_str().unwrap()]);
    command.args(["--data", sums(folder).to_str().unwrap(), "--reward", &even(folder)]);
    command.args(["--out", out.to_str().unwrap()]);
    let adapter = extra.contains(&"--adapter").then_some("model.adapter=given");
    let more: Vec<&str> = ["model.path=given"].into_iter().chain(adapter).collect();
    let sets = [
        "rl.steps=30",
        "rl.prompts=4",
        "rl.group=8",
        "rl.max_new_tokens=12",
        "rl.learning_rate=4e-3",
        "lora.rank=4",
        "eval.every=15",
        "checkpoint.every=4",
    ];
    for set in read_of(&sets, &more) {
        command.args(["--set", &set]);
    }
    command.args(extra);
    command
}

#[test]
fn a_golden_folder_learns_and_leaves_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let shown = must(train(folder.path(), "qwen3", &[]));
    for part in
        ["memory", "taken for bytes", "held out", "held-out score", "adapter", "gradus merge"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let run = latest(&folder.path().join("runs"));
    let read = |name: &str| std::fs::read(run.join(name)).unwrap();
    let summary: Value = serde_json::from_slice(&read("summary.json")).unwrap();
    let figure = |key: &str| summary[key].as_f64().unwrap();
    assert!(figure("final_accuracy") > figure("quantized_accuracy") + 0.05, "{summary}");
    assert_eq!(figure("first_ratio_max_abs_dev"), 0.0);
    assert!(figure("peak_memory") > 1e6);
    let events = std::fs::read_dir(&run).unwrap().flatten();
    let events = events.filter(|e| e.file_name().to_string_lossy().contains("tfevents"));
    assert_eq!(events.count(), 1);

    // The adapter goes on the base by itself, and the checkpoint holds no base weights.
    let mut model: Decoder = Pretrained::open(&golden("qwen3"))
        .unwrap()
        .load(Device::Cpu, &LoadOptions::default())
        .unwrap();
    Adapter::load(&run.join("adapter")).unwrap().attach(&mut model).unwrap();
    let newest = String::from_utf8(read("checkpoints/LATEST")).unwrap();
    let state = run.join("checkpoints").join(newest).join("state.safetensors");
    let state = gradus_rft::io::tensor_file::TensorFile::open(&state).unwrap();
    assert!(state.tensors().keys().all(|k| k.contains(".lora_") || k == "adam/t"));

    let run = run.to_str().unwrap();
    let scored = must(gradus(&["eval", "--run", run]));
    assert!(scored.contains(&format!("{:.4}", figure("final_accuracy"))), "{scored}: {summary}");
    let asked = must(gradus(&["sample", "--run", run, "--prompt", "3+4=", "-n", "2"]));
    // An answer with a line break stands below its question.
    let of_prompt = |l: &&str| l.trim_start().trim_start_matches("question  ").starts_with("3+4=");
    assert_eq!(asked.lines().filter(of_prompt).count(), 2, "{asked}");

    // A file that is given to an evaluation is scored as a whole.
    let (data, reward) = (sums(folder.path()), even(folder.path()));
    let base = golden("qwen3");
    let adapter = format!("{run}/adapter");
    let given = ["eval", "--model", base.to_str().unwrap(), "--adapter", &adapter, "--data"];
    let given = [&given[..], &[data.to_str().unwrap(), "--reward", &reward]].concat();
    let all = must(gradus(&[&given[..], &["--set", "rl.max_new_tokens=12"]].concat()));
    assert!(all.contains("over 100 completions"), "{all}");

    // And a further run begins where the adapter is.
    let more = train(folder.path(), "qwen3", &["--adapter", &adapter, "--set", "rl.steps=1"]);
    let more = must(more);
    let before: f64 = more.split("4-bit ").nth(1).unwrap()[..5].parse().unwrap();
    assert!((before - figure("final_accuracy")).abs() < 6e-4, "{more}");
}

/// kill -9 at several moments, then --resume auto: state, metrics and adapter are those of the run
/// nobody disturbed, with any number of reward processes.
#[test]
fn a_killed_run_on_a_model_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    std::fs::create_dir(&whole).unwrap();
    let slow = ["--set", "rl.steps=60"];
    must(train(&whole, "llama-bnb-4bit", &slow));
    let cut = folder.path().join("cut");
    std::fs::create_dir(&cut).unwrap();
    let resume = [&slow[..], &["--resume", "auto", "--set", "reward.workers=3"]].concat();
    let mut kills = 0;
    for pause in [150, 300, 450, 600, 800] {
        let mut child = train(&cut, "llama-bnb-4bit", &resume).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        kills += child.try_wait().unwrap().is_none() as usize;
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(kills > 0, "every run ended before it could be killed");
    must(train(&cut, "llama-bnb-4bit", &resume));
    let [want, got] = [&whole, &cut].map(|folder| latest(&folder.join("runs")));
    assert_eq!(outcome(&got), outcome(&want));
    for file in ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"] {
        let read = |run: &Path| std::fs::read(run.join(file)).unwrap();
        assert!(read(&got) == read(&want), "{file}");
    }
}

/// Lines in, answers out, through the model's chat template and without one.
#[test]
fn a_model_can_be_talked_to() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama").join(file), model.join(file)).unwrap();
    }
    let talk = |lines: &str| {
        let arguments = ["sample", "--model", model.to_str().unwrap(), "--chat"];
        let mut command = gradus(&[&arguments[..], &["--set", "rl.max_new_tokens=5"]].concat());
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let plain = talk("3+4=\n3+4=\n/new\n\n3+4=\n");
    assert!(plain.status.success(), "{}", text(&plain));
    let shown = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert_eq!(shown.matches("> ").count(), 6, "{shown}");
    // A template that counts what was said, and refuses a fourth message.
    let template = "{% if messages|length > 3 %}{{ raise_exception('enough') }}{% endif %}\
                    {% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    let refused = talk("a\nb\nc\n");
    assert!(text(&refused).contains("enough") && !refused.status.success(), "{}", text(&refused));
    assert!(talk("a\nb\n/new\na\nb\n").status.success());
    std::fs::write(model.join("chat_template.jinja"), "{% for %}").unwrap();
    assert_eq!(talk("a\n").status.code(), Some(3));
}

/// A run goes on only on the weights it began with.
#[test]
fn other_base_weights_are_refused_at_resume() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let copy = |name: &str| {
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden(name).join(file), model.join(file)).unwrap();
        }
    };
    copy("llama");
    let args = ["--model", model.to_str().unwrap(), "--out", folder.path().to_str().unwrap()];
    let args =
        [&["train"][..], &args, &["--set", "rl.steps=2", "--set", "rl.max_new_tokens=6"]].concat();
    must(gradus(&args));
    copy("llama-bnb-4bit");
    let output = gradus(&[&args[..], &["--resume", "auto"]].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("than when this run began"), "{}", text(&output));
}

/// One line on stderr that names what is wrong, the documented exit code, and no run folder.
#[test]
fn what_cannot_run_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, content: &str| -> String {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_string_lossy().into_owned()
    };
    let empty = at("empty.jsonl", "");
    let twice = at("twice.jsonl", "{\"prompt\": \"a\", \"prompt\": \"b\"}\n");
    let columns = at("columns.jsonl", "{\"text\": \"a\"}\n");
    let formula =
        "{\"prompt\": \"a\", \"answer\": \"5\"}\n{\"prompt\": \"b\", \"answer\": \"5x\"}\n";
    let formula = at("formula.jsonl", formula);
    let llama = golden("llama").to_string_lossy().into_owned();
    let adapter = golden("llama/adapter").to_string_lossy().into_owned();
    let other = golden("qwen3/adapter").to_string_lossy().into_owned();
    let good = sums(folder.path()).to_string_lossy().into_owned();
    let model = |rest: &[&str]| [&["--model", llama.as_str()][..], rest].concat().join("\n");
    for (arguments, code, says) in [
        ("--model\n/nowhere".to_string(), 3, "/nowhere/config.json"),
        (format!("--data\n{good}"), 2, "reward.functions"),
        (model(&["--data", &good]), 2, "reward.functions"),
        (model(&["--data", &empty, "--reward", "numeric"]), 3, "empty.jsonl"),
        (model(&["--data", &twice, "--reward", "numeric"]), 3, "appears twice"),
        (model(&["--data", &columns, "--reward", "numeric"]), 3, "text"),
        (
            model(&["--data", &formula, "--reward", "numeric"]),
            3,
            "row 1: reward: row field `answer` is `5x`",
        ),
        (
            model(&["--data", &columns, "--reward", "iou", "--set", "data.template={text}"]),
            3,
            "row 0: reward: the row has no field `boxes`",
        ),
        (model(&["--data", &good, "--reward", "numerics"]), 2, "numerics"),
        (model(&["--data", &good, "--reward", "cmd:no-such-program"]), 2, "no-such-program"),
        (model(&["--data", &good, "--reward", "numeric", "--set", "data.chat=on"]), 2, "data.chat"),
        (
            model(&["--data", &good, "--reward", "numeric", "--set", "rl.max_new_tokens=300"]),
            2,
            "rl.max_new_tokens",
        ),
        (model(&["--adapter", &other]), 3, "shape"),
        (
            model(&["--adapter", &adapter, "--set", "data.max_prompt_tokens=0"]),
            2,
            "data.max_prompt_tokens",
        ),
    ] {
        let out = folder.path().join("never");
        let mut command = gradus(&["train", "--out", out.to_str().unwrap()]);
        let output = command.args(arguments.lines()).output().unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
        let error = text.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
        assert!(error.contains(says), "{arguments}: {text}");
        assert!(!out.exists(), "{arguments} left files behind");
    }
}

#[test]
fn folders_are_quantized_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (llama, adapter) = (golden("llama"), golden("llama/adapter"));
    let (llama, adapter) = (llama.to_str().unwrap(), adapter.to_str().unwrap());
    let shown = must(gradus(&["quantize", llama, &at("nf4")]));
    assert!(shown.contains("holds at most") && shown.contains("14 weights"), "{shown}");
    must(gradus(&["merge", &at("nf4"), adapter, &at("merged"), "--dtype", "bf16"]));
    must(gradus(&[
        "sample",
        "--model",
        &at("merged"),
        "--prompt",
        "1",
        "-n",
        "1",
        "--set",
        "rl.max_new_tokens=4",
    ]));
    for (arguments, code, says) in [
        (vec!["quantize", llama, &at("nf4")], 2, "not an empty folder"),
        (vec!["quantize", &at("nf4"), &at("x")], 2, "4-bit already"),
        (vec!["quantize", llama, &at("x"), "--type", "int4"], 2, "int4"),
        (vec!["quantize", llama, &at("x"), "--blocksize", "63"], 2, "blocksize"),
        (vec!["merge", llama, llama, &at("x")], 3, "adapter_config.json"),
        (vec!["merge", llama, adapter, &at("x"), "--dtype", "f8"], 2, "f8"),
    ] {
        let output = gradus(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{arguments:?}: {}", text(&output));
        assert!(!folder.path().join("x").exists(), "{arguments:?} left a folder");
    }
}
