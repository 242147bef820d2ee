//! `gradus env check`.

use crate::runs::{gradus, must};

#[test]
fn an_environment_is_checked_before_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("grid.jsonl");
    std::fs::write(&rows, must(gradus(&["toy", "grid", "--rows", "5"]))).unwrap();
    let data = rows.to_str().unwrap();
    let check = |more: &[&str]| {
        let mut command = gradus(&["env", "check"]);
        let done = command.args(more).args(["--data", data]).output().unwrap();
        let said = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
        (done.status.code(), said)
    };
    let (code, [out, err]) = check(&["grid", "--rows", "2", "--set", "env.max_turns=3"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.matches("  answer  ").count() <= 6 && out.contains("nothing is wrong"), "{out}");
    let (code, [_, err]) = check(&["ask"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("breaks its rules") && err.contains("row field `hidden`"), "{err}");
    for (arguments, words) in [
        (&["gird"][..], "did you mean"),
        (&["grid", "--set", "rl.steps=3"], "reads env.*"),
        (&["own"], "is given in Rust"),
    ] {
        let (code, [_, err]) = check(arguments);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(words), "{err}");
    }
}
