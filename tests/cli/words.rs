//! What people read: the end of a run, samples, scores, errors about foreign text.
#![cfg(feature = "hf")]

use std::path::{Path, PathBuf};

use super::runs::{gradus, latest, must, text};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    crate::common::root().join("tests/golden/models").join(name)
}

/// A copy of a golden folder with one more file.
fn copy(folder: &Path, name: &str, file: &str, content: &str) -> String {
    let model = folder.join("model");
    std::fs::create_dir_all(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(name).join(file), model.join(file)).unwrap();
    }
    std::fs::write(model.join(file), content).unwrap();
    model.to_string_lossy().into_owned()
}

/// A reward that says `score` (JSON) of everything.
fn constant(folder: &Path, score: &str) -> String {
    let path = folder.join("constant.py");
    let text = format!(
        "import json, sys\nfor line in sys.stdin:\n    id = json.loads(line)['id']\n    \
         print('{{\"id\": %d, \"score\": {score}}}' % id, flush=True)\n"
    );
    std::fs::write(&path, text).unwrap();
    format!("cmd:python3 {}", path.display())
}

fn shown(arguments: &[&str]) -> String {
    must(gradus(&[arguments, &["--set", "rl.max_new_tokens=6"]].concat()))
}

/// A prompt of one's own is judged by nothing unless a reward was named, and the reward's failure is
/// shown with its reason.
#[test]
fn a_sample_says_right_or_wrong_only_where_something_judged_it() {
    let llama = golden("llama");
    let base = ["sample", "--model", llama.to_str().unwrap(), "--prompt", "3+4=", "-n", "1"];
    let plain = shown(&base);
    for word in ["wrong", "right", "no opinion", "score"] {
        assert!(!plain.contains(word), "{word}: {plain}");
    }
    assert!(plain.contains("log-prob"), "{plain}");
    // There is no row with an answer behind the prompt.
    let failing = shown(&[&base[..], &["--reward", "numeric"]].concat());
    assert!(failing.contains("reward failed: the row has no field `answer`"), "{failing}");
    let folder = tempfile::tempdir().unwrap();
    for (score, word) in [("null", "no opinion"), ("1", "score 1.000"), ("0.5", "score 0.500")] {
        let given = shown(&[&base[..], &["--reward", &constant(folder.path(), score)]].concat());
        assert!(given.contains(word), "{score}: {given}");
    }
    // What a command gives may have any range.
    for (reward, word) in [("format:^never$", "wrong"), ("2*format:^never$", "score 0.000")] {
        let given = shown(&[&base[..], &["--reward", reward]].concat());
        assert!(given.contains(word), "{reward}: {given}");
    }
}

