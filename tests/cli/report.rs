//! `gradus report` and `gradus compare`, and the samples that a run keeps for them.

use std::fs;
use std::path::Path;

use crate::runs::{gradus, latest, must, read_of, text};

/// A short run of the demo; returns its folder.
fn run(out: &Path, more: &[&str]) -> std::path::PathBuf {
    let mut command = gradus(&["train", "--out", out.to_str().unwrap()]);
    let base = ["sft.demos=64", "sft.epochs=1", "rl.steps=4", "eval.every=2", "eval.max_prompts=4"];
    for set in read_of(&base, more).iter().map(String::as_str).chain(more.iter().copied()) {
        command.args(["--set", set]);
    }
    must(command);
    latest(out)
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_page_about_runs_is_whole_and_runs_are_compared() {
    let out = tempfile::tempdir().unwrap();
    let (first, second) = (run(&out.path().join("a"), &[]), run(&out.path().join("b"), &[]));
    let third = run(&out.path().join("c"), &["rl.learning_rate=1e-4"]);
    // As it came, after SFT, in 4 bits, and twice in RL, of which the last is the end.
    let kept = lines(&first.join("samples.jsonl"));
    let steps: Vec<u64> = kept.iter().map(|row| row["global"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 1, 1, 3, 5]);
    assert!(kept.iter().all(|row| !row["samples"].as_array().unwrap().is_empty()));

    let page = out.path().join("page.html");
    let arguments = [&first, &page].map(|path| path.to_str().unwrap());
    must(gradus(&["report", arguments[0], "--out", arguments[1]]));
    let shown = fs::read_to_string(&page).unwrap();
    assert!(shown.starts_with("<!doctype html>") && shown.ends_with("</html>\n"));
    for word in ["<figcaption>reward<", "<figcaption>entropy<", "Samples:", "rl.learning_rate"] {
        assert!(shown.contains(word), "{word}");
    }
    assert!(!shown.contains("<script") && !shown.contains("src="), "the page loads something");
    let elsewhere = shown.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "");
    assert!(!elsewhere.contains("http"), "the page names an address");

    let compared =
        |a: &Path, b: &Path| must(gradus(&["compare", a.to_str().unwrap(), b.to_str().unwrap()]));
    let same = compared(&first, &second);
    assert!(same.contains("the same numbers in all"), "{same}");
    let other = compared(&first, &third);
    assert!(other.contains("rl.learning_rate") && other.contains("first difference"), "{other}");
}

#[test]
fn texts_of_a_run_are_no_markup_and_broken_runs_are_named() {
    let out = tempfile::tempdir().unwrap();
    let folder = run(&out.path().join("runs"), &[]);
    let evil = r#"{"global":3,"phase":"<i>","score":1.0,"samples":[{"prompt":"</pre><script>alert(1)</script>","completion":"<b>&\u001b","logp":0.0,"score":1.0}]}"#;
    fs::write(folder.join("samples.jsonl"), format!("{evil}\n{{\"global\":4")).unwrap();
    let page = folder.join("report.html");
    must(gradus(&["report", folder.to_str().unwrap()]));
    let shown = fs::read_to_string(&page).unwrap();
    assert!(shown.contains("&lt;script&gt;alert(1)") && !shown.contains("<script"), "{shown}");
    assert!(shown.contains("&lt;b&gt;&amp;\u{fffd}") && !shown.contains('\u{1b}'));

    // A run that is under way has no summary, and maybe half a row.
    fs::remove_file(folder.join("summary.json")).unwrap();
    let metrics = folder.join("metrics.jsonl");
    let half = fs::read_to_string(&metrics).unwrap() + "{\"global\":99";
    fs::write(&metrics, &half).unwrap();
    must(gradus(&["report", folder.to_str().unwrap()]));
    assert!(fs::read_to_string(&page).unwrap().contains("has not ended"));
    fs::write(&metrics, half + "\n").unwrap();
    let nothing = out.path().to_str().unwrap();
    for (arguments, words) in [
        (&["report", folder.to_str().unwrap()][..], "metrics.jsonl"),
        (&["report", nothing], "no folder of a run"),
        (&["compare", nothing], "2"),
    ] {
        let done = gradus(arguments).output().unwrap();
        assert!(!done.status.success() && text(&done).contains(words), "{}", text(&done));
    }
}
