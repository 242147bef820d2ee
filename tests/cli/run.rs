//! Whole runs through the binary: what they write, how they resume, how they fail.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::runs::{gradus, latest, must, outcome, text};

use serde_json::Value;

/// A run small enough for a test: every phase, a few seconds.
const SMALL: &[&str] = &[
    "model.hidden=32",
    "model.heads=2",
    "model.kv_heads=2",
    "model.head_dim=16",
    "model.ffn=64",
    "sft.demos=256",
    "sft.epochs=2",
    "rl.steps=8",
    "rl.prompts=8",
    "rl.group=4",
    "rl.micro_batch=8",
    "lora.rank=4",
    "eval.max_prompts=16",
    "eval.samples=1",
    "eval.every=4",
    "checkpoint.every=3",
    "checkpoint.keep=3",
];

fn train(out: &Path, extra: &[&str]) -> Command {
    let mut command = gradus(&["train", "--out", out.to_str().unwrap()]);
    SMALL.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command.args(extra);
    command
}

#[test]
fn scores_are_shown_in_the_order_in_which_they_were_taken() {
    let cases: [(&str, &[&str], &str); 3] = [
        (
            "quantize,sft,rl",
            &["as_it_was", "quantized", "sft", "end"],
            "the model that RL began with",
        ),
        ("sft,quantize,more", &["as_it_was", "sft", "quantized", "sft"], "the 4-bit model"),
        ("sft", &["as_it_was", "sft"], "the model as it was"),
    ];
    let model = ["hidden=32", "heads=2", "kv_heads=2", "head_dim=16", "ffn=64"];
    let sizes =
        ["sft.demos=64", "sft.epochs=1", "rl.steps=2", "rl.prompts=4", "eval.max_prompts=16"];
    for (phases, want, compared) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut command = gradus(&["train", "--out", folder.path().to_str().unwrap()]);
        let mut set = |setting: String| {
            command.args(["--set", &setting]);
        };
        set(format!("phases={phases}"));
        model.iter().for_each(|key| set(format!("model.{key}")));
        let read = |size: &&&str| phases.contains("rl") || !size.starts_with("rl.");
        sizes.iter().filter(read).for_each(|size| set(size.to_string()));
        if phases.contains("more") {
            set("phase.more.kind=sft".into());
        }
        let shown = must(command);
        let text = std::fs::read(latest(folder.path()).join("summary.json")).unwrap();
        let summary: Value = serde_json::from_slice(&text).unwrap();
        let stages: Vec<&Value> = summary["stages"].as_array().unwrap().iter().collect();
        let models: Vec<&str> = stages.iter().map(|s| s["model"].as_str().unwrap()).collect();
        assert_eq!(models, want, "{phases}");
        assert_eq!(stages.last().unwrap()["score"], summary["final_accuracy"]);
        assert!(
            shown.contains(&format!("from {compared}"))
                || shown.contains(&format!("over {compared}")),
            "{shown}"
        );
    }
}

#[test]
fn a_run_writes_what_it_promises() {
    let folder = tempfile::tempdir().unwrap();
    let shown = must(train(folder.path(), &[]));
    assert!(shown.contains("held-out score   untrained"), "{shown}");
    let run = latest(folder.path());
    for file in ["config.toml", "metrics.jsonl", "metrics.csv", "curve.svg", "summary.json"] {
        assert!(run.join(file).metadata().unwrap().len() > 0, "{file}");
    }
    let summary: Value =
        serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap();
    for key in [
        "seed",
        "base_accuracy",
        "sft_accuracy",
        "final_accuracy",
        "train_seconds",
        "rollout_tokens_per_second",
        "first_ratio_max_abs_dev",
    ] {
        assert!(summary[key].is_number(), "{key}: {summary}");
    }
    assert_eq!(summary["first_ratio_max_abs_dev"], 0.0, "on-policy is bitwise on-policy");
    let (_, rows) = outcome(&run);
    assert_eq!(rows.len(), 8 + 8, "8 SFT steps, 8 RL steps");
    let last = rows.last().unwrap();
    for key in ["reward", "reward_std", "frac_reward_zero_std", "loss", "grad_norm"] {
        assert!(last[key].is_number(), "{key}");
    }
    // Means over the update's tokens; null where every group was degenerate.
    for key in ["kl", "entropy", "clip_ratio/region_mean"] {
        assert!(last.contains_key(key), "{key}");
    }
    let csv = std::fs::read_to_string(run.join("metrics.csv")).unwrap();
    let columns = csv.lines().next().unwrap().split(',').count();
    assert!(csv.lines().count() == 17 && csv.lines().all(|l| l.split(',').count() == columns));
    let folder = run.to_str().unwrap();
    assert!(must(gradus(&["eval", "--run", folder])).contains("accuracy"));
    for given in [["--data", "rows.jsonl"], ["--reward", "exact"], ["--set", "rl.top_k=3"]] {
        let arguments = ["eval", "--run", folder, given[0], given[1]];
        let output = gradus(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("goes with --model"), "{said}");
    }
    let drawn = must(gradus(&["sample", "--run", folder, "--prompt", "374=10:", "-n", "2"]));
    assert_eq!(drawn.lines().filter(|line| line.starts_with("374=10:")).count(), 2, "{drawn}");
}

