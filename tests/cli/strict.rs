//! What somebody sets has an effect or is refused, and what a run says of itself is so.
#![cfg(feature = "hf")]

use std::path::Path;
use std::process::Command;

use super::runs::{gradus, latest, must, read_of, text};
use gradus_rft::recipes;
use serde_json::Value;

/// A byte model that takes no time.
const TINY: &[&str] = &[
    "model.hidden=16",
    "model.heads=2",
    "model.kv_heads=2",
    "model.head_dim=8",
    "model.ffn=32",
    "model.layers=1",
    "sft.demos=32",
    "sft.batch=8",
    "sft.epochs=1",
    "rl.steps=3",
    "rl.prompts=4",
    "rl.group=4",
    "lora.rank=2",
    "eval.max_prompts=8",
    "eval.samples=1",
    "threads=1",
];

fn toy(folder: &Path, name: &str) {
    let rows = must(gradus(&["toy", name, "--rows", "200"]));
    std::fs::write(folder.join("toy.jsonl"), rows).unwrap();
}

/// A run on `toy.jsonl` in `folder` with these arguments; `plan` says what its sizes are chosen by.
fn train(folder: &Path, plan: &[&str], arguments: &[&str]) -> Command {
    let mut command = gradus(&["train", "--data", "toy.jsonl", "--out", "runs"]);
    command.current_dir(folder).args(arguments);
    for set in read_of(TINY, &[&["data.path=x"], plan].concat()) {
        command.args(["--set", &set]);
    }
    for set in plan {
        command.args(["--set", set]);
    }
    command
}

/// `config` shows what it is asked for, and refuses what `train` refuses, in its words.
#[test]
fn config_refuses_what_a_run_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "phases = [\"sft\"]\n[rl]\ngroup = 4\n").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, key) in [
        (&["--recipe", "dpo", "--set", "rl.group=4", "--set", "model.ffn=288"][..], "rl.group"),
        (&["--recipe", "raft"], "phases"),
        (&["--recipe", "gkd", "--model", "nowhere"], "distill.teacher"),
        (&["--set", "rl.steps=5", "--set", "rl.warmup_steps=6"], "rl.warmup_steps"),
        (&["--set", "phases=sft,value_fit"], "phases"),
        (&["--config", file], "rl.group"),
        (&["--set", "rl.loss=relift", "--set", "rl.clip_low=0.1"], "rl.clip_low"),
        (&["--set", "device=tpu"], "device"),
        (&["--set", "model.kv_heads=3"], "model.kv_heads"),
        (&["--set", "model.hidden=0"], "model.hidden"),
        (&["--set", "model.hidden=16777216", "--set", "model.ffn=16777216"], "model"),
        (&["--set", "rl.prompts=65536", "--set", "rl.group=4096"], "rl.prompts"),
        (&["--set", "lora.targets=foo"], "lora.targets"),
        (&["--set", "task.digits=50"], "task.digits"),
        (&["--set", "reward.functions=iou:5"], "reward.functions"),
    ] {
        let out = folder.path().join("never");
        let run = gradus(&[&["train", "--out", out.to_str().unwrap()], arguments].concat());
        let shown = gradus(&[&["config"], arguments].concat());
        let [run, shown] = [run, shown].map(|mut command| command.output().unwrap());
        let said =
            |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((run.status.code(), shown.status.code()), (Some(2), Some(2)), "{}", said(&run));
        assert!(said(&run).contains(&format!("`{key}`")), "{}", said(&run));
        assert_eq!(said(&run), said(&shown), "{arguments:?}");
        assert!(!out.exists() && !shown.stdout.is_empty(), "{arguments:?}");
    }
}

