//! Runs of the binary, and what they leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use gradus_rft::train::RunConfig;
use serde_json::Value;

pub fn gradus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradus"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Those of `base` that a run reads which also has `more`: a run refuses what it would not read.
pub fn read_of(base: &[&str], more: &[&str]) -> Vec<String> {
    let defaults = match more.iter().any(|set| set.starts_with("model.path=")) {
        true => RunConfig::pretrained(),
        false => RunConfig::default(),
    };
    let recipe = more.iter().find_map(|set| set.strip_prefix("recipe="));
    let mut config = RunConfig::layered(defaults, recipe, None).unwrap();
    let own = more.iter().filter(|set| !set.starts_with("recipe="));
    base.iter().chain(own).for_each(|set| config.apply_set(set).unwrap());
    let reads = |set: &&&str| {
        let key = set.split('=').next().unwrap().to_string();
        config.refuse_unread(&[key].into()).is_ok()
    };
    base.iter().filter(reads).map(|set| set.to_string()).collect()
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

pub fn must(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    text
}

pub fn latest(out: &Path) -> PathBuf {
    out.join("latest").canonicalize().unwrap()
}

/// Checksum of the newest checkpoint's tensors as its manifest states it, with the samples that the run kept,
/// and all metrics but the clock's.
pub fn outcome(run: &Path) -> (String, Vec<BTreeMap<String, Value>>) {
    let name = std::fs::read_to_string(run.join("checkpoints/LATEST")).unwrap();
    let manifest = std::fs::read(run.join("checkpoints").join(name).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let state = manifest["files"][0]["sha256"].as_str().unwrap().to_string();
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let strip = |line: &str| -> BTreeMap<String, Value> {
        let row: BTreeMap<String, Value> = serde_json::from_str(line).unwrap();
        row.into_iter().filter(|(key, _)| !key.starts_with("time/")).collect()
    };
    let samples = std::fs::read_to_string(run.join("samples.jsonl")).unwrap_or_default();
    (state + &samples, metrics.lines().map(strip).collect())
}
