//! Runs whose records outlive their batch: what is in a buffer survives a kill, and rounds of
//! collecting and learning are an ordinary list of phases.

use std::path::Path;
use std::process::Command;

use super::runs::{gradus, latest, must, outcome, read_of};

/// A run of a second; what a test is about comes on top.
const SMALL: &[&str] = &[
    "model.hidden=16",
    "model.layers=1",
    "model.heads=2",
    "model.kv_heads=2",
    "model.head_dim=8",
    "model.ffn=32",
    "sft.batch=8",
    "sft.epochs=1",
    "rl.steps=8",
    "rl.prompts=6",
    "rl.group=4",
    "rl.micro_batch=8",
    "value.collect_steps=2",
    "lora.rank=4",
    "eval.max_prompts=8",
    "eval.samples=1",
    "eval.every=100",
    "checkpoint.every=1",
    "checkpoint.keep=2",
];

fn train(out: &Path, extra: &[&str]) -> Command {
    let mut command = gradus(&["train", "--out", out.to_str().unwrap(), "--resume", "auto"]);
    for set in read_of(SMALL, extra).iter().map(String::as_str).chain(extra.iter().copied()) {
        command.args(["--set", set]);
    }
    command
}

/// kill -9 once the run has written so many rows of metrics.
fn kill_after(rows: usize, mut command: Command, out: &Path) {
    let mut child = command.spawn().unwrap();
    let written = || {
        let text = std::fs::read_to_string(out.join("latest/metrics.jsonl")).unwrap_or_default();
        text.lines().count()
    };
    while written() < rows && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let _ = child.kill();
    child.wait().unwrap();
}

/// Stored, replayed, and learned from inside a step.
const ALL: &[&str] = &[
    "phases=quantize,rl,sft",
    "rl.keep=top",
    "rl.keep_share=0.5",
    "rl.store=own",
    "rl.replay_window=3",
    "rl.replay_share=0.4",
    "rl.then=own >= 30: sft",
    "sft.source=buffer:own",
    "sft.drain=false",
    "buffer.capacity=60",
];

#[test]
fn a_run_killed_inside_a_full_buffer_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    must(train(&whole, ALL));
    let want = outcome(&latest(&whole));
    let last = |key: &str| want.1.iter().rev().find_map(|row| row.get(key)).cloned();
    assert_eq!(last("buffer_size"), Some(60.0.into()), "the buffer is full");
    assert!(last("then/records").is_some() && last("replay/age").is_some());
    let cut = folder.path().join("cut");
    for rows in [3, 6, 7] {
        kill_after(rows, train(&cut, ALL), &cut);
    }
    must(train(&cut, ALL));
    assert_eq!(outcome(&latest(&cut)), want);
}

/// Rounds: what a round has collected is learned and gone before the next.
#[test]
fn rounds_of_collecting_and_learning() {
    let folder = tempfile::tempdir().unwrap();
    let rounds = [
        "phases=quantize,2*(collect,sft)",
        "rl.store=own",
        "rl.keep=best",
        "sft.source=buffer:own",
    ];
    must(train(folder.path(), &rounds));
    let (_, rows) = outcome(&latest(folder.path()));
    let shown: Vec<String> = rows
        .iter()
        .map(|row| {
            format!(
                "{} {}",
                row["phase"],
                row.get("buffer_size").map_or(String::new(), |n| n.to_string())
            )
        })
        .collect();
    let round = ["\"collect\" 6.0", "\"collect\" 12.0", "\"sft\" ", "\"sft\" "];
    assert_eq!(shown, [round, round].concat());
}

/// A recipe of rounds, killed where its book fills and where it is learned.
#[test]
fn a_recipe_killed_inside_its_book_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, must(gradus(&["toy", "sort3", "--rows", "24"]))).unwrap();
    let run = |out: &Path| {
        let sets = [
            "phase.draw.keep_threshold=0",
            "phase.draw.steps=2",
            "phases=quantize,sft,2*(draw,tune)",
            "sft.demos=16",
            "rl.max_new_tokens=4",
        ];
        let mut command = gradus(&["train", "--recipe", "self_sampled", "--resume", "auto"]);
        command.args(["--reward", "exact", "--data"]).arg(&rows).arg("--out").arg(out);
        let small = read_of(SMALL, &[&["recipe=self_sampled"][..], &sets].concat());
        for set in small.iter().map(String::as_str).chain(sets) {
            command.args(["--set", set]);
        }
        command
    };
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    must(run(&whole));
    let want = outcome(&latest(&whole));
    let at = |phase: &str| want.1.iter().position(|row| row["phase"] == phase).unwrap();
    let drawn = want.1.iter().rev().find_map(|row| row.get("buffer_size")).unwrap();
    assert!(drawn.as_f64().unwrap() > 24.0, "the book grows: {drawn}");
    for rows in [at("draw") + 1, at("tune") + 1] {
        kill_after(rows, run(&cut), &cut);
    }
    must(run(&cut));
    assert_eq!(outcome(&latest(&cut)), want);
}
