//! What runs leave and find: names, locks, what a run goes on with and what it refuses to, and
//! whether what is exported is what was scored.
#![cfg(feature = "hf")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::runs::{gradus, latest, must, outcome, read_of, text};
use serde_json::{Value, json};

/// A run of the demo's task that takes no time.
const TINY: &[&str] = &[
    "model.hidden=16",
    "model.heads=2",
    "model.kv_heads=2",
    "model.head_dim=8",
    "model.ffn=16",
    "model.layers=1",
    "sft.demos=8",
    "sft.batch=8",
    "sft.epochs=1",
    "rl.steps=2",
    "rl.prompts=2",
    "rl.group=2",
    "lora.rank=2",
    "eval.max_prompts=2",
    "eval.samples=1",
    "checkpoint.every=1",
    "threads=1",
];

fn with(mut command: Command, sets: &[&str]) -> Command {
    for set in sets {
        command.args(["--set", set]);
    }
    command
}

fn tiny(out: &Path, extra: &[&str]) -> Command {
    let mut command = with(gradus(&["train", "--out", out.to_str().unwrap()]), TINY);
    command.args(extra);
    command
}

/// Fails with `code`, one line of error and `says`.
fn refused(mut command: Command, code: i32, says: &[&str]) {
    let output = command.output().unwrap();
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(code), "{shown}");
    let error = shown.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    for part in says {
        assert!(error.contains(part), "{part}: {shown}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().flatten().map(name).collect();
    names.sort();
    names
}

/// Waits for a step of the run, so that it is under way.
fn under_way(out: &Path) {
    let begun = Instant::now();
    while fs::read_to_string(out.join("latest/metrics.jsonl")).is_ok_and(|rows| rows.is_empty())
        || !out.join("latest/metrics.jsonl").exists()
    {
        assert!(begun.elapsed() < Duration::from_secs(60), "no step was made");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that is killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn names_stay_in_the_output_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    let long = "x".repeat(129);
    for (name, says) in [
        ("../../x", "begins with a dot"),
        ("..", "begins with a dot"),
        (".hidden", "begins with a dot"),
        ("a/../../b", "more than the name of a folder"),
        ("/tmp/x", "more than the name of a folder"),
        ("a\\b", "more than the name of a folder"),
        ("two\nlines", "control characters"),
        ("\u{1b}[2J", "control characters"),
        ("", "is empty"),
        (long.as_str(), "longer than 128"),
    ] {
        let mut command = tiny(&out, &[]);
        command.args(["--set", &format!("name={name}")]);
        let output = command.output().unwrap();
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(2), "{name:?}: {shown}");
        assert!(shown.contains("`name`") && shown.contains(says), "{name:?}: {shown}");
        assert!(!shown.contains('\u{1b}') && !out.exists(), "{name:?}: {shown}");
    }
}

#[test]
fn a_latest_that_no_run_made_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    for resume in [&[][..], &["--resume", "auto"]] {
        for content in [None, Some("mine")] {
            let out = tempfile::tempdir_in(folder.path()).unwrap();
            let latest = out.path().join("latest");
            match content {
                None => fs::create_dir(&latest).unwrap(),
                Some(text) => fs::write(&latest, text).unwrap(),
            }
            refused(tiny(out.path(), resume), 2, &["`out`", "latest is not a link"]);
            assert_eq!(names(out.path()), ["latest"]);
        }
    }
}

