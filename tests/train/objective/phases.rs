//! Lists of phases, before anything runs.

use gradus::device::DriverInfo;
use gradus_rft::train::config::Schedule;
use gradus_rft::train::phase::Phase;
use gradus_rft::train::{MemoryPlan, Resume, RunConfig, train};

fn checked(settings: &[&str]) -> Result<(), String> {
    let config = super::try_config(settings).and_then(|config| config.validate_phases());
    config.map_err(|e| e.to_string())
}

#[test]
fn lists_that_cannot_be_gone_through_are_refused() {
    for (list, says) in [
        ("", "empty"),
        ("sft,quantize,quantize,rl", "`quantize` 2 times"),
        ("quantize,rl,quantize", "`quantize` 2 times"),
        ("value_fit,rl", "put `collect` before it"),
        ("quantize,collect,rl", "does not follow"),
        ("collect,sft,value_fit,rl", "does not follow"),
        ("rl,collect", "does not follow"),
        ("collect,collect,value_fit,rl", "does not follow"),
        ("collect,value_fit,value_fit,rl", "put `collect` before it"),
        ("sft,value_fit", "put `collect` before it"),
        ("sft,fly", "fly"),
    ] {
        let error = checked(&[&format!("phases={list}"), "rl.advantage=gae"]).unwrap_err();
        assert!(error.contains("phases") && error.contains(says), "{list}: {error}");
    }
    let nothing = ["phases=collect,value_fit,rl", "rl.loss=reft", "value.collect_steps=0"];
    assert!(checked(&nothing).unwrap_err().contains("value.collect_steps"));
    let error = checked(&["phases=collect,value_fit,rl"]).unwrap_err();
    assert!(error.contains("rl.advantage = gae"), "{error}");
    for list in [
        "sft",
        "rl",
        "sft,rl",
        "sft,quantize,rl",
        "quantize,sft,rl,rl",
        "rl,sft,rl",
        "sft,quantize,collect,value_fit,rl",
        "quantize,collect,value_fit,rl,collect,value_fit,rl",
    ] {
        checked(&[&format!("phases={list}"), "rl.loss=reft"]).unwrap();
    }
}

/// A reference is a copy of what trains, and the plan of a run has room for it.
#[test]
fn the_memory_plan_counts_the_reference() {
    let info = DriverInfo {
        name: "planned".into(),
        ordinal: 0,
        capability: (9, 0),
        cuda: (13, 0),
        multiprocessors: 1,
        memory: 1 << 34,
        shared_per_block: 232_448,
    };
    let state =
        |settings: &[&str]| MemoryPlan::new::<f32>(&super::config(settings), &info).unwrap().state;
    let trained = |settings: &[&str]| {
        let mut trainer = super::trainer(settings);
        let plans = trainer.config.plan().unwrap();
        if plans.iter().any(|plan| plan.kind == Phase::Quantize) {
            trainer.quantize().unwrap();
        }
        let trained = trainer.model.params.iter().filter(|p| p.trainable);
        4 * trained.map(|p| p.len() as u64).sum::<u64>()
    };
    for phases in ["phases=rl", "phases=sft,rl", "phases=quantize,sft,rl"] {
        let grown = state(&[phases, "rl.beta=0.1"]) - state(&[phases]);
        let copy = trained(&[phases]);
        // Allocations are rounded up.
        assert!(grown >= copy && grown <= copy + (64 << 10), "{phases}: {grown} for {copy}");
    }
    let fresh = ["phases=sft,quantize,rl", "rl.beta=0.1"];
    assert_eq!(state(&fresh), state(&fresh[..1]), "fresh adapters: the model without them");
}

/// Refused at the start: nothing is computed and nothing is written.
#[test]
fn a_run_is_refused_before_its_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    for (settings, key) in [
        (vec!["phases=sft,quantize,quantize"], "phases"),
        (vec!["rl.group=1"], "rl.group"),
        (vec!["rl.loss=relift", "rl.clip_high=0.2"], "rl.clip_high"),
        (vec!["rl.advantage=gae", "rl.scale=none"], "rl.scale"),
        (vec!["rl.loss=verl/none"], "rl.loss"),
    ] {
        let mut config = super::config(&settings);
        config.out = out.to_string_lossy().into_owned();
        let error = train(config, &Resume::No).unwrap_err().to_string();
        assert!(error.contains(key), "{settings:?}: {error}");
        assert!(!out.exists(), "{settings:?}");
    }
}

/// Files of earlier versions, and what `config` prints, are read to the same settings.
#[test]
fn old_and_printed_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    let old = "[rl]\nclip_low = 0.2\nclip_high = 0.28\nbeta = 0\nlearning_rate = 1e-3\n\
               advantage = \"group\"\nscale = \"group\"\n";
    std::fs::write(&path, old).unwrap();
    let read = RunConfig::load(&path).unwrap();
    assert_eq!((read.rl.clip_low.value(), read.rl.clip_high.value()), (Some(0.2), Some(0.28)));
    assert_eq!((read.rl.beta.value(), read.rl.learning_rate.value()), (Some(0.0), Some(1e-3)));
    read.validate().unwrap();
    for config in [RunConfig::default(), RunConfig::pretrained(), read] {
        std::fs::write(&path, config.to_toml()).unwrap();
        assert_eq!(RunConfig::load(&path).unwrap(), config);
    }
    let mut config = RunConfig::default();
    for set in ["rl.clip_high=0.28", "rl.clip_high=auto", "rl.learning_rate=auto", "rl.beta=1"] {
        config.apply_set(set).unwrap();
    }
    assert_eq!((config.rl.clip_high.value(), config.rl.beta.value()), (None, Some(1.0)));
    for wrong in ["rl.clip_low=low", "rl.learning_rate=fast", "rl.beta=", "value.gamma=auto"] {
        let key = wrong.split('=').next().unwrap();
        let error = config.apply_set(wrong).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

/// A model from disk has the field's settings: QLoRA's for adapters, TRL's for whole weights.
#[test]
fn a_model_from_disk_is_not_trained_like_the_demo() {
    let config = RunConfig::pretrained();
    let (sft, rl) = (&config.sft, &config.rl);
    assert_eq!((sft.learning_rate.value(), rl.learning_rate.value()), (None, None));
    assert_eq!(
        (sft.demos, sft.epochs, sft.batch, sft.beta2, sft.grad_clip),
        (0, 3, 16, 0.999, 0.3)
    );
    assert_eq!((sft.lr_schedule, rl.steps, rl.beta2), (Schedule::Constant, 200, 0.999));
    let rates = |adapters: bool| {
        let mut trainer = super::trainer(&[
            "sft.learning_rate=auto",
            "rl.learning_rate=auto",
            "sft.warmup_steps=1",
            "sft.lr_schedule=constant",
            "rl.lr_schedule=constant",
        ]);
        if adapters {
            trainer.quantize().unwrap();
        }
        let records = super::records(&trainer, 0.0);
        let sft = super::value(&trainer.sft_step(0).unwrap(), "learning_rate");
        (sft, super::value(&trainer.rl_step(0, records).unwrap(), "learning_rate"))
    };
    assert_eq!(rates(true), (2e-4, 1e-5));
    assert_eq!(rates(false), (2e-5, 1e-6));
}
