//! Samples that go on from the beginning of their prompt's demonstration.

use gradus_rft::reward::{RewardInput, RewardOutcome};
use gradus_rft::train::Trainer;
use gradus_rft::train::metrics::Metrics;
use gradus_rft::train::record::{Record, TokenClass};

use crate::kept::try_config;

fn trainer(settings: &[&str]) -> Trainer {
    let base = ["rl.loss=dr_grpo", "rl.learning_rate=1e-2", "rl.lr_schedule=constant"];
    let config = try_config(&[&base[..], settings].concat()).unwrap();
    let trainer = Trainer::on(config, gradus::Device::Cpu).unwrap();
    trainer.with_reward(|input: &RewardInput<'_>| {
        let sum: u32 = input.completion.bytes().map(u32::from).sum();
        Ok(RewardOutcome::Score((sum % 7) as f32 / 6.0))
    })
}

fn value(metrics: &Metrics, key: &str) -> f64 {
    metrics.get(key.parse().unwrap()).unwrap_or_else(|| panic!("no {key} in {metrics:?}"))
}

fn places(record: &Record, class: TokenClass) -> Vec<usize> {
    (0..record.ids.len()).filter(|&t| record.class[t] == class).collect()
}

/// The demonstration's ids behind its prompt, with the end.
fn demonstration(trainer: &Trainer, row: u64) -> Vec<i32> {
    let (codec, demo) = (trainer.task.codec(), trainer.task.train_demo(row).unwrap());
    let mut ids = codec.encode_rendered(&demo.answer).unwrap();
    ids.push(codec.stops()[0]);
    ids
}

/// The last sample of each prompt begins as the demonstration does, and goes on with tokens that the policy drew:
/// their log-probs are its own. The others are bit for bit what they are without beginnings.
#[test]
fn the_last_samples_go_on_from_demonstrations() {
    let (plain, begun) = (trainer(&[]), trainer(&["rl.prefix_samples=1"]));
    let (_, without, _) = plain.collect(0).unwrap();
    let (sampled, with, _) = begun.collect(0).unwrap();
    for (i, (record, free)) in with.iter().zip(&without).enumerate() {
        let demo = places(record, TokenClass::Demo);
        if i % 3 < 2 {
            let same = (&record.ids, &record.sampler_logp) == (&free.ids, &free.sampler_logp);
            assert!(same && record.proximal_logp.is_empty() && demo.is_empty(), "sample {i}");
            continue;
        }
        let shown = demonstration(&begun, record.row);
        // The first step has the largest share, of which there is one.
        let most = (0.95 * shown.len() as f64) as usize;
        assert_eq!(demo.len(), most, "sample {i}");
        let ids: Vec<i32> = demo.iter().map(|&t| record.ids[t]).collect();
        assert_eq!(ids, shown[..demo.len()], "sample {i}");
        let drawn = places(record, TokenClass::Gen);
        assert_eq!(drawn[0], demo[demo.len() - 1] + 1, "right behind");
        assert!(demo.iter().all(|&t| record.proximal_logp[t] < 0.0 && record.entropy[t] > 0.0));
        assert!(drawn.iter().all(|&t| record.proximal_logp[t] == record.sampler_logp[t]));
        let codec = begun.task.codec();
        assert!(sampled.texts[i].starts_with(&codec.decode(&ids).unwrap()), "rewards read it");
    }
    let mut begun = begun;
    let metrics = begun.rl_step(0, with).unwrap();
    assert_eq!(value(&metrics, "ratio_max_abs_dev"), 0.0);
    assert!(value(&metrics, "prefix/length") > 1.0 && value(&metrics, "prefix/reward") >= 0.0);
}

/// The least share falls from the largest on a half cosine; shares are drawn between the two, anew in each step.
#[test]
fn beginnings_get_shorter_by_a_schedule() {
    let trainer = trainer(&[
        "rl.prefix_samples=3",
        "rl.prefix_share=[0,0.9]",
        "rl.prefix_steps=4",
        "rl.prompts=16",
        "rl.max_new_tokens=64",
    ]);
    let shares = |step: u64| -> Vec<f64> {
        let (_, records, _) = trainer.collect(step).unwrap();
        let share = |r: &Record| {
            let whole = demonstration(&trainer, r.row).len() as f64;
            places(r, TokenClass::Demo).len() as f64 / whole
        };
        records.iter().map(share).collect()
    };
    for (step, least) in [(0, 0.9), (2, 0.45), (4, 0.0), (9, 0.0)] {
        let all = shares(step);
        // A demonstration has four tokens at least, so that rounding down takes less than a quarter.
        assert!(all.iter().all(|s| *s <= 0.9 && *s > least - 0.25), "{step}: {all:?}");
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let want = (least + 0.9) / 2.0;
        assert!((mean - want).abs() < 0.15, "{step}: {mean}, not {want}");
        assert_eq!(all, shares(step), "a step that is done again");
    }
    assert_ne!(shares(8), shares(9));
}