#[test]
fn nothing_to_ask_is_refused() {
    let llama = golden("llama");
    let output = gradus(&["sample", "--model", llama.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("--prompt TEXT, --chat or --data FILE"), "{}", text(&output));
}

/// Temperature 0 is greedy, settings of the folder are defaults, `--set` and `--temperature` win, and
/// a key that a sample does not read is refused.
#[test]
fn temperature_and_generation_settings_reach_the_sampler() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
        "repetition_penalty": 1.1});
    let model = copy(folder.path(), "llama", "generation_config.json", &config.to_string());
    let base = ["sample", "--model", &model, "--prompt", "3+4=", "-n", "2"];
    let from_folder = shown(&base);
    for part in ["temperature 0.7, top-k 20, top-p 0.8", "repetition_penalty = 1.1 is not applied"]
    {
        assert!(from_folder.contains(part), "{from_folder}");
    }
    let set = shown(&[&base[..], &["--set", "rl.temperature=0.3"]].concat());
    assert!(set.contains("temperature 0.3, top-k 20"), "{set}");
    let greedy = shown(&[&base[..], &["--temperature", "0"]].concat());
    assert!(greedy.contains("greedy"), "{greedy}");
    assert_eq!(greedy.matches("log-prob").count(), 1, "all greedy answers are one: {greedy}");
    assert_eq!(greedy, shown(&[&base[..], &["--temperature", "0"]].concat()));
    let plain = copy(folder.path(), "llama", "generation_config.json", "{}");
    assert!(shown(&["sample", "--model", &plain, "--prompt", "1"]).contains("greedy"));
    for (arguments, says) in [
        (["--set", "eval.temperature=0"], "--temperature"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
    ] {
        let output = gradus(&[&base[..], &arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{arguments:?}: {}", text(&output));
    }
}

/// A dense model is scored and sampled as it is stored; NF4 only where it is asked for.
#[test]
fn weights_are_as_stored_unless_asked() {
    let (llama, packed) = (golden("llama"), golden("llama-bnb-4bit"));
    let ask = |model: &Path, more: &[&str]| {
        let base = ["sample", "--model", model.to_str().unwrap(), "--prompt", "3+4=", "-n", "1"];
        shown(&[&base[..], more].concat())
    };
    assert!(ask(&llama, &[]).contains("weights f32"), "{}", ask(&llama, &[]));
    assert!(ask(&packed, &[]).contains("weights nf4"));
    let quantized = ask(&llama, &["--set", "quantize.type=nf4"]);
    assert!(quantized.contains("weights nf4"), "{quantized}");
    let logp = |text: &str| text.split("log-prob ").nth(1).unwrap().trim().to_string();
    assert_ne!(logp(&ask(&llama, &[])), logp(&quantized));
}

#[test]
fn a_score_over_nothing_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, "{\"prompt\": \"3+4=\"}\n{\"prompt\": \"3+5=\"}\n").unwrap();
    let mute = constant(folder.path(), "null");
    let llama = golden("llama");
    let base = ["eval", "--model", llama.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let base = [&base[..], &["--set", "rl.max_new_tokens=4", "--reward", &mute]].concat();
    let output = gradus(&base).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let text = text(&output);
    assert!(text.contains("none of 2 completions was scored: no opinion about 2"), "{text}");
}

/// Several samples of a prompt vote; one does not, and the most likely one is always the same.
#[test]
fn a_vote_is_taken_over_the_samples_of_a_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, "{\"prompt\": \"3+4=\"}\n{\"prompt\": \"3+5=\"}\n").unwrap();
    let llama = golden("llama");
    let base = ["eval", "--model", llama.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let one_token = ["--set", "rl.max_new_tokens=1", "--reward", "format:^[^e]*$"];
    let eval = |more: &[&str]| gradus(&[&base[..], &one_token, more].concat()).output().unwrap();
    let alone = eval(&[]);
    assert!(alone.status.success() && !text(&alone).contains("majority"), "{}", text(&alone));
    let vote = text(&eval(&["--vote", "5", "--temperature", "1"]));
    assert!(vote.contains("over 10 completions"), "{vote}");
    let line = vote.lines().find(|line| line.starts_with("majority vote ")).unwrap();
    assert!(line.ends_with(" of 5 samples a prompt"), "{vote}");
    let greedy = eval(&["--vote", "5", "--temperature", "0"]);
    assert_eq!(greedy.status.code(), Some(2));
    assert!(text(&greedy).contains("eval.temperature"), "{}", text(&greedy));
}