/// A key that a command does not read is refused, and so is a number that means nothing.
#[test]
fn commands_refuse_what_they_do_not_read() {
    let model = ["--model", "nowhere", "--data", "rows.jsonl", "--reward", "exact", "--set"];
    for (command, set, says) in [
        ("eval", "rl.temperature=0.5", "`rl.temperature`: has no effect: `gradus eval`"),
        ("eval", "rl.steps=7", "`rl.steps`: has no effect"),
        ("eval", "phases=sft", "`phases`: has no effect"),
        ("eval", "quantize.blocksize=128", "`quantize.blocksize`: has no effect"),
        ("eval", "distill.teacher=x", "`distill.teacher`: has no effect"),
        ("sample", "eval.samples=2", "`eval.samples`: has no effect: `gradus sample`"),
        ("sample", "rl.group=2", "`rl.group`: has no effect"),
        ("sample", "model.layers=2", "`model.layers`: has no effect"),
    ] {
        // What is refused is refused before the folder is looked for; without it the folder is missed.
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("nowhere")).unwrap();
        let run = |set: &str| {
            let mut asked = gradus(&[&[command], &model[..], &[set]].concat());
            text(&asked.current_dir(folder.path()).output().unwrap())
        };
        assert!(run(set).contains(says), "{set}: {}", run(set));
        let read = run("rl.max_new_tokens=4");
        assert!(!read.contains("has no effect") && read.contains("config.json"), "{read}");
    }
    for (arguments, says) in [
        (&["sample", "-n", "0"][..], "0 is not in 1..=65535"),
        (&["train", "--seed", "9223372036854775808"], "9223372036854775808 is not in"),
        (&["eval", "--model", "nowhere"], "there is nothing to score"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("nowhere")).unwrap();
        let output = gradus(arguments).current_dir(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(says), "{arguments:?}: {}", text(&output));
    }
}

