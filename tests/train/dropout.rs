//! `lora.dropout`: what an update drops is the oracle's, on every executor, in every micro-batch and after a
//! resume; whoever samples drops nothing.

use gradus::Device;
use gradus_rft::train::{RunConfig, Trainer};

use super::golden::disturb;
use super::kept::try_config;
use super::objective::value;
use crate::common::devices::executors;

/// The demo in small behind `quantize`, with adapters that are not 0.
fn trainer(settings: &[&str], device: Device) -> Trainer {
    let shared = ["phases=quantize,sft", "sft.demos=8", "lora.rank=2", "lora.dropout=0.5"];
    let config: RunConfig = try_config(&[&shared[..], settings].concat()).unwrap();
    let mut trainer: Trainer = Trainer::on(config, device).unwrap();
    trainer.quantize().unwrap();
    disturb(&mut trainer, 1);
    trainer
}

/// First moments after one step of SFT, which are a tenth of the clipped gradient, and the loss.
fn step(trainer: &mut Trainer) -> (f64, Vec<f64>) {
    let loss = value(&trainer.sft_step(0).unwrap(), "loss");
    let count = trainer.model.params.iter().filter(|p| p.trainable).count();
    let moment = |i: usize| trainer.optimizer.moments(i).unwrap()[0].clone();
    (loss, (0..count).flat_map(moment).map(f64::from).collect())
}

/// Largest difference in units of the largest element.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let size = a.iter().fold(0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / size
}

#[test]
fn every_executor_drops_the_same() {
    let (loss, want) = step(&mut trainer(&[], Device::Cpu));
    for executor in executors() {
        let (its, got) = step(&mut trainer(&[], executor.device.clone()));
        assert!((its - loss).abs() <= 2e-6 * loss, "{}: {its} {loss}", executor.name);
        assert!(apart(&want, &got) <= 2e-5, "{}: {:e}", executor.name, apart(&want, &got));
    }
    let (without, kept) = step(&mut trainer(&["lora.dropout=0"], Device::Cpu));
    assert!((without - loss).abs() > 1e-3 && apart(&want, &kept) > 0.05, "something is dropped");
}

/// A record's masks are those of its number in the step, however the step is cut.
#[test]
fn micro_batches_drop_the_same() {
    let (loss, want) = step(&mut trainer(&["rl.micro_batch=64"], Device::Cpu));
    for cut in ["rl.micro_batch=1", "rl.micro_batch=3", "sft.packing=20"] {
        let (its, got) = step(&mut trainer(&[cut], Device::Cpu));
        assert!((its - loss).abs() <= 1e-12 * loss, "{cut}: {its} {loss}");
        assert!(apart(&want, &got) <= 2e-5, "{cut}: {:e}", apart(&want, &got));
    }
}

/// Another step drops others, the same step drops the same, and a resumed run goes on with the masks of the
/// run that nobody stopped.
#[test]
fn masks_are_functions_of_the_step() {
    let still = ["sft.learning_rate=0"];
    let losses = |trainer: &mut Trainer, steps: &[u64]| -> Vec<f64> {
        let loss = |&step: &u64| value(&trainer.sft_step(step).unwrap(), "loss");
        steps.iter().map(loss).collect()
    };
    // One batch holds all demonstrations: steps 0 and 1 are epochs in another order.
    let all = losses(&mut trainer(&[&still[..], &["sft.batch=8"]].concat(), Device::Cpu), &[0, 1]);
    let plain = [&still[..], &["sft.batch=8", "lora.dropout=0"]].concat();
    let same = losses(&mut trainer(&plain, Device::Cpu), &[0, 1]);
    assert!((same[0] - same[1]).abs() < 1e-6 && (all[0] - all[1]).abs() > 1e-4, "{all:?} {same:?}");

    let moving = ["sft.learning_rate=1e-2"];
    let mut whole = trainer(&moving, Device::Cpu);
    let want = losses(&mut whole, &[0, 1, 2]);
    let mut cut = trainer(&moving, Device::Cpu);
    losses(&mut cut, &[0]);
    let saved = cut.save_state().unwrap();
    let mut again = trainer(&moving, Device::Cpu);
    again.load_state(&saved).unwrap();
    assert_eq!(losses(&mut again, &[1, 2]), want[1..]);
    assert_eq!(again.save_state().unwrap(), whole.save_state().unwrap());
}

#[test]
fn sampling_and_evaluation_drop_nothing() {
    let drawn = |dropout: &str| {
        let trainer = trainer(&[dropout], Device::Cpu);
        let records = trainer.collect(0).unwrap().1;
        let scored = trainer.evaluate().unwrap().accuracy;
        (records, scored)
    };
    assert_eq!(drawn("lora.dropout=0.5"), drawn("lora.dropout=0"));
}

/// A ratio would not begin at 1.
#[test]
fn phases_that_take_ratios_refuse_it() {
    let checked = |settings: &[&str]| {
        let config = try_config(settings).and_then(|config| config.validate_phases());
        config.map_err(|e| e.to_string())
    };
    for loss in ["grpo", "ce", "reft", "prdp"] {
        let loss = format!("rl.loss={loss}");
        let settings = ["phases=quantize,rl", &loss, "lora.dropout=0.1"];
        let error = checked(&settings).unwrap_err();
        assert!(error.contains("lora.dropout") && error.contains("would not be 1"), "{error}");
        let mut trainer: Trainer =
            Trainer::on(try_config(&settings).unwrap(), Device::Cpu).unwrap();
        trainer.quantize().unwrap();
        let records = trainer.collect(0).unwrap().1;
        let error = trainer.rl_step(0, records).unwrap_err().to_string();
        assert!(error.contains("lora.dropout"), "{error}");
    }
    for settings in [
        vec!["phases=quantize,rl", "rl.loss=dpo", "lora.dropout=0.1"],
        vec![
            "phases=quantize,sft,rl",
            "lora.dropout=0.1",
            "phase.rl.kind=rl",
            "phase.rl.lora.dropout=0.0",
        ],
        vec!["phases=quantize,warm,rl", "phase.warm.kind=sft", "phase.warm.lora.dropout=0.1"],
    ] {
        checked(&settings).unwrap_or_else(|error| panic!("{settings:?}: {error}"));
    }
}
