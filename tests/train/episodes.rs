//! Demonstrations that are episodes.

use gradus::Device;
use gradus_rft::train::Trainer;
use gradus_rft::train::metrics::Metric;
use gradus_rft::train::record::{Record, TokenClass};

use super::env::{config, rows};

/// The text of those of a record's tokens that `of` takes; ends are shown as `$`.
fn text(record: &Record, of: fn(TokenClass) -> bool) -> String {
    let ids = record.ids.iter().zip(&record.class).filter(|(_, class)| of(**class));
    ids.map(|(&id, _)| if id == 255 { '$' } else { id as u8 as char }).collect()
}

/// What is said in a demonstration is read and not learned, answers end as sampled ones do, and the record
/// is that of an episode but for who wrote it.
#[test]
fn demonstrations_of_several_turns_are_learned_as_episodes_are_played() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "calc");
    let keys = ["phases=sft", "env.kind=tool", "reward.functions=numeric", "sft.batch=32"];
    let mut config = config(&data, &keys);
    config.rl.stop = vec![">>".into()];
    let mut trainer = Trainer::<f32>::on(config.clone(), Device::Cpu).unwrap();
    let records = trainer.demonstrations(0).unwrap();
    let mut asked = 0;
    for record in &records {
        let (all, learned) = (text(record, |_| true), text(record, TokenClass::is_scored));
        let Some((prompt, call)) = all.split_once("=<<") else {
            // It guesses, and nothing is said.
            assert_eq!(all.split_once('=').unwrap().1, learned);
            continue;
        };
        asked += 1;
        let value: String = call.split('\n').nth(1).unwrap().into();
        assert_eq!(all, format!("{prompt}=<<{prompt}>>\n{value}\n{value}$"));
        assert_eq!(learned, format!("<<{prompt}>>{value}$"));
    }
    assert!(asked > 3 && asked < records.len(), "{asked} of {}", records.len());
    let tokens: usize = records.iter().map(|record| record.scored().count()).sum();
    let metrics = trainer.sft_step(0).unwrap();
    assert_eq!(metrics.get(Metric::NumTokens), Some(tokens as f64));
    // Prompts are learned where that is asked for, and what is said still is not.
    config.sft.prompt_weight = 0.5;
    let trainer = Trainer::<f32>::on(config, Device::Cpu).unwrap();
    for (whole, record) in trainer.demonstrations(0).unwrap().iter().zip(&records) {
        let (prompt, learned) =
            (text(whole, |class| class == TokenClass::Context), text(whole, TokenClass::is_scored));
        assert!(prompt.ends_with('='), "{prompt}");
        assert_eq!(learned, prompt + &text(record, TokenClass::is_scored));
    }
}

#[test]
fn episodes_that_cannot_be_learned_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let calc = rows(folder.path(), "calc");
    let odd = folder.path().join("odd.jsonl");
    let roles = |last: &str| {
        let message = |role: &str| serde_json::json!({ "role": role, "content": "1" });
        let completion = [message("assistant"), message("user"), message(last)];
        let row = |i: usize| {
            let row = serde_json::json!({ "prompt": format!("{i}="), "answer": 1, "completion": completion });
            row.to_string() + "\n"
        };
        std::fs::write(&odd, (0..40).map(row).collect::<String>()).unwrap();
        format!("data.path={}", odd.display())
    };
    let tool = ["env.kind=tool", "reward.functions=numeric", "phases=sft"];
    let refused = |data: &str, keys: &[&str]| {
        let error = Trainer::<f32>::on(config(data, keys), Device::Cpu).err().unwrap();
        error.to_string()
    };
    let error = refused(&calc, &tool[1..]);
    assert!(
        error.contains("`env.kind`: the row of the prompt") && error.contains("holds an episode"),
        "{error}"
    );
    let error = refused(&roles("user"), &tool);
    assert!(error.contains("expected a text or messages"), "{error}");
    // A run that learns no demonstration does not ask for them.
    let data = roles("assistant");
    Trainer::<f32>::on(config(&data, &tool), Device::Cpu).unwrap();
    Trainer::<f32>::on(config(&data, &["reward.functions=numeric"]), Device::Cpu).unwrap();
}