/// A wrong value is a wrong setting, wherever it stands; a file that is not there is not.
#[test]
fn files_of_settings_are_wrong_settings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    for wrong in ["[rl]\nsteps = \"5\"", "phases = \"sft\"", "threads = -1", "a = 1", "rl = ["] {
        std::fs::write(&file, wrong).unwrap();
        let output = gradus(&["train", "--config", file.to_str().unwrap()]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", text(&output));
        assert!(text(&output).contains("mine.toml"), "{wrong}: {}", text(&output));
    }
    let missing = folder.path().join("none.toml");
    let output = gradus(&["train", "--config", missing.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
}

#[test]
fn names_that_are_nearly_right_are_named() {
    for (arguments, says) in [
        (&["config", "--set", "phase.rl.kep=best"][..], "did you mean keep?"),
        (&["config", "--set", "phases=sft,quantze,rl"], "did you mean quantize?"),
        (&["config", "--set", "rl.keep=bset"], "did you mean best?"),
        (&["toy", "sort33"], "did you mean sort3?"),
        (&["recipes", "raff"], "did you mean raft?"),
        (&["train", "--reward", "numerc"], "did you mean numeric?"),
    ] {
        let output = gradus(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(says), "{arguments:?}: {}", text(&output));
    }
}

/// What a hint names helps with the error above it.
#[test]
fn hints_lead_to_what_was_asked_for() {
    for (arguments, hint) in [
        (&["toy", "nothing"][..], Some("gradus toy lists")),
        (&["toy", "sort3", "--rows", "0"], Some("gradus toy lists")),
        (&["recipes", "nothing"], Some("gradus recipes lists")),
        (&["train", "--recipe", "nothing"], Some("gradus recipes lists")),
        (&["train", "--reward", "nothing"], Some("gradus config --rewards lists")),
        (&["train", "--set", "rl.nothing=1"], Some("gradus config --explain lists")),
        (&["eval", "--reward", "exact"], None),
    ] {
        let output = gradus(arguments).output().unwrap();
        let said = text(&output);
        match hint {
            Some(hint) => assert!(said.contains(&format!("hint: {hint}")), "{said}"),
            None => assert!(!said.contains("hint:"), "{said}"),
        }
    }
}

/// Command lines that `gradus recipes` prints would run: nothing in them is refused.
#[test]
fn printed_commands_are_taken() {
    let listed = must(gradus(&["recipes"]));
    for recipe in recipes::ALL {
        let commands = recipe.commands().unwrap();
        assert!(commands.iter().all(|command| listed.contains(command)), "{}", recipe.name);
        for command in commands.iter().filter(|command| command.starts_with("gradus train ")) {
            let asked = command.replace("gradus train", "config").replace("--out teacher", "");
            let script = format!("'{}' {asked}", env!("CARGO_BIN_EXE_gradus"));
            let output = Command::new("bash").args(["-c", &script]).output().unwrap();
            assert!(output.status.success(), "{command}: {}", text(&output));
        }
    }
}

fn summary(folder: &Path) -> Value {
    let path = latest(&folder.join("runs")).join("summary.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Objectives that compare contexts ask for no reward, and say nothing of equal ones.
#[test]
fn contexts_are_compared_without_a_reward() {
    let folder = tempfile::tempdir().unwrap();
    toy(folder.path(), "const-sort");
    let plan = ["recipe=sami", "phases=sft,quantize,rl"];
    let mut command = gradus(&["train", "--data", "toy.jsonl", "--out", "runs"]);
    command.current_dir(folder.path());
    let sizes = TINY.iter().filter(|set| !set.starts_with("rl.group"));
    for set in sizes.chain(&plan) {
        command.args(["--set", set]);
    }
    let shown = must(command);
    for wrong in ["all rewards equal", "reward 0.000", "nothing could be learned", "NaN"] {
        assert!(!shown.contains(wrong), "{wrong}: {shown}");
    }
    let summary = summary(folder.path());
    assert_eq!(summary["flat_steps"], 0);
    assert!(summary["final_accuracy"].is_null(), "{summary}");
    let metrics = latest(&folder.path().join("runs")).join("metrics.jsonl");
    let metrics = std::fs::read_to_string(metrics).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert!(last["reward"].is_null() && last["loss"].is_number(), "{last}");
}

/// The end of a run says what there was, and nothing of what there was not.
#[test]
fn the_end_of_a_run_speaks_of_its_own_phases() {
    let folder = tempfile::tempdir().unwrap();
    toy(folder.path(), "sort3");
    let reward = ["--reward", "exact"];
    let rounds = [
        "phases=sft,quantize,2*(collect,tune)",
        "rl.store=own",
        "phase.tune.kind=sft",
        "phase.tune.source=buffer:own",
    ];
    let mut command = gradus(&["train", "--data", "toy.jsonl", "--out", "runs"]);
    command.current_dir(folder.path()).args(reward);
    let sizes = TINY.iter().filter(|set| !set.starts_with("rl.steps"));
    for set in sizes.chain(&rounds) {
        command.args(["--set", set]);
    }
    let shown = must(command);
    for wrong in ["no RL step", " 0 sampled tokens/s", "on-policy", "the weights moved"] {
        assert!(!shown.contains(wrong), "{wrong}: {shown}");
    }
    assert!(shown.contains(" sampled tokens/s, memory"), "{shown}");
    assert!(shown.contains("(the weights that the adapter goes on)"), "{shown}");
    assert!(summary(folder.path())["rollout_tokens_per_second"].as_f64() > Some(0.0));

    let alone = must(train(folder.path(), &["phases=sft"], &reward));
    assert!(!alone.contains("sampled tokens/s") && !alone.contains("RL"), "{alone}");
    assert!(alone.contains("(the weights that were trained)"), "{alone}");
}

/// A resumed run names the checkpoint that its folder has, and how many steps are behind it.
#[test]
fn a_resumed_run_names_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    toy(folder.path(), "sort3");
    let again = ["--reward", "exact", "--resume", "auto"];
    must(train(folder.path(), &["checkpoint.every=1"], &again));
    let shown = must(train(folder.path(), &["checkpoint.every=1"], &again));
    let run = latest(&folder.path().join("runs"));
    let newest = std::fs::read_to_string(run.join("checkpoints/LATEST")).unwrap();
    let rows = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().count();
    let says = format!("from checkpoint {newest}: {rows} steps are done");
    assert!(shown.contains(&says), "{says}: {shown}");
}

/// A score is a percentage where it is a share by construction, and a number elsewhere.
#[test]
fn scores_that_are_no_shares_are_no_percentages() {
    let folder = tempfile::tempdir().unwrap();
    toy(folder.path(), "sort3");
    for (rewards, share) in [
        (&["exact"][..], true),
        (&["0.5*exact", "0.5*format:."], true),
        (&["exact", "format:."], false),
        (&["signed-format:^x"], false),
        (&["-1*exact"], false),
        (&["3*exact"], false),
    ] {
        let flags: Vec<String> =
            rewards.iter().map(|reward| format!("--reward={reward}")).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let shown = must(train(folder.path(), &["phases=sft"], &flags));
        let line = shown.lines().find(|line| line.contains("held-out score   ")).unwrap();
        assert_eq!(line.contains(" %"), share, "{rewards:?}: {line}");
        assert_eq!(summary(folder.path())["score_is_share"], share, "{rewards:?}");
    }
}

/// A weight goes from its first to its last value over a phase, is in the metrics, and a run that was cut
/// and resumed has the same bits.
#[test]
fn weights_of_rewards_move_over_a_phase() {
    let folder = tempfile::tempdir().unwrap();
    toy(folder.path(), "sort3");
    let rewards = ["--reward", "1..0.5*exact", "--reward", "0..2*format:^\\d"];
    let sets = ["rl.steps=5", "checkpoint.every=1", "checkpoint.keep=100"];
    must(train(folder.path(), &sets, &rewards));
    let run = latest(&folder.path().join("runs"));
    let rows = || -> Vec<Value> {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
        rows.filter(|row: &Value| row["phase"] == "rl").collect()
    };
    let want = rows();
    let column = |name: &str| -> Vec<f64> {
        want.iter().map(|row| row[format!("rewards/{name}")].as_f64().unwrap()).collect()
    };
    assert_eq!(column("exact/weight"), [1.0, 0.875, 0.75, 0.625, 0.5]);
    assert_eq!(column("format/weight"), [0.0, 0.5, 1.0, 1.5, 2.0]);
    for (i, row) in want.iter().enumerate() {
        let part =
            |name: &str| column(&format!("{name}/weight"))[i] * column(&format!("{name}/mean"))[i];
        let reward = row["reward"].as_f64().unwrap();
        assert!((reward - part("exact") - part("format")).abs() < 1e-6, "{row}");
    }
    let csv = std::fs::read_to_string(run.join("metrics.csv")).unwrap();
    let head = csv.lines().next().unwrap();
    for name in ["exact/mean", "format/mean", "exact/weight", "format/weight"] {
        assert!(head.split(',').any(|column| column == format!("rewards/{name}")), "{head}");
    }
    let columns = head.split(',').count();
    assert!(csv.lines().all(|line| line.split(',').count() == columns), "{csv}");

    // From the checkpoint in the middle of the phase: the same rows.
    let checkpoints = run.join("checkpoints");
    let mut names: Vec<String> = std::fs::read_dir(&checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "LATEST")
        .collect();
    names.sort();
    for name in names.split_off(names.len() - 4) {
        std::fs::remove_dir_all(checkpoints.join(name)).unwrap();
    }
    std::fs::write(checkpoints.join("LATEST"), names.last().unwrap()).unwrap();
    let again = [&rewards[..], &["--resume", "auto"]].concat();
    must(train(folder.path(), &sets, &again));
    assert_eq!(latest(&folder.path().join("runs")), run, "resumed");
    let untimed = |rows: Vec<Value>| -> Vec<Value> {
        let strip = |mut row: Value| {
            row.as_object_mut().unwrap().retain(|key, _| !key.starts_with("time/"));
            row
        };
        rows.into_iter().map(strip).collect()
    };
    assert_eq!(untimed(rows()), untimed(want.clone()));
}