/// A token of a beginning that is not chosen has no gradient: without any the step is that of completions behind
/// longer prompts.
#[test]
fn beginnings_without_weight_teach_nothing() {
    let moved = |quantile: &str, class: TokenClass| {
        let quantile = format!("rl.prefix_quantile={quantile}");
        let mut trainer = trainer(&["rl.prefix_samples=1", &quantile]);
        let (_, mut records, _) = trainer.collect(0).unwrap();
        for record in &mut records {
            let demo = places(record, TokenClass::Demo);
            demo.into_iter().for_each(|t| record.class[t] = class);
        }
        let metrics = trainer.rl_step(0, records).unwrap();
        let loss = value(&metrics, "loss");
        let count = trainer.model.params.iter().filter(|p| p.trainable).count();
        let m = (0..count).flat_map(|i| trainer.optimizer.moments(i).unwrap()[0].clone());
        (loss, m.collect::<Vec<f32>>())
    };
    let apart = |a: &[f32], b: &[f32]| {
        let square = |x: f32| (x as f64).powi(2);
        let far: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (far / a.iter().map(|&a| square(a)).sum::<f64>()).sqrt()
    };
    let (none, behind) = (moved("0", TokenClass::Demo), moved("0", TokenClass::Prompt));
    assert!((none.0 - behind.0).abs() < 1e-6 && apart(&none.1, &behind.1) < 1e-5);
    let (some, all) = (moved("0.3", TokenClass::Demo), moved("1", TokenClass::Demo));
    assert!(apart(&none.1, &some.1) > 1e-2 && apart(&some.1, &all.1) > 1e-2);
}

#[test]
fn beginnings_that_mean_nothing_are_refused() {
    for (settings, key, says) in [
        (&["rl.prefix_steps=3"][..], "rl.prefix_steps", "without rl.prefix_samples"),
        (&["rl.prefix_share=[0,1]"], "rl.prefix_share", "without rl.prefix_samples"),
        (&["rl.prefix_quantile=1"], "rl.prefix_quantile", "without rl.prefix_samples"),
        (&["rl.prefix_samples=4"], "rl.prefix_samples", "rl.group has 3"),
        (&["rl.prefix_samples=1", "rl.prefix_share=[]"], "rl.prefix_share", "[low, high]"),
        (&["rl.prefix_samples=1", "rl.prefix_share=[0.5,2]"], "rl.prefix_share", "from 0 to 1"),
        (&["rl.prefix_samples=1", "rl.loss=dpo"], "rl.prefix_samples", "whole completions"),
        (&["rl.prefix_samples=1", "rl.advantage=gae"], "rl.prefix_samples", "rl.advantage"),
        (&["rl.prefix_samples=1", "rl.loss=verl/kl_cov"], "rl.prefix_samples", "rl.loss"),
        (
            &["rl.prefix_samples=1", "rl.top_entropy_quantile=0.2"],
            "rl.prefix_samples",
            "rl.top_entropy_quantile",
        ),
        (
            &["rl.prefix_samples=1", "rl.replay_window=1", "rl.replay_share=0.5"],
            "rl.prefix_samples",
            "rl.replay_window",
        ),
        (
            &["rl.prefix_samples=1", "rl.importance_sampling=token_mask"],
            "rl.prefix_samples",
            "rl.importance_sampling",
        ),
        (&["rl.prefix_samples=1", "env.kind=tool"], "rl.prefix_samples", "env.kind"),
    ] {
        let config = try_config(settings).unwrap();
        let checked = config.validate().and_then(|()| config.validate_phases());
        let error = checked.unwrap_err().to_string();
        assert!(
            error.contains(&format!("`{key}`")) && error.contains(says),
            "{settings:?}: {error}"
        );
    }
    let error = try_config(&["rl.prefix_samples=1", "rl.prefix_steps=0"])
        .and_then(|config| config.validate());
    assert!(error.unwrap_err().to_string().contains("rl.prefix_steps"));
}