/// Threads change no bit of a run; a seed does.
#[test]
fn a_run_is_a_function_of_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, extra: &[&str]| {
        let out = folder.path().join(name);
        must(train(&out, extra));
        outcome(&latest(&out))
    };
    let one = run("one", &["--set", "threads=1"]);
    assert_eq!(one, run("three", &["--set", "threads=3"]));
    assert_ne!(one.0, run("other", &["--seed", "1"]).0);
}

/// kill -9 at several moments, then --resume auto: the final state and the metrics are those of the
/// run nobody disturbed. PPO with a critic, so that every phase is crossed.
#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let every_phase = [
        "--set",
        "phases=sft,quantize,collect,value_fit,rl",
        "--set",
        "rl.advantage=gae",
        "--set",
        "value.fit_steps=5",
        "--set",
        "value.collect_steps=2",
    ];
    let whole = folder.path().join("whole");
    must(train(&whole, &every_phase));
    let want = outcome(&latest(&whole));
    let cut = folder.path().join("cut");
    let mut resumes = vec!["--resume", "auto"];
    resumes.extend(every_phase);
    let mut kills = 0;
    for pause in [60, 120, 200, 300, 450, 700] {
        let mut child = train(&cut, &resumes).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        kills += child.try_wait().unwrap().is_none() as usize;
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(kills > 0, "every run ended before it could be killed");
    must(train(&cut, &resumes));
    let got = outcome(&latest(&cut));
    for (got, want) in got.1.iter().zip(&want.1) {
        assert_eq!(got, want);
    }
    assert_eq!((got.1.len(), got.0), (want.1.len(), want.0));
}

