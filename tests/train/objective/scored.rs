//! Learning from answers that a file has.
#![cfg(feature = "hf")]

use gradus::Device;
use gradus_rft::train::record::TokenClass;
use gradus_rft::train::step::{Scoring, score_records};
use gradus_rft::train::{Resume, RunConfig, Trainer, train};

use super::value;

/// A fresh byte model on rows of this text, two of them a step.
fn config(folder: &std::path::Path, rows: &str, settings: &[&str]) -> RunConfig {
    let data = folder.join("rows.jsonl");
    std::fs::write(&data, rows).unwrap();
    let mut config = super::config(&["phases=rl"]);
    config.out = folder.join("runs").to_string_lossy().into_owned();
    config.data.path = data.to_string_lossy().into_owned();
    config.data.heldout_share = 0.0;
    let shared = [
        "rl.prompts=2",
        "rl.max_new_tokens=4",
        "rl.source=data",
        "rl.lr_schedule=constant",
        "device=cpu",
    ];
    shared.iter().chain(settings).for_each(|s| config.apply_set(s).unwrap());
    config
}

fn trainer(rows: &str, settings: &[&str]) -> gradus::Result<Trainer> {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::on(config(folder.path(), rows, settings), Device::Cpu)?;
    super::sharpen(&mut trainer, 6.0);
    Ok(trainer)
}

const PAIRS: &str = "{\"prompt\": \"2+2=\", \"chosen\": \"4\", \"rejected\": \"five\"}\n\
                     {\"prompt\": \"3+4=\", \"chosen\": \"7\", \"rejected\": \"8?\"}\n";
const SCORED: &str = "{\"prompt\": \"2+2=\", \"completions\": [\"4\", \"5\", \"2+2\"], \"scores\": [1, 0, 0.5]}\n\
     {\"prompt\": \"3+4=\", \"completions\": [\"8\", \"7\"], \"scores\": [0, 1]}\n";
const LABELED: &str = "{\"prompt\": \"2+2=\", \"completion\": \"4\", \"label\": true}\n\
                       {\"prompt\": \"3+4=\", \"completion\": \"8\", \"label\": false}\n";
const CONTEXTS: &str = "{\"prompt\": \"21\", \"contexts\": [\"up 21:\", \"down 21:\"], \
                        \"completions\": [\"12\", \"21\"]}\n\
                        {\"prompt\": \"13\", \"contexts\": [\"up 13:\", \"down 13:\"], \
                        \"completions\": [\"13\", \"31\"]}\n";

/// Answers are the file's, each with its score, its end and the policy's log-probs; a row is a group.
#[test]
fn a_step_of_answers_is_a_batch_of_records() {
    let trainer = trainer(SCORED, &["rl.loss=copg"]).unwrap();
    let records = trainer.scored_answers(0).unwrap();
    let mut rewards: Vec<Vec<f32>> = vec![Vec::new(); 2];
    records.iter().for_each(|r| rewards[r.group as usize].push(r.reward));
    rewards.sort_by_key(Vec::len);
    assert_eq!(rewards, [vec![0.0, 1.0], vec![1.0, 0.0, 0.5]], "both rows, in a drawn order");
    let now = score_records(&trainer.model, &records, true, Scoring::at(1.0, 64)).unwrap();
    for (record, now) in records.iter().zip(now) {
        let text = |class| {
            let of = record.ids.iter().zip(&record.class).filter(|(_, c)| **c == class);
            of.map(|(id, _)| *id as u8).collect::<Vec<u8>>()
        };
        assert!([&b"2+2="[..], b"3+4="].contains(&&text(TokenClass::Prompt)[..]));
        let answer = text(TokenClass::Demo);
        let end = trainer.task.codec().stops()[0];
        assert_eq!(answer.last(), Some(&(end as u8)), "the end of sequence");
        assert_eq!(record.proximal_logp, now);
        assert!(record.scored().all(|t| record.entropy[t] > 0.0));
    }
    let epochs = trainer.scored_answers(1).unwrap();
    assert_eq!(epochs.len(), records.len(), "an epoch further, all rows again");
}

/// From the reference each loss has its known value, and steps on the same rows lower it: with full
/// weights, and with adapters on 4-bit ones.
#[test]
fn objectives_learn_from_a_file() {
    let ln2 = 2f64.ln();
    for (loss, rows, first) in [
        ("dpo", PAIRS, Some(ln2)),
        ("ipo", PAIRS, Some(25.0)),
        ("simpo", SCORED, None),
        ("kto", LABELED, Some(0.5)),
        // Σ (R − mean)² / (β·(K − 1)) with β 0.06, and the mean of the groups.
        ("copg", SCORED, Some((0.25 + 0.5) / 2.0 / 0.06)),
        ("prdp", SCORED, None),
        ("mml", SCORED, None),
        ("ce", SCORED, None),
        ("grpo", SCORED, Some(0.0)),
        ("info_nce", CONTEXTS, None),
    ] {
        for adapters in [false, true] {
            let loss = format!("rl.loss={loss}");
            let settings = [&*loss, "rl.learning_rate=1e-4"];
            let mut trainer = trainer(rows, &settings).unwrap();
            if adapters {
                trainer.quantize().unwrap();
            }
            let mut step = || {
                let records = trainer.scored_answers(0).unwrap();
                let values = trainer.rl_step(0, records).unwrap();
                assert_eq!(value(&values, "ratio_max_abs_dev"), 0.0, "{loss}: on-policy");
                value(&values, "loss")
            };
            let losses: Vec<f64> = (0..4).map(|_| step()).collect();
            if let Some(first) = first {
                assert!((losses[0] - first).abs() < 1e-5 * first.max(1.0), "{loss}: {losses:?}");
            }
            let falls = losses[3] < losses[0];
            assert!(falls || loss == "rl.loss=grpo", "{loss} {adapters}: {losses:?}");
        }
    }
}

