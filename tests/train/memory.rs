//! What keeps a run within its memory changes no bit, and the plan knows what it takes: activations that are computed
//! again, prompts that are computed once, a cache with fewer pages than all samples may need.

use std::fs;
use std::path::Path;

use gradus::Device;
use gradus::device::{Driver, DriverInfo, EmuDriver};
use gradus::dtype::Float;
use gradus::ops::presets;
use gradus::rng::{Purpose, Rng};
use gradus_rft::io::safetensors::Tensors;
use gradus_rft::io::system_memory::Room;
use gradus_rft::model::{Decoder, ModelConfig};
use gradus_rft::train::checkpoint::load_latest;
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::rollout::{Hooks, RolloutKey, Sampling, rollout_with};
use gradus_rft::train::{MemoryPlan, Resume, RunConfig, Trainer, train};

use super::objective::value;
use crate::common::devices::executors;
use crate::tiny::shape;

fn config(settings: &[&str]) -> RunConfig {
    let mut config = RunConfig::default();
    let small = [
        "model.hidden=32",
        "model.layers=3",
        "model.heads=4",
        "model.kv_heads=2",
        "model.head_dim=16",
        "model.ffn=64",
        "task.digits=2",
        "sft.demos=8",
        "sft.batch=4",
        "sft.epochs=1",
        "quantize.blocksize=32",
        "lora.rank=4",
        "rl.steps=2",
        "rl.prompts=2",
        "rl.group=3",
        "rl.micro_batch=3",
        "rl.slots=4",
        "rl.max_new_tokens=8",
        "eval.max_prompts=2",
        "eval.samples=1",
        "reward.functions=diversity:1",
    ];
    small.iter().chain(settings).for_each(|setting| config.apply_set(setting).unwrap());
    config
}

const ON: &str = "rl.gradient_checkpointing=on";
const OFF: &str = "rl.gradient_checkpointing=off";

/// A step on demonstrations and one on rollouts, of whole weights or of adapters: everything that moved.
fn learned<T: Float>(device: &Device, settings: &[&str]) -> (Tensors, usize) {
    let dtype = format!("model.dtype={}", T::DTYPE.name());
    let config = config(&[settings, &[&dtype]].concat());
    let quantize = config.phases.iter().any(|phase| phase.0 == "quantize");
    let dropout = config.lora.dropout;
    let mut trainer = Trainer::<T>::on(config, device.clone()).unwrap();
    if quantize {
        trainer.quantize().unwrap();
    }
    trainer.sft_step(0).unwrap();
    if dropout == 0.0 {
        let (_, mut records, _) = trainer.collect(0).unwrap();
        records.iter_mut().enumerate().for_each(|(i, r)| r.reward = (i % 3) as f32);
        let metrics = trainer.rl_step(0, records).unwrap();
        assert_eq!(value(&metrics, "ratio_max_abs_dev"), 0.0, "{settings:?}");
    }
    let peak = trainer.model.allocator.arena().map_or(0, |arena| arena.peak());
    (trainer.save_state().unwrap(), peak)
}

fn check_bits<T: Float>(name: &str, device: &Device, ways: &[&[&str]]) {
    for how in ways {
        let [(want, kept), (got, again)] =
            [OFF, ON].map(|key| learned::<T>(device, &[*how, &[key]].concat()));
        assert!(got == want, "{name} {} {how:?}", T::DTYPE.name());
        // The arena of a GPU says what was there at once.
        assert!(again < kept || *device == Device::Cpu, "{name} {how:?}: {again} of {kept}");
    }
}

#[test]
fn gradient_checkpointing_changes_no_bit_and_takes_less_memory() {
    for executor in executors() {
        let (name, device) = (&executor.name, &executor.device);
        let dropped = ["phases=quantize,sft", "lora.dropout=0.5"];
        check_bits::<f32>(name, device, &[&["phases=sft,rl"], &dropped]);
        check_bits::<gradus::bf16>(name, device, &[&["phases=quantize,sft,rl"]]);
    }
}

