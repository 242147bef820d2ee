//! `gradus env check`: what it plays, and what it finds.

use std::path::Path;

use gradus_rft::train::RunConfig;
use gradus_rft::train::env::{Checked, check};

use super::env::rows;

fn checked(kind: &str, data: &str, settings: &[&str]) -> Checked {
    let mut config = RunConfig::default();
    config.env.kind = kind.into();
    let settings = settings.iter().chain(&["reward.workers=1", "reward.timeout=5"]);
    settings.for_each(|setting| config.apply_set(setting).unwrap());
    config.apply_set(data).unwrap();
    config.validate().unwrap();
    check(&config, 3).unwrap()
}

#[test]
fn demonstrations_are_played_and_random_text_behind_them() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, toy, says) in [
        ("tool", "calc", "says    (over)   reward 0"),
        ("grid", "grid", "says    (over)   reward 1"),
        ("ask", "ask", "says    (over)   reward "),
        ("zoom", "zoom", "says    (over)   reward "),
    ] {
        let data = rows(folder.path(), toy);
        let Checked { transcript, faults } = checked(kind, &data, &["env.max_turns=5"]);
        assert!(faults.is_empty(), "{kind}: {faults:?}");
        assert_eq!(transcript.matches("  prompt  ").count(), 3, "{transcript}");
        assert!(kind == "grid" || transcript.contains(says), "{transcript}");
        let again = checked(kind, &data, &["env.max_turns=5"]).transcript;
        assert_eq!(again, transcript);
        let other = checked(kind, &data, &["env.max_turns=5", "seed=7"]).transcript;
        assert_ne!(other, transcript);
    }
    // Rows that an environment cannot read are named.
    let data = rows(folder.path(), "calc");
    let faults = checked("grid", &data, &[]).faults;
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults[1].contains("row 1: row field `start` is null"), "{faults:?}");
}

/// Says its turn and the answer; in some modes it does something that it must not.
#[cfg(unix)]
const WORLD: &str = r#"
import json, sys

mode, begun = sys.argv[1], 0
for line in sys.stdin:
    r = json.loads(line)
    if r["op"] == "end":
        continue
    reply = {"id": r["id"]}
    if r["op"] == "begin":
        begun += 1
        if mode == "closed":
            reply["error"] = "no such world"
    elif mode == "refuses" and r["turn"] == 2:
        reply["error"] = "not this one"
    elif mode == "words":
        print("hello", flush=True)
    else:
        told = begun if mode == "drifts" else r["turn"]
        reply["says"] = f"{told}:{r['answer']}"
        reply["reward"] = 1e39 if mode == "large" else 0.5
    print(json.dumps(reply), flush=True)
"#;

#[cfg(unix)]
fn world(folder: &Path, mode: &str) -> Checked {
    let script = folder.join("world.py");
    std::fs::write(&script, WORLD).unwrap();
    let kind = format!("cmd:python3 {} {mode}", script.display());
    checked(&kind, &rows(folder, "calc"), &["env.max_turns=3", "reward.startup=60"])
}

#[cfg(unix)]
#[test]
fn what_a_program_does_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let plain = world(folder.path(), "plain");
    assert!(plain.faults.is_empty(), "{:?}", plain.faults);
    assert_eq!(plain.transcript.matches("reward 0.5").count(), 9, "{}", plain.transcript);
    for (mode, words) in [
        ("closed", "row 0: it could not begin: no such world"),
        ("refuses", "row 2, turn 2: not this one"),
        ("words", "row 0, turn 1: the environment's worker was lost"),
        ("large", "row 1, turn 3: the reward is inf"),
        ("drifts", "row 2: played alone it is told something else"),
    ] {
        let faults = world(folder.path(), mode).faults;
        assert!(faults.iter().any(|fault| fault.contains(words)), "{mode}: {faults:?}");
    }
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "calc");
    for (kind, words) in [
        ("own", "is given in Rust"),
        ("rounds", "says nothing that could be checked"),
        ("tools", "is not one of tool, grid"),
    ] {
        let mut config = RunConfig::default();
        config.apply_set(&data).unwrap();
        config.env.kind = kind.into();
        let error = check(&config, 3).unwrap_err().to_string();
        assert!(error.contains("`env.kind`") && error.contains(words), "{error}");
    }
}