/// With several rewards a run writes the mean of each, and how they are combined is the
/// configuration's; with none there is nothing to combine.
#[test]
fn the_parts_of_a_reward_are_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    let rows: String =
        (0..40).map(|i| json!({"prompt": format!("{i}=")}).to_string() + "\n").collect();
    std::fs::write(&data, rows).unwrap();
    let (out, llama) = (folder.path().join("runs"), golden("llama"));
    let base = ["train", "--model", llama.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let rewards = ["--reward", "format:.", "--reward", "3*diversity:1", "--out"];
    let sets = [
        "rl.max_new_tokens=4",
        "rl.steps=1",
        "rl.prompts=2",
        "rl.group=4",
        "lora.rank=2",
        "reward.clamp_parts=[0,0.5]",
        "reward.clamp=[-1,1]",
    ];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let mut command = gradus(&[&base[..], &rewards, &[out.to_str().unwrap()]].concat());
    command.args(sets);
    must(command);
    let run = out.join("latest");
    let text_of = |name: &str| std::fs::read_to_string(run.join(name)).unwrap();
    let row = text_of("metrics.jsonl").lines().last().unwrap().to_string();
    let row: serde_json::Value = serde_json::from_str(&row).unwrap();
    let mean = |name: &str| row[format!("rewards/{name}/mean")].as_f64().unwrap();
    assert!((0.0..=0.5).contains(&mean("format")) && (0.0..=0.5).contains(&mean("diversity")));
    assert!(row["reward"].as_f64().unwrap() <= 1.0, "{row}");
    let refused = gradus(&["train", "--set", "reward.combine=min"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("reward.combine") && text(&refused).contains("name them"));
}

#[test]
fn a_configuration_is_explained_with_the_values_a_run_would_take() {
    let explained = must(gradus(&["config", "--explain", "--model", "anywhere"]));
    let value = |key: &str| {
        let line = explained.lines().find(|l| l.starts_with(&format!("{key} ="))).unwrap();
        line.split('#').next().unwrap().split('=').nth(1).unwrap().trim().to_string()
    };
    let of_run = gradus_rft::train::RunConfig::pretrained();
    assert_eq!(value("rl.learning_rate").trim_matches('"').parse(), Ok(of_run.rl.learning_rate));
    assert_eq!(value("model.path"), "\"anywhere\"");
    let set = must(gradus(&["config", "--explain", "--set", "rl.steps=7"]));
    assert!(set.contains("rl.steps = 7 "), "{set}");
}

/// Steps without a spread say so; after some in a row a person is told what to do.
#[test]
fn steps_without_a_difference_between_rewards_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String =
        (0..400).map(|i| json!({"prompt": format!("{i}=")}).to_string() + "\n").collect();
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, rows).unwrap();
    let same = constant(folder.path(), "1");
    let (out, llama) = (folder.path().join("runs"), golden("llama"));
    let base = ["train", "--model", llama.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let more = ["--reward", &same, "--out", out.to_str().unwrap()];
    let sets = ["rl.max_new_tokens=4", "rl.steps=6", "rl.prompts=2", "rl.group=2", "lora.rank=2"];
    let mut command = gradus(&[&base[..], &more].concat());
    for set in sets {
        command.args(["--set", set]);
    }
    let shown = must(command);
    for part in ["all rewards equal", "5 steps in a row", "in 6 of 6 RL steps", "no clear change"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("NaN"), "{shown}");
    let summary = std::fs::read(latest(&out).join("summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!((&summary["flat_steps"], &summary["rl_steps"]), (&json!(6), &json!(6)));
}

/// Samples of chat models show the question and the answer, not the template around them.
#[test]
fn chat_samples_show_question_and_answer() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}";
    let model = copy(folder.path(), "llama", "chat_template.jinja", template);
    let asked = shown(&["sample", "--model", &model, "--prompt", "what is 3+4?", "-n", "1"]);
    assert!(asked.contains("question  what is 3+4?\n"), "{asked}");
    assert!(!asked.contains("<|"), "{asked}");
    let data = folder.path().join("rows.jsonl");
    let row = |i: i32| json!({"prompt": format!("{i}+1="), "answer": (i + 1).to_string()});
    let rows: String = (0..100).map(|i| row(i).to_string() + "\n").collect();
    std::fs::write(&data, rows).unwrap();
    let given =
        ["sample", "--model", &model, "--data", data.to_str().unwrap(), "--reward", "numeric"];
    let given = shown(&given);
    assert!(given.contains("question  ") && given.contains("+1=\n"), "{given}");
    assert!(
        given.contains("(wrong, cut off at rl.max_new_tokens") && !given.contains("<|"),
        "{given}"
    );
}

/// No control character of a foreign file, argument, worker or model reaches the terminal.
#[test]
fn foreign_text_cannot_move_the_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let evil = "\u{1b}[2J\u{9b}31m\u{7}\u{202e}";
    let path = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_string_lossy().into_owned()
    };
    let toml = path("run.toml", &format!("\"{evil}\" = 1\n"));
    let rows = path("rows.jsonl", &format!("{{\"{}\": \"a\"}}\n", "\\u001b[2J\\u009b31m"));
    let config = json!({"model_type": evil, "architectures": [evil]}).to_string();
    let odd = folder.path().join("odd");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("config.json"), config).unwrap();
    let llama = golden("llama").to_string_lossy().into_owned();
    let worker = format!("cmd:printf '{}\\n'", "\\033[2J\\033]0;title\\007");
    let set = format!("rl.{evil}=1");
    for arguments in [
        vec!["train", "--config", &toml],
        vec!["train", "--set", &set],
        vec!["train", "--model", evil],
        vec!["train", "--model", odd.to_str().unwrap()],
        vec!["train", "--model", &llama, "--data", &rows, "--reward", "numeric"],
        vec!["train", "--model", &llama, "--data", &rows, "--reward", evil],
        vec!["sample", "--model", &llama, "--prompt", "a", "--reward", &worker],
        vec!["sample", "--model", &llama, "--prompt", evil],
    ] {
        let output = gradus(&arguments).output().unwrap();
        let text = text(&output);
        let raw = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
        assert!(!text.contains(raw), "{arguments:?}: {text:?}");
    }
}
