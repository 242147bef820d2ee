//! Named held-out sets, and the best state of a run.

use std::fs;
use std::path::{Path, PathBuf};

use gradus_rft::toy::{ToyOptions, toy};
use gradus_rft::train::checkpoint::load_latest;
use gradus_rft::train::{Resume, RunConfig, RunOrModel, Trainer, evaluate, train};

use crate::resumed::{checkpoints, cut};

/// Rows of a toy in a file.
fn rows(folder: &Path, name: &str, of: &str, seed: u64, count: usize) -> PathBuf {
    let options = ToyOptions { seed, ..ToyOptions::default() };
    let rows = toy(of).unwrap().rows(options).unwrap().take(count);
    let line = |row| serde_json::Value::Object(row).to_string() + "\n";
    let path = folder.join(format!("{name}.jsonl"));
    fs::write(&path, rows.map(line).collect::<String>()).unwrap();
    path
}

fn config(folder: &Path, settings: &[&str]) -> RunConfig {
    let mut config = RunConfig::default();
    let data = format!("data.path={}", rows(folder, "data", "sort3", 0, 40).display());
    let out = format!("out={}", folder.join("runs").display());
    let base = [
        "model.hidden=16",
        "model.layers=1",
        "model.heads=2",
        "model.kv_heads=2",
        "model.head_dim=8",
        "model.ffn=24",
        "device=cpu",
        "sft.demos=8",
        "sft.batch=4",
        "sft.epochs=2",
        "rl.prompts=2",
        "rl.group=4",
        "rl.steps=4",
        "rl.learning_rate=1e-2",
        "rl.max_new_tokens=6",
        "eval.max_prompts=4",
        "eval.samples=4",
        "eval.every=1",
        "checkpoint.every=1",
        "checkpoint.keep=100",
        &data,
        &out,
    ];
    // What a policy that knows nothing writes differs in this, and ends soon.
    config.rl.stop = ('0'..='z').map(String::from).collect();
    config.reward.functions =
        ["0.6*format:[!-9]", "0.3*format:[A-M]", "0.1*format:[n-z]"].map(String::from).to_vec();
    base.iter().chain(settings).for_each(|set| {
        config.apply_set(set).unwrap_or_else(|e| panic!("{set}: {e}"));
    });
    config
}

/// Both sets are scored before and after, as `gradus eval` scores them, and are never trained on.
#[test]
fn sets_are_scored_before_and_after() {
    let folder = tempfile::tempdir().unwrap();
    // The first ten rows of the training data, and rows of another task.
    let same = rows(folder.path(), "same", "sort3", 0, 10);
    let other = rows(folder.path(), "other", "maxfirst", 0, 10);
    let suites = format!("data.suites=same={},other={}", same.display(), other.display());
    let config = config(folder.path(), &["phases=sft,rl", &suites]);
    let trainer: Trainer = Trainer::new(config.clone()).unwrap();
    let sets = trainer.task.suites(100);
    assert_eq!(sets.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["same", "other"]);
    let trained: Vec<String> = (0..200).map(|i| trainer.task.train_prompt(i).text).collect();
    assert!(sets[0].1.len() >= 8 && sets[0].1.iter().all(|p| !trained.contains(&p.text)));
    let before = trainer.evaluate_suites().unwrap();
    let summary = train(config, &Resume::No).unwrap();
    let run = RunOrModel::Run(summary.folder.clone().into());
    let after = evaluate(&run, None, None).unwrap();
    assert_eq!(after.accuracy, summary.final_accuracy);
    assert_eq!((summary.suites.len(), after.suites.len()), (2, 2));
    for ((suite, (_, before)), (name, after)) in
        summary.suites.iter().zip(&before).zip(&after.suites)
    {
        assert_eq!((&suite.name, suite.before), (name, before.accuracy));
        assert_eq!((suite.after, suite.at.clone()), (after.accuracy, after.at.clone()));
        assert_eq!(suite.at.iter().map(|at| at.k).collect::<Vec<_>>(), [1, 2, 4]);
        assert!(suite.at.is_sorted_by(|a, b| a.pass <= b.pass), "{suite:?}");
        assert!((suite.at[0].pass - suite.after.unwrap()).abs() < 1e-9, "pass@1 is the mean");
    }
    assert_ne!(summary.suites[0].before, summary.suites[0].after, "it has learned something");
    assert!(summary.table().contains("before    after"), "{}", summary.table());
}

/// The best state is that of the first step with the largest value; a run that resumes from any checkpoint ends with
/// the same one.
#[test]
fn the_best_state_is_kept_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &["phases=rl", "checkpoint.best=entropy"]);
    let summary = train(config.clone(), &Resume::No).unwrap();
    let whole = PathBuf::from(&summary.folder).canonicalize().unwrap();
    let rows = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let value = |key: &str| -> Vec<f64> {
        let row = |row: &str| serde_json::from_str::<serde_json::Value>(row).unwrap();
        rows.lines().map(|line| row(line)[key].as_f64().unwrap()).collect()
    };
    // Learning makes a policy surer: the end is not the best.
    let (scores, accuracy) = (value("entropy"), value("eval/accuracy"));
    let most = scores.iter().cloned().fold(f64::MIN, f64::max);
    let first = scores.iter().position(|score| *score == most).unwrap();
    let best = summary.best.clone().unwrap();
    assert_eq!((best.value, best.step, best.metric.as_str()), (most, first as u64 + 1, "entropy"));
    assert!(scores[3] < most, "the end is not the best: {scores:?}");
    let state = |run: &Path| load_latest(&run.join("best/checkpoints")).unwrap().0.unwrap();
    let want = state(&whole);
    assert_eq!(want.step, best.step);
    let again = evaluate(&RunOrModel::Run(best.folder.into()), None, None).unwrap();
    assert_eq!(again.accuracy, Some(accuracy[first]), "the folder is one that `gradus eval` takes");
    for (i, checkpoint) in checkpoints(&whole).iter().enumerate() {
        let to = folder.path().join(format!("cut-{i}"));
        cut(&whole, checkpoint, &to);
        // A kill leaves the folder as it was last written.
        copy(&whole.join("best"), &to.join("best"));
        let summary = train(config.clone(), &Resume::From(to.clone())).unwrap();
        let (found, kept) = (summary.best.unwrap(), state(&to));
        assert_eq!((found.value, found.step), (most, best.step), "cut at {i}");
        assert!(kept.tensors == want.tensors && kept.step == want.step, "cut at {i}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        match entry.is_dir() {
            true => copy(&entry, &target),
            false => drop(fs::copy(&entry, target).unwrap()),
        }
    }
}

#[test]
fn sets_and_metrics_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (set, key, says) in [
        ("data.suites=old", "data.suites", "NAME=FILE"),
        ("data.suites=a b=x.jsonl", "data.suites", "NAME=FILE"),
        ("data.suites=a=x.jsonl,a=y.jsonl", "data.suites", "there before"),
        ("data.suites=a=nowhere.jsonl", "nowhere.jsonl", "nowhere.jsonl"),
        ("checkpoint.best=accuracy", "checkpoint.best", "no metric"),
    ] {
        let error = train(config(folder.path(), &["phases=rl", set]), &Resume::No);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(says), "{set}: {error}");
    }
    let unread = config(folder.path(), &["phases=sft", "checkpoint.best=eval/accuracy"]);
    let error = unread.validate_phases().unwrap_err().to_string();
    assert!(error.contains("`checkpoint.best`") && error.contains("does not have"), "{error}");
}
