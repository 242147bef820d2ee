//! `gradus env check`, and models that play.

use crate::runs::{gradus, must, text};

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

/// A world that says `hm` once and gives half a point.
const WORLD: &str = r#"
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["op"] == "end":
        continue
    reply = {"id": asked["id"]}
    if asked["op"] == "step":
        reply |= {"says": "hm", "reward": 0.5} if asked["turn"] == 1 else {"reward": 0.0}
    print(json.dumps(reply), flush=True)
"#;

/// A model that was not trained in an environment plays in it, to be looked at and to be scored.
#[test]
fn a_model_is_sampled_and_scored_in_an_environment() {
    let folder = tempfile::tempdir().unwrap();
    // The last one repeats a prompt: an evaluation of a file scores each of its rows.
    let row = |i: usize| format!("{{\"prompt\": \"{}?\", \"answer\": \"{i}\"}}\n", i % 3);
    let rows: String = (0..4).map(row).collect();
    std::fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    std::fs::write(folder.path().join("world.py"), WORLD).unwrap();
    let model = crate::common::root().join("tests/golden/models/llama");
    let asked = |command: &str, more: &[&str]| {
        let mut command = gradus(&[command, "--model", model.to_str().unwrap()]);
        command.args(["--data", "rows.jsonl", "--set", "rl.max_new_tokens=4"]).args(more);
        command.current_dir(folder.path());
        command
    };
    let world = ["--env", "cmd:python3 world.py", "--set", "env.max_turns=3"];
    let more = [&world[..], &["--set", "data.heldout_share=1"]].concat();
    let shown = must(asked("sample", &more));
    // The folder asks for the likeliest tokens, which are shown once.
    assert_eq!(shown.matches("hm").count(), 3, "{shown}");
    assert_eq!(shown.matches("score 0.500").count(), 3, "{shown}");
    let shown = must(asked("eval", &world));
    assert!(shown.contains("accuracy 0.5000") && shown.contains("over 4 completions"), "{shown}");
    for (command, more, words) in [
        ("sample", &["--env", "tool", "--chat", "--reward", "numeric"][..], "a person answers"),
        ("sample", &["--set", "env.max_turns=3", "--reward", "numeric"], "env.max_turns"),
        ("eval", &["--env", "tol", "--reward", "numeric"], "did you mean tool?"),
    ] {
        let shown = text(&asked(command, more).output().unwrap());
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

/// What `python3 serve.py` with `arguments` writes.
fn served(arguments: &[&str]) -> String {
    let mut python = std::process::Command::new("python3");
    python.arg("serve.py").args(arguments).current_dir(adapters());
    must(python)
}

fn adapters() -> std::path::PathBuf {
    crate::common::root().join("examples/envs")
}

/// Environments in the shapes of other trainers, through `examples/envs/serve.py`: each says the same.
#[test]
fn environments_of_other_trainers_play_along() {
    let folder = tempfile::tempdir().unwrap();
    let seeds = folder.path().join("seeds.jsonl");
    std::fs::write(&seeds, served(&["gym", "worlds:GymWorld", "--rows", "3"])).unwrap();
    let open = [
        "openenv",
        "worlds:OpenWorld",
        "--action",
        "worlds:open_action",
        "--show",
        "worlds:open_show",
    ];
    for kind in [
        &["trl", "worlds:TrlWorld"][..],
        &["skyrl", "worlds:SkyWorld"],
        &["tinker", "worlds:TinkerWorld"],
        &["verifiers", "worlds:VerifiersWorld"],
        &["gym", "worlds:GymWorld"],
        &open,
    ] {
        let rows = served(&[kind, &["--rows", seeds.to_str().unwrap()]].concat());
        // The number of seed 0 is 3: a low guess, the right one, and what a tool says of them.
        let tool = |n: usize| {
            format!(
                "<tool_call>{{\"name\":\"guess\",\"arguments\":{{\"number\":{n}}}}}</tool_call>"
            )
        };
        let answers = if kind[0] == "trl" { [tool(1), tool(3)] } else { ["1".into(), "3".into()] };
        let rows: Vec<serde_json::Value> =
            rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
        assert!(rows[0]["prompt"].as_str().unwrap().contains("Guess my number"), "{rows:?}");
        assert_eq!(rows[0]["tools"].is_array(), kind[0] == "trl", "{rows:?}");
        let mut row = rows[0].clone();
        let said = serde_json::json!({"role": "user", "content": "higher"});
        let says = |text: &str| serde_json::json!({"role": "assistant", "content": text});
        row["completion"] = serde_json::json!([says(&answers[0]), said, says(&answers[1])]);
        let data = folder.path().join("rows.jsonl");
        std::fs::write(&data, format!("{row}\n{}\n", rows[1])).unwrap();
        let world = format!("cmd:python3 serve.py {}", kind.join(" "));
        let mut check = gradus(&["env", "check", &world, "--data", data.to_str().unwrap()]);
        check.current_dir(adapters());
        let told = must(check);
        assert!(told.contains("nothing is wrong"), "{kind:?}: {told}");
        let end = if kind[0] == "trl" { "\"right\"   reward 1" } else { "(over)   reward 1" };
        let first = told.split("row 1").next().unwrap();
        assert!(first.contains("\"higher\"   reward 0") && first.contains(end), "{kind:?}: {told}");
    }
}