/// What a killed process left, whatever its number was, neither stops a run nor stays.
#[cfg(unix)]
#[test]
fn what_killed_starts_left_is_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    must(tiny(&out, &[]));
    let first = latest(&out);
    for pid in 1..4 {
        std::os::unix::fs::symlink("gone", out.join(format!(".latest.tmp-{pid}"))).unwrap();
        let half = out.join(format!(".demo-s0-1.tmp-{pid}"));
        fs::create_dir(&half).unwrap();
        fs::write(half.join("config.toml"), "").unwrap();
    }
    // A run folder whose process was killed before `latest` pointed at it.
    let never = out.join("demo-s0-2");
    fs::create_dir(&never).unwrap();
    for name in [".lock", "config.toml", "run.json"] {
        fs::copy(first.join(name), never.join(name)).unwrap();
    }
    // Not ours.
    fs::create_dir(out.join(".notes.tmp-x")).unwrap();
    fs::create_dir(out.join("notes")).unwrap();
    must(tiny(&out, &[]));
    let own = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut want = vec![".notes.tmp-x".into(), "latest".into(), "notes".into()];
    want.extend([own(first), own(latest(&out))]);
    want.sort();
    assert_eq!(names(&out), want);
}

#[test]
fn two_processes_do_not_write_to_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    let long = ["--set", "rl.steps=1000000"];
    let running = Running(tiny(&out, &long).spawn().unwrap());
    under_way(&out);
    let run = latest(&out);
    let holder = format!("process {} writes to this run", running.0.id());
    let auto = [&long[..], &["--resume", "auto"]].concat();
    refused(tiny(&out, &auto), 3, &[&holder, run.to_str().unwrap()]);
    let named = [&long[..], &["--resume", run.to_str().unwrap()]].concat();
    refused(tiny(&out, &named), 3, &[&holder]);
    // Others are free to begin beside it, and it can be looked at.
    must(tiny(&out, &["--resume", "auto"]));
    assert_ne!(latest(&out), run);
    drop(running);
    let rows = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let global = |row: &str| serde_json::from_str::<Value>(row).unwrap()["global"].as_u64();
    let rows: Vec<_> = rows.lines().filter(|row| row.ends_with('}')).map(global).collect();
    assert!(rows.iter().enumerate().all(|(i, &row)| row == Some(i as u64)), "{rows:?}");
}

#[test]
fn a_run_whose_folder_is_removed_fails() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    let mut running = Running(tiny(&out, &["--set", "rl.steps=1000000"]).spawn().unwrap());
    under_way(&out);
    fs::rename(latest(&out), folder.path().join("moved")).unwrap();
    let status = running.0.wait().unwrap();
    let mut error = String::new();
    std::io::Read::read_to_string(running.0.stderr.as_mut().unwrap(), &mut error).unwrap();
    assert_eq!(status.code(), Some(3), "{error}");
    assert!(error.contains("removed or replaced while the run went on"), "{error}");
    assert_eq!(names(&out), ["latest"], "nothing was made anew");
}

/// The run failed; nobody used it wrongly.
#[test]
fn a_run_that_diverges_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [
        "phases=sft,sft",
        "sft.learning_rate=1000",
        "sft.weight_decay=1000",
        "sft.epochs=40",
        "sft.lr_schedule=constant",
        "sft.warmup_steps=0",
    ];
    let out = folder.path().join("runs");
    let small = read_of(TINY, &sets);
    let small: Vec<&str> = small.iter().map(String::as_str).chain(sets).collect();
    let command = gradus(&["train", "--out", out.to_str().unwrap()]);
    refused(with(command, &small), 1, &["training stopped"]);
}

#[test]
fn what_changes_no_result_does_not_begin_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    must(tiny(&out, &[]));
    let run = latest(&out);
    let want = outcome(&run);
    for set in ["threads=2", "rl.slots=1", "name=other", "checkpoint.every=7", "checkpoint.keep=1"]
    {
        must(tiny(&out, &["--resume", "auto", "--set", set]));
        assert_eq!((latest(&out), outcome(&run)), (run.clone(), want.clone()), "{set}");
    }
    // And none of them does in a run from the beginning.
    let other = folder.path().join("other");
    must(tiny(&other, &["--set", "rl.slots=1"]));
    assert_eq!(outcome(&latest(&other)), want);
    // What does is named with both values.
    let named = ["--resume", run.to_str().unwrap(), "--set", "rl.steps=3", "--seed", "4"];
    refused(tiny(&out, &named), 3, &["other settings", "rl.steps was 2, is 3", "seed was 0, is 4"]);
    let shown = must(tiny(&out, &["--resume", "auto", "--set", "rl.steps=3"]));
    assert!(shown.contains("rl.steps was 2, is 3; a new run begins"), "{shown}");
    assert_ne!(latest(&out), run);
}