/// KTO's zero is the KL of answers under prompts they were not written for.
#[test]
fn the_zero_of_kto_is_measured_on_other_prompts() {
    let right = LABELED.replace("false", "true");
    let mut trainer = trainer(&right, &["rl.loss=kto", "rl.learning_rate=1e-2"]).unwrap();
    let records = trainer.scored_answers(0).unwrap();
    trainer.rl_step(0, records).unwrap();
    // Answers are likelier now, under whatever prompt.
    let mut records = trainer.scored_answers(0).unwrap();
    records[1].reward = 0.0;
    let mut crossed = records.clone();
    for (record, other) in crossed.iter_mut().zip(records.iter().rev()) {
        let prompt = record.ids.len() - record.scored().count();
        let answer = other.ids.len() - other.scored().count();
        record.ids = [&record.ids[..prompt], &other.ids[answer..]].concat();
        record.class = [&record.class[..prompt], &other.class[answer..]].concat();
    }
    let sums = |trainer: &Trainer, records: &[_]| -> Vec<f64> {
        let logp = score_records(&trainer.model, records, true, Scoring::at(1.0, 64)).unwrap();
        logp.iter().map(|column| column.iter().map(|&l| l as f64).sum()).collect()
    };
    let reference = self::trainer(LABELED, &["rl.loss=kto"]).unwrap();
    let gap = |records: &[_]| -> Vec<f64> {
        let now = sums(&trainer, records);
        now.iter().zip(sums(&reference, records)).map(|(a, b)| a - b).collect()
    };
    let zero = (gap(&crossed).iter().sum::<f64>() / 2.0).max(0.0);
    let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
    let term =
        |(gap, r): (f64, f32)| 1.0 - sigma(0.1 * (gap - zero) * if r > 0.5 { 1.0 } else { -1.0 });
    let rewards = records.iter().map(|r| r.reward);
    let want = gap(&records).into_iter().zip(rewards).map(term).sum::<f64>() / 2.0;
    let got = value(&trainer.rl_step(1, records.clone()).unwrap(), "loss");
    assert!((got - want).abs() < 1e-6, "{got} {want}, zero {zero}");
    assert!(zero > 1e-3, "there is something to measure: {zero}");
}

/// Every completion under every context of its row: the loss from scores of its own.
#[test]
fn contexts_and_completions_make_a_matrix() {
    let mut trainer = trainer(CONTEXTS, &["rl.loss=info_nce"]).unwrap();
    let records = trainer.scored_answers(0).unwrap();
    assert_eq!(records.len(), 4);
    let mut want = 0.0;
    for row in records.chunks(2) {
        let mut s = [[0.0; 2]; 2];
        for (i, context) in row.iter().enumerate() {
            for (j, completion) in row.iter().enumerate() {
                let asked = context.ids.len() - context.scored().count();
                let answered = completion.ids.len() - completion.scored().count();
                let mut record = context.clone();
                record.ids = [&context.ids[..asked], &completion.ids[answered..]].concat();
                record.class = [&context.class[..asked], &completion.class[answered..]].concat();
                let logp = score_records(
                    &trainer.model,
                    std::slice::from_ref(&record),
                    true,
                    Scoring::at(1.0, 1),
                )
                .unwrap();
                let sum: f64 = logp[0].iter().map(|&l| l as f64).sum();
                s[i][j] = sum / record.scored().count() as f64;
            }
        }
        let gap = |own: f64, other: f64| (1.0 + (other - own).exp()).ln();
        let terms = [
            gap(s[0][0], s[0][1]),
            gap(s[1][1], s[1][0]),
            gap(s[0][0], s[1][0]),
            gap(s[1][1], s[0][1]),
        ];
        want += terms.iter().sum::<f64>() / 4.0 / 2.0;
    }
    let values = trainer.rl_step(0, records).unwrap();
    let got = value(&values, "loss");
    assert!((got - want).abs() < 1e-6, "{got} {want}");
    // Rollouts: a completion for each context, and matrices of them.
    let online = ["rl.loss=info_nce", "rl.source=rollout", "rl.group=2", "reward.functions=exact"];
    let rows = CONTEXTS.replace("\"completions\"", "\"answer\": \"1\", \"completions\"");
    let mut trainer = self::trainer(&rows, &online).unwrap();
    let (_, records, _) = trainer.collect(0).unwrap();
    assert_eq!(records.len(), 2 * 2 * 2, "rows, contexts, samples");
    let values = trainer.rl_step(0, records).unwrap();
    assert_eq!(value(&values, "ratio_max_abs_dev"), 0.0);
    assert!(value(&values, "grad_norm") > 0.0);
}

