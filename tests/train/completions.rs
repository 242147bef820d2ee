//! What ends a completion, what of it a reward sees, and what right answers it is held against.
#![cfg(feature = "hf")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gradus::Device;
use gradus_rft::reward::{RewardInput, RewardOutcome};
use gradus_rft::train::metrics::Metric;
use gradus_rft::train::{RunConfig, Trainer};
use serde_json::{Map, Value, json};

/// A folder with a golden model of 256 ids and a tokenizer that gives each a word; every eighth is a
/// special token.
fn model(folder: &Path) -> PathBuf {
    let golden = crate::common::golden_folder().join("models/llama");
    let to = folder.join("model");
    std::fs::create_dir(&to).unwrap();
    for file in std::fs::read_dir(golden).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    let name = |i: usize| if i.is_multiple_of(8) { format!("<s{i}>") } else { format!("w{i}") };
    let vocab: Map<String, Value> = (0..256).map(|i| (name(i), json!(i))).collect();
    let special = |i: usize| {
        json!({"id": i, "content": name(i), "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": (0..32).map(|i| special(8 * i)).collect::<Vec<_>>(),
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w1"},
    });
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    to
}

fn trainer(folder: &Path, rows: &str, settings: &[&str]) -> gradus::Result<Trainer> {
    let data = folder.join("rows.jsonl");
    std::fs::write(&data, rows).unwrap();
    let mut config = RunConfig::pretrained();
    config.model.path = model(folder).to_string_lossy().into_owned();
    config.data.path = data.to_string_lossy().into_owned();
    config.data.heldout_share = 0.0;
    config.reward.functions = vec!["exact".into()];
    for set in ["rl.prompts=2", "rl.group=8", "rl.max_new_tokens=24"].iter().chain(settings) {
        config.apply_set(set)?;
    }
    Trainer::on(config, Device::Cpu)
}

const ROWS: &str = "{\"prompt\": \"w3 w4\", \"answer\": \"x\"}\n";

#[test]
fn special_tokens_are_left_out_unless_asked_for() {
    for (setting, kept) in
        [("reward.skip_special_tokens=true", false), ("reward.skip_special_tokens=false", true)]
    {
        let folder = tempfile::tempdir().unwrap();
        let (sampled, ..) = trainer(folder.path(), ROWS, &[setting]).unwrap().collect(0).unwrap();
        let text = sampled.texts.concat();
        assert!(text.contains('w'));
        assert_eq!(text.contains("<s"), kept, "{text}");
    }
}

#[test]
fn texts_end_completions_and_stay_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let (free, ..) = trainer(folder.path(), ROWS, &[]).unwrap().collect(0).unwrap();
    // A word that some completion holds, within it.
    let words = |text: &String| text.split_whitespace().nth(5).map(str::to_owned);
    let word = free.texts.iter().find_map(words).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let stop = format!("rl.stop=[\"never written\", \" {word}\"]");
    let trainer = trainer(folder.path(), ROWS, &[&stop]).unwrap();
    let (ended, ..) = trainer.collect(0).unwrap();
    let mut stopped = 0;
    let each = ended.rollouts.iter().flatten().zip(&ended.texts);
    for ((rollout, text), free) in each.zip(free.rollouts.iter().flatten()) {
        let (got, before) = (&rollout.tokens, &free.tokens[..rollout.tokens.len()]);
        assert_eq!(got, before, "the same draws up to there");
        let stops = text.contains(&format!(" {word}"));
        assert!(if stops { rollout.finished } else { rollout == free }, "{text}");
        stopped += stops as usize;
    }
    assert!(stopped > 0);
    for wrong in [String::new(), "x".repeat(300)] {
        let mut config = RunConfig::default();
        config.rl.stop = vec![wrong];
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("rl.stop"), "{error}");
    }
}

/// Completions that were cut off carry no loss: where all are, nothing moves.
#[test]
fn truncated_completions_can_be_masked() {
    let moved = |mask: &str| {
        let mut config = RunConfig::default();
        let set = [
            "model.hidden=32",
            "model.head_dim=8",
            "model.ffn=64",
            "rl.prompts=4",
            "rl.max_new_tokens=2",
            mask,
        ];
        set.iter().for_each(|set| config.apply_set(set).unwrap());
        let even = |input: &RewardInput<'_>| {
            Ok(RewardOutcome::Score(
                (input.completion.len() + input.completion.contains('1') as usize) as f32,
            ))
        };
        let mut trainer: Trainer = Trainer::on(config, Device::Cpu).unwrap().with_reward(even);
        let (_, mut records, _) = trainer.collect(0).unwrap();
        let finished = records.iter().filter(|r| r.finished).count();
        records.retain(|r| !r.finished);
        assert!(records.len() > 4 && finished < 32);
        // Groups of what is left have rewards that differ.
        trainer.rl_step(0, records).unwrap().get(Metric::GradNorm).unwrap()
    };
    assert!(moved("rl.mask_truncated_completions=false") > 0.0);
    assert_eq!(moved("rl.mask_truncated_completions=true"), 0.0);
}

/// Fields that a reward sees of the row.
fn fields(rows: &str, settings: &[&str]) -> Result<Map<String, Value>, String> {
    let folder = tempfile::tempdir().unwrap();
    let trainer = trainer(folder.path(), rows, settings).map_err(|e| e.to_string())?;
    let seen = Arc::new(Mutex::new(Map::new()));
    let sink = seen.clone();
    let trainer = trainer.with_reward(move |input: &RewardInput<'_>| {
        *sink.lock().unwrap() = input.fields.clone();
        Ok(RewardOutcome::Score(0.0))
    });
    trainer.collect(0).map_err(|e| e.to_string())?;
    let seen = seen.lock().unwrap().clone();
    Ok(seen)
}

#[test]
fn right_answers_are_taken_from_any_column() {
    let row = json!({"prompt": "w3", "answer": "wrong", "solution": "s", "reward_model": {"ground_truth": "g"},
        "found": "[1, 2, 3, 4]"});
    let rows = row.to_string();
    for (path, want) in [("solution", json!("s")), ("reward_model.ground_truth", json!("g"))] {
        let got = fields(&rows, &[&format!("reward.answer={path}")]).unwrap();
        assert_eq!(got["answer"], want);
    }
    // A list as a JSON text, where the reward expects a list.
    let got = fields(&rows, &["reward.answer=found", "reward.functions=[iou]"]).unwrap();
    assert_eq!(got["boxes"], json!([1, 2, 3, 4]));
    let boxes = json!({"prompt": "w3", "boxes": "[[1, 2, 3, 4]]"}).to_string();
    let got = fields(&boxes, &["reward.functions=[iou]"]).unwrap();
    assert_eq!(got["boxes"], json!([[1, 2, 3, 4]]));
    let error = fields(&rows, &["reward.answer=gone"]).unwrap_err();
    assert!(
        error.contains("row 0") && error.contains("`gone`") && error.contains("solution"),
        "{error}"
    );
}