/// A damaged file of a run is an error, not the beginning of another one.
#[test]
fn a_damaged_run_is_not_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    must(tiny(&out, &["--set", "checkpoint.keep=2"]));
    let run = latest(&out);
    let checkpoints: Vec<PathBuf> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(checkpoints.len(), 2);
    let flipped = |path: &Path, from: &str| {
        let text = fs::read_to_string(path).unwrap();
        let at = text.find(from).unwrap() + from.len();
        let mut bytes = text.into_bytes();
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        fs::write(path, bytes).unwrap();
    };
    let resumed = || tiny(&out, &["--resume", "auto", "--set", "checkpoint.keep=2"]);
    let kept: Vec<Vec<u8>> =
        checkpoints.iter().map(|c| fs::read(c.join("manifest.json")).unwrap()).collect();
    for checkpoint in &checkpoints {
        flipped(&checkpoint.join("manifest.json"), "\"fingerprint\": \"");
    }
    refused(resumed(), 3, &["no checkpoint of this run can be read"]);
    for (checkpoint, manifest) in checkpoints.iter().zip(&kept) {
        fs::write(checkpoint.join("manifest.json"), manifest).unwrap();
    }
    must(resumed());
    let identity = fs::read(run.join("run.json")).unwrap();
    flipped(&run.join("run.json"), "\"sha256\": \"");
    refused(resumed(), 3, &["run.json", "damaged"]);
    fs::write(
        run.join("run.json"),
        String::from_utf8(identity).unwrap().replace("steps = 2", "steps = 3"),
    )
    .unwrap();
    refused(resumed(), 3, &["run.json", "damaged"]);
    fs::write(run.join("run.json"), "{").unwrap();
    refused(resumed(), 3, &["run.json", "damaged"]);
    fs::remove_file(run.join("run.json")).unwrap();
    refused(resumed(), 3, &["not a run folder"]);
    assert_eq!(names(&out).len(), 2, "{:?}", names(&out));
}

/// The newest checkpoint is damaged: the run goes on from the one before, and removes neither it nor
/// what it writes then.
#[test]
fn a_damaged_checkpoint_does_not_push_good_ones_out() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    let keep = |n: &str| format!("checkpoint.keep={n}");
    must(tiny(&out, &["--set", &keep("9")]));
    let run = latest(&out);
    let want = outcome(&run);
    let newest = fs::read_to_string(run.join("checkpoints/LATEST")).unwrap();
    let checkpoints = names(&run.join("checkpoints"));
    for name in checkpoints.iter().filter(|name| name.starts_with('0')).skip(1) {
        fs::write(run.join("checkpoints").join(name).join("state.safetensors"), "x").unwrap();
    }
    let shown = must(tiny(&out, &["--resume", "auto", "--set", &keep("1")]));
    assert!(shown.contains("passed over"), "{shown}");
    assert_eq!(outcome(&run), want);
    assert_eq!(names(&run.join("checkpoints")), [newest.as_str(), "LATEST"]);
}

/// Rows whose answers are known, for a model from disk.
struct Rows {
    folder: tempfile::TempDir,
}

/// Sizes of what runs and evaluations ask.
const ASKED: &[&str] =
    &["rl.max_new_tokens=4", "eval.max_prompts=16", "eval.samples=4", "data.heldout_share=0.3"];

impl Rows {
    fn new() -> Rows {
        let rows = Rows { folder: tempfile::tempdir().unwrap() };
        fs::write(rows.data(), Rows::text(0)).unwrap();
        rows
    }