#[cfg(unix)]
#[test]
fn sigint_saves_and_exits_with_130() {
    let folder = tempfile::tempdir().unwrap();
    let child = train(folder.path(), &["--set", "rl.steps=100000"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("--resume"), "{}", text(&output));
    assert!(latest(folder.path()).join("checkpoints/LATEST").exists());
}

/// One line on stderr, the documented exit code, and nothing created.
#[test]
fn bad_usage_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("never");
    let file = folder.path().join("broken.toml");
    std::fs::write(&file, "[rl]\nlearning_rat = 1e-3\n").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, code, says) in [
        (vec!["--set", "rl.learning_rate=fast"], 2, "rl.learning_rate"),
        (vec!["--set", "rl.learning_rate=nan"], 2, "rl.learning_rate"),
        (vec!["--set", "rl.lerning_rate=1e-3"], 2, "did you mean learning_rate"),
        (vec!["--set", "rl"], 2, "key=value"),
        (vec!["--set", "rl=1"], 2, "section"),
        (vec!["--set", "seed.x=1"], 2, "is a value"),
        (vec!["--set", "rl.group=0"], 2, "rl.group"),
        (vec!["--set", "rl.temperature=0"], 2, "rl.temperature"),
        (vec!["--set", "rl.top_p=0"], 2, "rl.top_p"),
        (vec!["--set", "rl.loss=gropo"], 2, "rl.loss"),
        (vec!["--set", "rl.control=maybe"], 2, "rl.control"),
        (vec!["--set", "phases=sft,fly"], 2, "phases"),
        (vec!["--set", "quantize.blocksize=48"], 2, "quantize.blocksize"),
        (vec!["--set", "lora.rank=0"], 2, "lora.rank"),
        (vec!["--set", "lora.targets=head"], 2, "lora.targets"),
        (vec!["--set", "model.heads=3"], 2, "model.kv_heads"),
        (vec!["--set", "model.head_dim=15"], 2, "model.head_dim"),
        (vec!["--set", "task.digits=1"], 2, "task.digits"),
        (vec!["--set", "task.operators=%"], 2, "task.operators"),
        (vec!["--config", "/nowhere/x.toml"], 3, "/nowhere/x.toml"),
        (vec!["--config", file], 2, "learning_rat"),
        (vec!["--resume", "/nowhere"], 3, "/nowhere"),
    ] {
        let output = train(&out, &arguments).output().unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
        assert!(text.starts_with("error: "), "{arguments:?}: {text}");
        assert!(!out.exists(), "{arguments:?} left files behind");
    }
    let output = gradus(&["eval", "--run", out.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
}

#[test]
fn doctor_and_config_explain_themselves() {
    let doctor = must(gradus(&["doctor"]));
    for line in ["vector units", "gpu driver", "kernels", "trainer", "memory"] {
        assert!(doctor.contains(line), "{doctor}");
    }
    let explained = must(gradus(&["config", "--explain"]));
    assert!(explained.contains("rl.learning_rate") && explained.contains("[TRL"), "{explained}");
    let printed = must(gradus(&["config"]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("printed.toml");
    std::fs::write(&file, &printed).unwrap();
    let again = must(gradus(&["config", "--config", file.to_str().unwrap()]));
    assert_eq!(again, printed, "what config prints, config reads");
}

#[test]
fn bench_measures_and_writes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.json");
    let json = file.to_str().unwrap();
    let ops = "lerp 4194304 f32";
    let shown = must(gradus(&["bench", "--ops", ops, "--seconds", "0.05", "--json", json]));
    assert!(shown.contains("GB/s") && shown.contains("lerp"), "{shown}");
    let written = std::fs::read_to_string(&file).unwrap();
    let table: Value = serde_json::from_str(&written).unwrap();
    let (rows, floors) = (table["rows"].as_array().unwrap(), &table["floors"][0]);
    assert!(floors["bytes_per_s"].as_f64().unwrap() > 1e8, "{floors}");
    assert!(floors["f32_flops_per_s"].as_f64().unwrap() > 1e8, "{floors}");
    let row = &rows[0];
    assert_eq!((&row["op"], &row["device"]), (&"lerp".into(), &"cpu".into()));
    assert_eq!(row["bytes"], 12 << 22);
    for field in
        ["ms", "ms_p10", "ms_p90", "gb_per_s", "gflop_per_s", "floor_ms", "percent_of_floor"]
    {
        assert!(row[field].as_f64().is_some_and(|x| x > 0.0), "{field} {row}");
    }
    let (p10, p90) = (row["ms_p10"].as_f64(), row["ms_p90"].as_f64());
    assert!(p10 <= row["ms"].as_f64() && row["ms"].as_f64() <= p90, "{row}");
    assert_eq!((&row["l2_cold"], &row["graph_ms"]), (&Value::Null, &Value::Null), "on CUDA only");
    let cuda = rows.iter().any(|row| row["device"] == "cuda");
    assert!(cuda || table["cuda_left_out"].is_string(), "{table}");
    assert!(cuda || shown.contains("cuda left out: "), "{shown}");
    let listed = must(gradus(&["bench", "--list", "--shapes", "peers", "--device", "cpu"]));
    assert!(listed.lines().any(|name| name == "nf4_matmul 1 x 1536 x 1536 dq f32"), "{listed}");
    assert!(listed.lines().all(|name| name.ends_with(" f32")), "{listed}");
    let refused: [(&[&str], &str); 3] = [
        (&["--ops", "nothing"], "`ops`"),
        (&["--seconds", "0"], "`seconds`"),
        (&["--shapes", "large", "--device", "cpu"], "`ops`"),
    ];
    for (arguments, text) in refused {
        let output = gradus(&[&["bench"][..], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", self::text(&output));
        assert!(self::text(&output).contains(text), "{}", self::text(&output));
    }
}

/// A write that fails for want of space ends the run with a clear line; the run goes on from its
/// last checkpoint once there is space.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_and_survived() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    let run = {
        // The file size limit makes every larger write fail as a full disk does.
        let mut limited = Command::new("bash");
        let binary = env!("CARGO_BIN_EXE_gradus");
        let sets: Vec<String> = SMALL.iter().map(|s| format!("--set {s}")).collect();
        let line = format!(
            "trap '' XFSZ; ulimit -f 40; {binary} train --out {} {}",
            out.display(),
            sets.join(" ")
        );
        limited.args(["-c", &line]).output().unwrap()
    };
    let shown = text(&run);
    assert_eq!(run.status.code(), Some(3), "{shown}");
    assert!(shown.contains("error: ") && shown.contains(out.to_str().unwrap()), "{shown}");
    let leftovers = std::fs::read_dir(latest(&out).join("checkpoints")).unwrap();
    assert!(leftovers.flatten().all(|e| !e.file_name().to_string_lossy().contains("tmp")));
    must(train(&out, &["--resume", "auto"]));
}