#[test]
fn files_that_cannot_serve_are_refused_before_anything_runs() {
    for (rows, settings, says) in [
        (LABELED, &["rl.loss=dpo"][..], "`dpo` compares 2 answers"),
        ("{\"prompt\": \"a\", \"answer\": \"b\"}\n", &["rl.loss=dpo"], "no answers with scores"),
        (LABELED, &["rl.loss=kto", "rl.prompts=1"], "rl.prompts"),
        (PAIRS, &["rl.loss=info_nce"], "`contexts`"),
        (PAIRS, &["rl.loss=info_nce", "rl.mask_truncated_completions=true"], "rl.mask_truncated"),
    ] {
        let error = trainer(rows, settings).err().expect(says).to_string();
        assert!(error.contains(says), "{settings:?}: {error}");
    }
    let long = format!(
        "{{\"prompt\": \"a\", \"chosen\": \"{}\", \"rejected\": \"b\"}}\n",
        "c".repeat(300)
    );
    let golden = crate::common::golden_folder().join("models/llama");
    let golden = format!("model.path={}", golden.display());
    let error = trainer(&long, &["rl.loss=dpo", &golden]).err().unwrap().to_string();
    assert!(error.contains("302 tokens") && error.contains("256 positions"), "{error}");
    let nowhere = super::config(&["phases=rl", "rl.source=data"]);
    let error = Trainer::<f32>::on(nowhere, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("rl.source") && error.contains("data.path"), "{error}");
}

/// Reasoning of a demonstration weighs what a run says, relative to what it concludes.
#[test]
fn reasoning_weighs_what_a_run_says() {
    let rows = "{\"prompt\": \"2+2=\", \"completion\": \"<think>2</think>4\", \"answer\": \"4\"}\n";
    let keys = ["rl.source=rollout", "reward.functions=exact", "sft.demos=1"];
    let of = |weight: &str| {
        let mut trainer = trainer(rows, &[&keys[..], &[weight]].concat()).unwrap();
        let record = trainer.demonstrations(0).unwrap().remove(0);
        let logp =
            score_records(&trainer.model, std::slice::from_ref(&record), true, Scoring::at(1.0, 1))
                .unwrap();
        let sum = |class: TokenClass| {
            let of = record.scored().filter(|&t| record.class[t] == class);
            of.map(|t| (-logp[0][t] as f64, 1.0)).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
        };
        let sums = [sum(TokenClass::Reasoning), sum(TokenClass::Demo)];
        (value(&trainer.sft_step(0).unwrap(), "loss"), sums)
    };
    let (even, [none, (all, n)]) = of("sft.reasoning_weight=1");
    assert_eq!((none, n), ((0.0, 0.0), 18.0), "one class is enough");
    assert!((even - all / n).abs() < 1e-5, "{even}");
    let (weighed, [(thought, t), (said, s)]) = of("sft.reasoning_weight=0.25");
    assert_eq!((t, s), (16.0, 2.0), "the mark is a part of it, the end of the text is not");
    let want = (0.25 * thought + said) / (0.25 * t + s);
    assert!((weighed - want).abs() < 1e-5, "{weighed} {want}");
}

/// A whole run of DPO on a file: no reward is named, nobody samples to learn, an adapter comes out.
#[test]
fn a_run_on_preferences_needs_no_reward() {
    let folder = tempfile::tempdir().unwrap();
    let golden = crate::common::golden_folder().join("models/llama");
    let golden = format!("model.path={}", golden.display());
    let settings =
        ["phases=quantize,rl", "rl.loss=dpo", "rl.steps=3", "rl.learning_rate=1e-4", &golden];
    let config = config(folder.path(), PAIRS, &settings);
    train(config, &Resume::No).unwrap();
    let run = folder.path().join("runs/latest");
    assert!(run.join("adapter/adapter_model.safetensors").exists());
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let rows: Vec<_> = metrics.lines().map(row).filter(|row| row["phase"] == "rl").collect();
    assert_eq!(rows.len(), 3);
    assert!((rows[0]["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{}", rows[0]);
    assert!(rows[2]["loss"].as_f64() < rows[0]["loss"].as_f64(), "{metrics}");
    // TRL's names. From the reference no pair is apart; then the chosen ones are ahead.
    let of = |row: usize| [&rows[row]["rewards/margins"], &rows[row]["rewards/accuracies"]];
    assert_eq!(of(0), [0.0, 0.0]);
    assert!(of(2)[0].as_f64() > Some(0.0) && of(2)[1] == 1.0, "{metrics}");
}