    /// Sums, and `extra` more of them.
    fn text(extra: usize) -> String {
        let row = |i: usize| {
            let (a, b) = (i % 10, i / 10);
            let sum = (a + b).to_string();
            json!({"prompt": format!("{a}+{b}="), "completion": sum, "answer": sum}).to_string()
        };
        (0..60 + extra).map(|i| row(i) + "\n").collect()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("rows.jsonl")
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("runs")
    }

    /// `gradus`, then `what`, about the folder `model` and these rows.
    /// The command `what` on a model and these rows.
    fn command(&self, what: &[&str], model: &Path) -> Command {
        let mut command = gradus(what);
        command.arg("--model").arg(model).arg("--data").arg(self.data());
        command.current_dir(self.folder.path());
        command
    }

    fn train(&self, model: &Path, sets: &[&str]) -> Command {
        let all = [
            "threads=1",
            "sft.batch=16",
            "sft.learning_rate=1e-3",
            "rl.prompts=2",
            "rl.group=2",
            "rl.learning_rate=2e-3",
            "lora.rank=2",
        ];
        let all = [&all[..], ASKED].concat();
        let read = read_of(&all, &[&["model.path=x", "data.path=y"], sets].concat());
        let read: Vec<&str> = read.iter().map(String::as_str).collect();
        let mut command = with(with(self.command(&["train"], model), &read), sets);
        command.arg("--out").arg(self.out());
        command
    }
}

fn golden(name: &str) -> PathBuf {
    crate::common::root().join("tests/golden/models").join(name)
}

fn summary(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap()
}