/// A run may begin with it and go on without.
#[test]
fn a_run_goes_on_with_or_without_gradient_checkpointing() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, key: &str| {
        let mut config = config(&["phases=sft,quantize,rl", "checkpoint.every=1", "device=cpu"]);
        config.apply_set("checkpoint.keep=100").unwrap();
        config.apply_set(key).unwrap();
        config.out = folder.path().join(name).to_string_lossy().into_owned();
        config
    };
    let state = |folder: &str| {
        let (found, _) = load_latest(&Path::new(folder).join("checkpoints")).unwrap();
        found.unwrap().tensors
    };
    let want = state(&train(run("off", OFF), &Resume::No).unwrap().folder);
    let whole = train(run("on", ON), &Resume::No).unwrap().folder;
    assert!(state(&whole) == want);
    let checkpoints = Path::new(&whole).join("checkpoints");
    let mut steps: Vec<String> = fs::read_dir(&checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "LATEST")
        .collect();
    steps.sort();
    // The last is that of the end, the one before that of the last step: two go.
    let left = steps.len() - 3;
    for step in &steps[left + 1..] {
        fs::remove_dir_all(checkpoints.join(step)).unwrap();
    }
    fs::write(checkpoints.join("LATEST"), &steps[left]).unwrap();
    let again = train(run("on", OFF), &Resume::From(whole.into())).unwrap();
    assert!(state(&again.folder) == want);
}

fn gpu(memory: u64) -> DriverInfo {
    DriverInfo { memory, ..EmuDriver::new().info().clone() }
}

/// Where everything at once does not fit, pages of the cache go first, then activations; settings are advised
/// where that is not enough, or not allowed.
#[test]
fn a_plan_chooses_what_fits() {
    let large = ["phases=quantize,rl", "model.layers=8", "rl.group=16", "rl.micro_batch=8"];
    let config = |key: &str| config(&[&large[..], &[key]].concat());
    let plan = |key: &str| MemoryPlan::new::<f32>(&config(key), &gpu(1 << 40)).unwrap();
    let (off, on) = (plan(OFF), plan(ON));
    assert_eq!(off, plan("rl.gradient_checkpointing=auto"));
    assert!(on.activations < off.activations && on.total < off.total, "{on}; {off}");
    assert_eq!((on.state, on.sampler), (off.state, off.sampler));
    let auto = "rl.gradient_checkpointing=auto";
    let fitting = |key: &str, memory| MemoryPlan::fitting::<f32>(&config(key), &gpu(memory));
    assert!(!fitting(auto, off.total).unwrap().fit.recompute, "it fits as it is");
    let chosen = fitting(auto, on.total).unwrap();
    assert!(chosen.fit.recompute && chosen.total <= on.total, "{chosen}");
    assert!(chosen.to_string().contains("gradient checkpointing"), "{chosen}");
    let refused = fitting(OFF, on.total).unwrap_err().to_string();
    assert!(refused.contains("rl.gradient_checkpointing=auto "), "{refused}");
    // Ever less of the cache, until the rest does not fit.
    let many = |memory| {
        let mut config = config(ON);
        config.rl.slots = 32;
        MemoryPlan::fitting::<f32>(&config, &gpu(memory))
    };
    let most = many(1 << 40).unwrap().total;
    let smaller = (0..24).map(|i| most - most / 24 * i);
    let shares = smaller.map_while(|memory| many(memory).ok()).map(|plan| plan.fit.cache_percent);
    let shares: Vec<usize> = shares.collect();
    assert!(shares.contains(&100) && shares.iter().any(|&share| share < 100), "{shares:?}");
    assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");

    let cpu = |memory| {
        let room = Room { bytes: memory, limit: String::new() };
        MemoryPlan::fitting_on_cpu::<f32>(&config(auto), 1, &room)
    };
    let room = Room { bytes: 1 << 40, limit: String::new() };
    let [on, off] =
        [ON, OFF].map(|key| MemoryPlan::on_cpu::<f32>(&config(key), 1, &room).unwrap().total);
    assert!(on < off, "{on} {off}");
    assert!(!cpu(off).unwrap().fit.recompute && cpu(on).unwrap().fit.recompute);
}

/// The settings alone say how many sequences a micro-batch has: a resumed run must not depend on a machine.
#[test]
fn a_micro_batch_is_a_group_if_nobody_says_otherwise() {
    let sequences = |mut config: RunConfig, settings: &[&str]| {
        settings.iter().for_each(|setting| config.apply_set(setting).unwrap());
        config.rl.sequences()
    };
    assert_eq!(sequences(RunConfig::default(), &[]), 32);
    let folder = RunConfig::pretrained;
    assert_eq!((folder().rl.micro_batch, sequences(folder(), &[])), (0, 8));
    assert_eq!(sequences(folder(), &["rl.group=5"]), 5);
    assert_eq!(sequences(folder(), &["rl.group=64"]), 16);
    assert_eq!(sequences(folder(), &["rl.group=64", "rl.micro_batch=64"]), 64);
}

