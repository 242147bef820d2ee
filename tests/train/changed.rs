//! RL of those weights alone in which two models differ.

use std::path::Path;

use gradus::Device;
use gradus_rft::model::Decoder;
use gradus_rft::reward::{RewardInput, RewardOutcome};
use gradus_rft::train::{RunConfig, Trainer};

use super::tiny::shape;

fn model() -> Decoder {
    Decoder::random(&shape(16, 256, 32), Device::Cpu, 0).unwrap()
}

/// Every third weight of every parameter is another.
fn moved() -> Decoder {
    let mut model = model();
    let all: Vec<_> = model
        .params
        .iter()
        .map(|p| (p.name.clone(), p.shape.clone(), p.values().unwrap()))
        .collect();
    for (name, shape, mut values) in all {
        values.iter_mut().step_by(3).for_each(|value| *value += 1.0);
        model.params.set(&name, &shape, &values).unwrap();
    }
    model
}

fn config(folder: &Path, settings: &[&str]) -> RunConfig {
    let mut config = RunConfig::pretrained();
    config.model.path = folder.join("model").to_string_lossy().into_owned();
    let small = [
        "phases=rl",
        "rl.prompts=2",
        "rl.group=4",
        "rl.max_new_tokens=5",
        "rl.learning_rate=1e-2",
        "rl.warmup_steps=1",
        "eval.max_prompts=2",
    ];
    small.iter().chain(settings).for_each(|setting| config.apply_set(setting).unwrap());
    config
}

/// What differs moves as it does when all may, and all else stays bit for bit.
#[test]
fn weights_that_changed_learn_alone() {
    let folder = tempfile::tempdir().unwrap();
    model().save_fresh(&folder.path().join("model"), &[2]).unwrap();
    moved().save_fresh(&folder.path().join("moved"), &[2]).unwrap();
    let pair = |after: &str| {
        let path = |name: &str| folder.path().join(name).display().to_string();
        format!("rl.only_changed={},{}", path("model"), path(after))
    };
    let trainer = |settings: &[&str]| -> Trainer {
        let trainer = Trainer::on(config(folder.path(), settings), Device::Cpu).unwrap();
        trainer.with_reward(|input: &RewardInput<'_>| {
            let sum: u32 = input.completion.bytes().map(u32::from).sum();
            Ok(RewardOutcome::Score((sum % 7) as f32 / 6.0))
        })
    };
    let weights = |trainer: &Trainer| -> Vec<Vec<f32>> {
        trainer.model.params.iter().map(|p| p.values().unwrap()).collect()
    };
    let step = |settings: &[&str]| {
        let mut trainer = trainer(settings);
        let before = weights(&trainer);
        let (_, records, _) = trainer.collect(0).unwrap();
        trainer.rl_step(0, records).unwrap();
        (before, weights(&trainer))
    };
    let ((before, all), (_, some)) = (step(&[]), step(&[&pair("moved")]));
    let mut count = 0;
    for ((before, all), some) in before.iter().zip(&all).zip(&some) {
        for i in 0..before.len() {
            let want = if i % 3 == 0 { all[i] } else { before[i] };
            assert_eq!(some[i].to_bits(), want.to_bits());
            count += (all[i] != before[i] && i % 3 > 0) as usize;
        }
    }
    assert!(count > 1000, "others would have moved: {count}");
    let refused = |settings: &[&str]| {
        let mut trainer = trainer(settings);
        let (_, records, _) = trainer.collect(0).unwrap();
        trainer.rl_step(0, records).unwrap_err().to_string()
    };
    assert!(refused(&[&pair("model")]).contains("no weight differs"));
    let one = config(folder.path(), &["rl.only_changed=model"]).validate().unwrap_err().to_string();
    assert!(one.contains("`rl.only_changed`") && one.contains("expected two"), "{one}");
    let behind = config(folder.path(), &["phases=quantize,rl", &pair("moved")]);
    let error = behind.validate_phases().unwrap_err().to_string();
    assert!(error.contains("`rl.only_changed`") && error.contains("adapters"), "{error}");
}