/// What a run says of itself is what its files say: the adapter on the base that it names, the model
/// where there is no adapter.
#[test]
fn what_is_exported_scores_what_the_run_scored() {
    // The share of even bytes: a score that a model of random weights has, too.
    let program = "import json, sys\nfor line in sys.stdin:\n    s = json.loads(line)\n    \
                   c = s['completion'].encode()\n    score = sum(b % 2 == 0 for b in c) / max(len(c), 1)\n    \
                   print(json.dumps({'id': s['id'], 'score': score}), flush=True)\n";
    let reward = ["--reward", "cmd:python3 even.py"];
    for (name, phases, adapter, model) in [
        ("llama", "sft,quantize,rl", true, true),
        ("qwen3", "sft,rl", false, true),
        ("qwen2", "rl,quantize", true, true),
        ("llama", "quantize,sft", true, false),
        ("qwen2_5_vl", "sft,rl", false, true),
        ("qwen2_5_vl-flat", "sft,quantize,rl", true, true),
    ] {
        let rows = Rows::new();
        fs::write(rows.folder.path().join("even.py"), program).unwrap();
        let phases_set = format!("phases={phases}");
        let sets = ["sft.demos=16", "sft.epochs=2", "rl.steps=2"];
        let sets = read_of(&sets, &["model.path=x", "data.path=y", &phases_set]);
        let sets: Vec<&str> = sets.iter().map(String::as_str).chain([&*phases_set]).collect();
        let mut run = rows.train(&golden(name), &sets);
        run.args(reward);
        must(run);
        let run = latest(&rows.out());
        let figures = summary(&run);
        assert_eq!(run.join("adapter").exists(), adapter, "{phases}");
        assert_eq!(run.join("model").exists(), model, "{phases}");
        assert_eq!(figures["adapter"] != "", adapter, "{figures}");
        assert_eq!(figures["exported_model"] != "", model, "{figures}");
        let mut arguments = vec!["eval".to_string()];
        let mut base = run.join("model");
        if adapter {
            let folder = run.join("adapter");
            let config = fs::read(folder.join("adapter_config.json")).unwrap();
            let config: Value = serde_json::from_slice(&config).unwrap();
            base = config["base_model_name_or_path"].as_str().unwrap().into();
            arguments.extend(["--adapter".into(), folder.display().to_string()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        // Dense weights stay dense, as they were when the run scored them.
        let dense = if adapter { "quantize.type=nf4" } else { "quantize.type=none" };
        let mut scored = with(with(rows.command(&arguments, &base), ASKED), &[dense]);
        scored.args(reward);
        let scored = must(scored);
        let want = figures["final_accuracy"].as_f64().unwrap();
        assert!(want > 0.0 && want < 1.0, "a score that tells nothing: {figures}");
        let line = scored.lines().find(|line| line.starts_with("accuracy ")).unwrap();
        assert!(line.starts_with(&format!("accuracy {want:.4} ")), "{phases}: {line}, run {want}");
    }
}

/// A phase that runs again has prompts and draws of its own; the first has those it always had.
#[test]
fn a_repeated_phase_does_not_replay_itself() {
    let rows = Rows::new();
    let tokens = |phases: &str, steps: &str| -> Vec<(String, u64)> {
        let sets = [phases, steps, "rl.control=zero_lr", "rl.prompts=4", "rl.max_new_tokens=12"];
        let mut run = rows.train(&golden("llama"), &sets);
        run.args(["--reward", "format:^1.*"]);
        must(run);
        let row = |line: &str| -> (String, u64) {
            let row: Value = serde_json::from_str(line).unwrap();
            let (phase, mean) = (&row["phase"], row["completions/mean_length"].as_f64().unwrap());
            let lengths = (mean * 8.0) as u64 * 1000 + row["num_tokens"].as_f64().unwrap() as u64;
            (phase.as_str().unwrap().into(), lengths)
        };
        let metrics = fs::read_to_string(latest(&rows.out()).join("metrics.jsonl")).unwrap();
        metrics.lines().map(row).collect()
    };
    // Nothing moves, so that one long phase draws what two short ones draw.
    let once = tokens("phases=quantize,rl", "rl.steps=8");
    let twice = tokens("phases=quantize,rl,rl", "rl.steps=4");
    assert_eq!(twice, once);
    assert_ne!(once[..4], once[4..], "{once:?}");
}

/// Data, template, tokenizer and reward that changed in place are refused by name; what the run has
/// stays as it was.
#[test]
fn a_run_does_not_go_on_with_other_files() {
    let rows = Rows::new();
    let model = rows.folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden("llama").join(file), model.join(file)).unwrap();
    }
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    let script = rows.folder.path().join("reward.py");
    let program = "import json, sys\nfor line in sys.stdin:\n    s = json.loads(line)\n    \
                   print(json.dumps({'id': s['id'], 'score': len(s['completion']) % 2}), flush=True)\n";
    fs::write(&script, program).unwrap();
    let resumed = |auto: bool| {
        let mut command = rows.train(&model, &["rl.steps=2"]);
        command.args(["--reward", "cmd:python3 reward.py"]);
        command.args(if auto { &["--resume", "auto"][..] } else { &[] });
        command
    };
    must(resumed(false));
    let run = latest(&rows.out());
    let before = (outcome(&run), names(&rows.out()));
    for (path, content, says) in [
        (rows.data(), Rows::text(1), "data.path: "),
        (
            model.join("chat_template.jinja"),
            format!("{template}\n"),
            "chat_template.jinja holds other bytes",
        ),
        (script, format!("{program}\n"), "reward.functions: reward.py holds other bytes"),
        (model.join("generation_config.json"), "{}".into(), "generation_config.json is new"),
    ] {
        let kept = fs::read(&path);
        fs::write(&path, content).unwrap();
        refused(resumed(true), 3, &[says, "than when this run began"]);
        assert_eq!((outcome(&run), names(&rows.out())), before, "{says}");
        match kept {
            Ok(bytes) => fs::write(&path, bytes).unwrap(),
            Err(_) => fs::remove_file(&path).unwrap(),
        }
    }
    let shown = must(resumed(true));
    assert!(shown.contains("resuming"), "{shown}");
}