/// Whatever is left out of a batch of the longest rollouts, no micro-batch computes more than was planned, and
/// one of whole groups is not cut.
#[test]
fn micro_batches_compute_no_more_than_was_planned() {
    let settings = presets::by_name("grpo", 8.0).unwrap().settings;
    let mut rng = Rng::new(3, Purpose::User, [0; 3]);
    for (group, size) in [(4, 8), (4, 4), (8, 4), (3, 5), (4, 6), (5, 1), (6, 16)] {
        let keys = [format!("rl.group={group}"), format!("rl.micro_batch={size}")];
        let config = config(&["phases=quantize,rl", &keys[0], &keys[1], "rl.prompts=12"]);
        let trainer: Trainer = Trainer::on(config, Device::Cpu).unwrap();
        let objective = trainer.rl_objective(&settings);
        let (prompt, _) = trainer.task.lengths();
        let record = |i: usize| {
            let mut record = Record { group: (i / group) as u32, ..Record::default() };
            let prompt = vec![(i / group) as i32; prompt];
            record.push(&prompt, TokenClass::Prompt, &[]);
            record.push(&[20 - (i % group) as i32; 8], TokenClass::Gen, &[0.0; 8]);
            record
        };
        let all: Vec<Record> = (0..12 * group).map(record).collect();
        // What sharing leaves of some records: each prompt once, all completions but their last tokens.
        let computed = |records: &[Record]| {
            let prompts = records.chunk_by(|a, b| a.group == b.group).count();
            prompts * prompt + records.len() * 7
        };
        let cuts = objective.micro_batches(&all);
        assert!(cuts.iter().rev().skip(1).all(|cut| cut.len() == size), "{group} {size}: {cuts:?}");
        let most = cuts.iter().map(|cut| computed(&all[cut.clone()])).max().unwrap();
        assert_eq!(most, objective.shared_tokens, "{group} {size}");
        let mut smaller = 0;
        for _ in 0..20 {
            let some: Vec<Record> = all.iter().filter(|_| rng.below(3) == 0).cloned().collect();
            let cuts = objective.micro_batches(&some);
            assert!(cuts.iter().map(|cut| cut.len()).sum::<usize>() == some.len());
            assert!(cuts.iter().all(|c| computed(&some[c.clone()]) <= objective.shared_tokens));
            smaller += cuts.iter().rev().skip(1).filter(|cut| cut.len() < size).count();
        }
        assert_eq!(smaller > 0, size > 1, "{group} {size}: what is mixed in takes room");
    }
}

/// Prompts of different lengths, on both sides of a page, and samples that end early or never.
#[test]
fn a_small_cache_changes_no_bit_of_a_rollout() {
    let shape = ModelConfig { layers: 2, ..shape(16, 23, 128) };
    let prompts: Vec<Vec<i32>> =
        [3, 16, 33, 20].iter().map(|&n| (0..n).map(|i| (i * 7 + n) % 23).collect()).collect();
    for executor in executors() {
        let model = Decoder::<f32>::random(&shape, executor.device.clone(), 3).unwrap();
        let mut evicted = Vec::new();
        let mut drawn = |cache_percent| {
            let sampling = Sampling {
                temperature: 1.0,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                greedy: false,
                max_new_tokens: 20,
                stops: [5].into(),
                slots: 10,
                longest_prompt: 0,
                cache_percent,
            };
            let (mut sampler, key) =
                (None, RolloutKey { seed: 1, purpose: Purpose::User, step: 0 });
            let hooks = Hooks::default();
            let all = rollout_with(&mut sampler, &model, &prompts, 3, &sampling, key, hooks);
            evicted.extend(sampler.map(|sampler| sampler.evicted()));
            all.unwrap()
        };
        let want = drawn(100);
        assert!(want.iter().flatten().any(|r| r.tokens.len() == 20), "some are long");
        for percent in [20, 0] {
            assert!(drawn(percent) == want, "{} {percent} %", executor.name);
        }
        // On the CPU nothing is left to ask.
        if executor.device != Device::Cpu {
            assert!(
                evicted[0] == 0 && evicted[1] > 0 && evicted[2] > evicted[1],
                "{}: {evicted:?}",
                executor.name
            );
        }
    }
}
