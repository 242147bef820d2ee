//! Runs that end at one of the calls with which they change files: killed there, or with a disk that
//! fails there. After `--resume auto` everything is as if nothing had happened, and nothing is left
//! over. A preloaded library (`shim.c`) counts the calls.
#![cfg(all(feature = "hf", target_os = "linux", target_env = "gnu"))]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::runs::{gradus, latest, must, outcome, text};

/// Errors of a disk: no space, and broken.
const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// The library, made once.
fn shim(folder: &Path) -> PathBuf {
    let source = crate::common::root().join("tests/cli/shim.c");
    let made = folder.join("shim.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&made).arg(source).arg("-ldl");
    // A C compiler links Rust programs, too.
    must(cc);
    made
}

/// A place for one run after the other: `rows.jsonl` and the runs.
struct Place {
    folder: tempfile::TempDir,
    shim: PathBuf,
}

impl Place {
    fn new(shim: &Path) -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap(), shim: shim.into() };
        let row = |i: usize| {
            let (a, b) = (i % 10, i / 10);
            format!(r#"{{"prompt":"{a}+{b}=","completion":"{0}","answer":"{0}"}}"#, a + b) + "\n"
        };
        fs::write(place.path("rows.jsonl"), (0..40).map(row).collect::<String>()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Warm-up, 4-bit weights and RL on a folder, so that a model and an adapter are written.
    fn run(&self, shim: &[(&str, String)]) -> Output {
        let model = crate::common::root().join("tests/golden/models/llama");
        let mut command = gradus(&["train", "--model", model.to_str().unwrap(), "--out", "runs"]);
        command.args(["--data", "rows.jsonl", "--reward", "exact", "--resume", "auto"]);
        for set in [
            "phases=sft,quantize,rl",
            "threads=1",
            "sft.demos=2",
            "sft.batch=2",
            "sft.epochs=1",
            "rl.steps=3",
            "rl.prompts=1",
            "rl.group=2",
            "rl.max_new_tokens=3",
            "lora.rank=2",
            "eval.max_prompts=1",
            "eval.every=100",
            "checkpoint.every=2",
            "checkpoint.keep=1",
        ] {
            command.args(["--set", set]);
        }
        command.current_dir(self.folder.path()).env("LD_PRELOAD", &self.shim);
        command.envs(shim.iter().map(|(name, value)| (name, value))).output().unwrap()
    }

    /// A run to its end; how often it changed a file.
    fn calls(&self) -> usize {
        let count = self.path("count");
        let _ = fs::remove_file(&count);
        let output = self.run(&[("SHIM_COUNT", count.display().to_string())]);
        assert!(output.status.success(), "{}", text(&output));
        fs::read_to_string(count).unwrap().trim().parse().unwrap()
    }

    /// Everything under `runs`: names, and what in the files does not come from the clock.
    fn left(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        self.walk(&self.path("runs"), &mut found);
        let (state, rows) = outcome(&latest(&self.path("runs")));
        found.insert("state and rows".into(), format!("{state} {rows:?}").into_bytes());
        found
    }

    fn walk(&self, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = self.without_clock(&path.display().to_string());
            let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
            let clock = [".lock", ".svg", "csv", "jsonl", "meta.json", "manifest.json"];
            if path.is_dir() && !path.is_symlink() {
                found.insert(name, Vec::new());
                self.walk(&path, found);
            } else if path.is_symlink() {
                found.insert(
                    name,
                    self.without_clock(&fs::read_link(&path).unwrap().display().to_string()).into(),
                );
            } else if name.contains("tfevents") {
                found.insert("events".into(), Vec::new());
            } else if ends(&clock) || ends(&["summary.json"]) {
                found.insert(name, Vec::new());
            } else {
                let bytes = fs::read(&path).unwrap();
                let text = String::from_utf8(bytes);
                let bytes = text.map_or_else(
                    |binary| binary.into_bytes(),
                    |text| self.without_clock(&text).into_bytes(),
                );
                found.insert(name, bytes);
            }
        }
    }

    /// The text without the names of this place and of the run, which has the time in it.
    fn without_clock(&self, text: &str) -> String {
        let text =
            text.replace(self.folder.path().canonicalize().unwrap().to_str().unwrap(), "PLACE");
        let mut parts = text.split("rft-s0-");
        let first = parts.next().unwrap_or("").to_string();
        parts.fold(first, |text, part| {
            text + "RUN" + part.trim_start_matches(|c: char| c.is_ascii_digit())
        })
    }
}

fn assert_same(got: &BTreeMap<String, Vec<u8>>, want: &BTreeMap<String, Vec<u8>>, when: &str) {
    let names = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(want), "{when}");
    for (name, bytes) in got {
        assert!(bytes == &want[name], "{when}: {name} has other bytes");
    }
}

/// Kills at every `stride`-th call, each followed by one in the run that goes on, then failures of
/// the disk at every `stride`-th call.
fn disturbed(stride: usize) {
    let folder = tempfile::tempdir().unwrap();
    let shim = shim(folder.path());
    let whole = Place::new(&shim);
    let calls = whole.calls();
    let want = whole.left();
    assert!(calls > 100, "{calls} calls: the shim sees nothing");
    for part in
        ["adapter/adapter_model.safetensors", "model/model.safetensors", "adapter_config.json"]
    {
        assert!(want.keys().any(|name| name.ends_with(part)), "{part}: {:?}", want.keys());
    }
    // Once more on what is finished: nothing changes.
    let resumed = whole.calls();
    assert_same(&whole.left(), &want, "resumed at its end");
    let at = |n: usize| ("SHIM_AT", n.to_string());
    for n in (1..=calls).step_by(stride) {
        let place = Place::new(&shim);
        assert!(!place.run(&[at(n)]).status.success(), "killed at {n} of {calls}");
        // Mostly while it clears up and writes again what may be missing.
        place.run(&[at(1 + n * 7 % resumed)]);
        place.calls();
        assert_same(&place.left(), &want, &format!("killed at {n} of {calls}"));
    }
    for n in (1 + stride / 2..=calls).step_by(stride) {
        for error in [ENOSPC, EIO] {
            let place = Place::new(&shim);
            let output = place.run(&[at(n), ("SHIM_ERRNO", error.to_string())]);
            let when = format!("error {error} at {n} of {calls}: {}", text(&output));
            match output.status.code() {
                // It could do without that call.
                Some(0) => {}
                Some(3) => assert!(text(&output).contains("error: "), "{when}"),
                other => panic!("{other:?}, {when}"),
            }
            place.calls();
            assert_same(&place.left(), &want, &when);
        }
    }
}

#[test]
fn a_run_killed_at_any_call_resumes_to_the_same_bytes() {
    disturbed(29);
}

#[test]
#[ignore = "for the night: every call"]
fn a_run_killed_at_every_call_resumes_to_the_same_bytes() {
    disturbed(1);
}
