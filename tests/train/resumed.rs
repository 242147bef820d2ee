//! Every recipe, cut off inside each of its phases, ends with the bits of the run that nobody stopped.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gradus_rft::recipes;
use gradus_rft::toy::{ToyOptions, toy};
use gradus_rft::train::checkpoint::{Checkpoint, load, load_latest};
use gradus_rft::train::phase::Phase;
use gradus_rft::train::{Resume, RunConfig, train};

use crate::recipes::tried;

/// The recipe on its toy, two steps a phase and two rounds, with a checkpoint behind every step.
fn config(name: &str, folder: &Path) -> RunConfig {
    let recipe = recipes::find(name).unwrap();
    let mut config = tried(&recipe, RunConfig::default(), folder);
    for entry in &mut config.phases {
        for rounds in ["5*", "20*"] {
            entry.0 = entry.0.replace(rounds, "2*");
        }
    }
    for setting in ["device=cpu", "checkpoint.every=1", "checkpoint.keep=1000", "eval.every=1000"] {
        config.apply_set(setting).unwrap();
    }
    if !config.data.path.is_empty() {
        // What a policy that knows nothing writes differs in this.
        let parts =
            ["0.4*format:[!-@]", "0.3*format:[A-_]", "0.2*format:[`-~]", "0.1*format:^[^!-~]"];
        config.reward.functions = parts.map(String::from).to_vec();
    }
    if config.env.kind == "grid" {
        // Who knows nothing reaches no goal, and a walk that is cut off is worth nothing; a guess ends.
        config.env.kind = "ask".into();
        let options = ToyOptions { rows: 20, ..ToyOptions::default() };
        let rows = toy("ask").unwrap().rows(options).unwrap();
        let line = |row| serde_json::Value::Object(row).to_string() + "\n";
        fs::write(&config.data.path, rows.map(line).collect::<String>()).unwrap();
    }
    let draws = |kind| matches!(kind, Phase::Collect | Phase::Rl | Phase::Distill);
    if config.plan().unwrap().iter().any(|plan| draws(plan.kind)) {
        // What is cut off scores 0, and a random policy would seldom end an answer.
        config.rl.stop = ('0'..='z').map(String::from).collect();
    }
    config.out = folder.join("runs").display().to_string();
    config
}

/// The folders of a run's checkpoints, oldest first.
pub(crate) fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

/// What a run was when `last` was saved: as a kill leaves it, its metrics may be further.
pub(crate) fn cut(run: &Path, last: &Path, to: &Path) {
    fs::create_dir_all(to.join("checkpoints")).unwrap();
    for entry in fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_file() {
            fs::copy(&entry, to.join(entry.file_name().unwrap())).unwrap();
        }
    }
    let kept = to.join("checkpoints").join(last.file_name().unwrap());
    fs::create_dir(&kept).unwrap();
    for file in fs::read_dir(last).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, kept.join(file.file_name().unwrap())).unwrap();
    }
    let name = last.file_name().unwrap().to_string_lossy().into_owned();
    fs::write(to.join("checkpoints/LATEST"), name).unwrap();
}

/// Runs `config` and, from behind each checkpoint, what a kill would have left of it: all come to the same end. The
/// metrics of that end, and how many checkpoints there were.
pub(crate) fn resumes_alike(
    mut config: RunConfig,
    folder: &Path,
) -> (Vec<serde_json::Value>, usize) {
    config.out = folder.join("runs").display().to_string();
    train(config.clone(), &Resume::No).unwrap();
    let whole = folder.join("runs/latest").canonicalize().unwrap();
    let (want, all) = (end(&whole), checkpoints(&whole));
    for (i, checkpoint) in all.iter().enumerate() {
        let to = folder.join(format!("cut-{i}"));
        cut(&whole, checkpoint, &to);
        train(config.clone(), &Resume::From(to.clone())).unwrap();
        assert!(end(&to) == want, "cut at {}", checkpoint.display());
    }
    (want.1, all.len())
}

/// The state at the end, and the metrics without their times.
fn end(run: &Path) -> (Checkpoint, Vec<serde_json::Value>) {
    let mut last = load_latest(&run.join("checkpoints")).unwrap().0.unwrap();
    last.meta = serde_json::Value::Null;
    let rows = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
        row.as_object_mut().unwrap().retain(|key, _| !key.starts_with("time/"));
        row
    };
    (last, rows.lines().map(timeless).collect())
}

#[test]
fn every_recipe_resumes_to_the_same_bits_from_inside_every_phase() {
    let (mut filled, mut equal) = (Vec::new(), Vec::new());
    for recipe in recipes::ALL {
        let (name, folder) = (recipe.name, tempfile::tempdir().unwrap());
        let config = config(name, folder.path());
        train(config.clone(), &Resume::No).unwrap_or_else(|e| panic!("{name}: {e}"));
        let whole = folder.path().join("runs/latest").canonicalize().unwrap();
        let want = end(&whole);
        let spread = || want.1.iter().filter_map(|row| row["reward_std"].as_f64());
        // The built-in task takes no other rewards than its own.
        let chosen = !config.data.path.is_empty() && spread().next().is_some();
        if chosen && !spread().any(|s| s > 0.0) {
            equal.push(name);
        }
        let mut phases = BTreeSet::new();
        for (i, checkpoint) in checkpoints(&whole).iter().enumerate() {
            let saved = load(checkpoint).unwrap();
            if saved.meta["step"] != 1 {
                continue;
            }
            phases.insert(saved.meta["phase"].as_u64().unwrap());
            if saved
                .tensors
                .keys()
                .any(|key| key.starts_with("buffer/") || key.starts_with("replay/"))
            {
                filled.push(name);
            }
            let to = folder.path().join(format!("cut-{i}"));
            cut(&whole, checkpoint, &to);
            train(config.clone(), &Resume::From(to.clone()))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(end(&to) == want, "{name}: cut at {}", checkpoint.display());
        }
        let plans = config.plan().unwrap();
        let steps = plans.iter().filter(|plan| plan.kind != Phase::Quantize).count();
        assert_eq!(phases.len(), steps, "{name}: inside every phase");
    }
    assert!(equal.is_empty(), "{equal:?} had no rewards to learn from");
    filled.dedup();
    let stores = ["curr_reft", "fare", "ftpedel", "g1", "leti", "raft", "remix", "rif_rft"];
    for name in stores.into_iter().chain(["self_sampled", "wsrl"]) {
        assert!(filled.contains(&name), "{name}: no record was in a buffer, {filled:?}");
    }
}
