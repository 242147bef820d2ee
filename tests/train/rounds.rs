//! Rounds: a policy that goes on with its own answers, and learns from the first.

use std::sync::{Arc, Mutex};

use gradus::Device;
use gradus::device::KernelSet;
use gradus_rft::reward::{Outcome, Reward, RewardInput, RewardOutcome};
use gradus_rft::train::record::Record;
use gradus_rft::train::{MemoryPlan, RunConfig, Trainer};

use super::env::{Outcome as Steps, config, rows};
use super::resumed::resumes_alike;
use crate::common::devices::{emulated, executors};
use crate::common::in_pool;

const PARTS: [&str; 2] = ["0.5*format:[!-@]", "0.3*format:[A-_]"];

/// A run on the toy `fold` with what differs in the answers of a policy that knows nothing for a reward.
fn run(data: &str, settings: &[&str]) -> RunConfig {
    let mut config = config(data, settings);
    config.reward.functions = PARTS.map(String::from).to_vec();
    config
}

fn trainer(data: &str, settings: &[&str], device: &Device) -> Trainer {
    Trainer::<f32>::on(run(data, settings), device.clone()).unwrap()
}

const THREE: [&str; 3] = ["env.kind=rounds", "env.max_turns=3", "env.continuations=2"];

#[test]
fn one_round_is_a_completion() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "fold");
    let plain = Steps::of(trainer(&data, &[], &Device::Cpu));
    let one = ["env.kind=rounds", "env.max_turns=1", "env.continuations=3"];
    Steps::of(trainer(&data, &one, &Device::Cpu)).assert_is(&plain, "one round");
}

/// Counts low characters, an eighth for an end, and keeps what it is asked.
struct Low(Arc<Mutex<Vec<(String, f32)>>>);

impl Reward for Low {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        let score = |input: &RewardInput<'_>| {
            let low = input.completion.chars().filter(|c| ('0'..='O').contains(c)).count();
            let score = low as f32 + input.finished as u8 as f32 / 8.0;
            self.0.lock().unwrap().push((input.completion.to_string(), score));
            Ok(RewardOutcome::Score(score))
        };
        inputs.iter().map(score).collect()
    }
}

/// What a policy is asked in later rounds, and that the reward of a sample is the mean over what it comes to.
#[test]
fn samples_are_worth_what_their_continuations_come_to() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "fold");
    let judged = |settings: &[&str]| {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let trainer = trainer(&data, settings, &Device::Cpu).with_reward(Low(asked.clone()));
        let (sampled, records, scores) = trainer.collect(0).unwrap();
        assert_eq!(scores.failed, 0);
        let asked = asked.lock().unwrap().clone();
        (sampled, records, asked)
    };
    let (_, plain, _) = judged(&[]);
    let (sampled, records, asked) = judged(&THREE);
    assert_eq!((records.len(), asked.len()), (12, 24));
    let (mut differ, mut others) = (0, 0);
    for (i, (record, pair)) in records.iter().zip(asked.chunks(2)).enumerate() {
        assert_eq!(record.reward, (pair[0].1 + pair[1].1) / 2.0, "{i}");
        differ += (pair[0].0 != pair[1].0) as u32;
        // Only the first answer is there to be learned, and it is the one of a run without rounds.
        let unrewarded = |record: &Record| Record { reward: 0.0, ..record.clone() };
        assert!(unrewarded(record) == unrewarded(&plain[i]), "{i}");
        let played = &sampled.played[i];
        assert_eq!((played.turns, sampled.texts[i].as_str()), (3, pair[0].0.as_str()));
        assert!(played.transcript.ends_with(&format!("\n{}", pair[0].0)), "{played:?}");
        others += (played.transcript.split('\n').next() != Some(&pair[0].0)) as u32;
    }
    assert!(differ > 3 && others > 3, "{differ}, {others}");
    // The question is not read again where the template leaves it out: samples that said the same go on alike.
    let (_, carried, _) =
        judged(&[&THREE[..], &["env.carry={{ prompt }}{{ completion }}:"]].concat());
    let rewards = |records: &[Record]| records.iter().map(|r| r.reward).collect::<Vec<_>>();
    assert_ne!(rewards(&carried), rewards(&records));
}

#[test]
fn executors_go_through_rounds_alike_whatever_runs_together() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "fold");
    let keys = |more: &'static str| [&THREE[..], &[more]].concat();
    let want = Steps::of(trainer(&data, &THREE, &Device::Cpu));
    for slots in ["rl.slots=1", "rl.slots=3", "rl.slots=64"] {
        Steps::of(trainer(&data, &keys(slots), &Device::Cpu)).assert_is(&want, slots);
    }
    for threads in [1, 3] {
        let got = in_pool(threads, || Steps::of(trainer(&data, &THREE, &Device::Cpu)));
        got.assert_is(&want, &format!("{threads} threads"));
    }
    for executor in executors() {
        let mut trainer = trainer(&data, &THREE, &executor.device);
        let (_, records, scores) = trainer.collect(0).unwrap();
        assert_eq!((records.len(), scores.failed), (12, 0), "{}", executor.name);
        let metrics = trainer.rl_step(0, records).unwrap();
        let deviation = metrics.get("ratio_max_abs_dev".parse().unwrap());
        assert_eq!(deviation, Some(0.0), "{}", executor.name);
    }
}

/// An evaluation goes through the rounds once for each sample.
#[test]
fn evaluations_have_one_continuation() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "fold");
    let one = trainer(&data, &[&THREE[..2], &["env.continuations=1"]].concat(), &Device::Cpu);
    let (many, plain) = (trainer(&data, &THREE, &Device::Cpu), trainer(&data, &[], &Device::Cpu));
    let evaluation = many.evaluate().unwrap();
    assert_eq!(evaluation, one.evaluate().unwrap());
    assert_ne!(evaluation, plain.evaluate().unwrap());
    assert!(evaluation.examples.iter().any(|line| line.completion.contains('\n')));
}

#[test]
fn rounds_resume_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "fold");
    let keys = [&THREE[..], &["checkpoint.every=1", "checkpoint.keep=100"]].concat();
    let (metrics, checkpoints) = resumes_alike(run(&data, &keys), folder.path());
    assert!(metrics.iter().any(|row| row["reward_std"].as_f64() > Some(0.0)), "{metrics:?}");
    assert!(checkpoints > 0);
}

/// The plan counts the contexts of later rounds, and a device that has no more than that is enough.
#[test]
fn the_memory_plan_counts_later_rounds() {
    let device = emulated(KernelSet::Sm80, 0);
    let Device::Gpu(gpu) = &device else { panic!("the emulator is a GPU") };
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "fold");
    let small = ["rl.prompts=2", "rl.group=2", "rl.micro_batch=4", "eval.max_prompts=2"];
    let plan = |keys: &[&str]| {
        let config = run(&data, &[&small[..], keys].concat());
        MemoryPlan::new::<f32>(&config, gpu.info()).unwrap()
    };
    let (plain, rounds) = (plan(&[]), plan(&THREE));
    assert!(rounds.sampler > plain.sampler, "{rounds} {plain}");
    let wide = plan(&[&THREE[..], &["env.max_tokens=90"]].concat());
    assert!(wide.sampler > rounds.sampler, "{wide} {rounds}");
    let mut trainer = trainer(&data, &[&small[..], &THREE].concat(), &device);
    let arena = trainer.model.allocator.arena().unwrap();
    arena.reserve(rounds.activations as usize).unwrap();
    trainer.evaluate().unwrap();
    let (_, records, _) = trainer.collect(0).unwrap();
    trainer.rl_step(0, records).unwrap();
    assert!(arena.peak() as u64 <= rounds.activations, "{}: {rounds}", arena.peak());
}

#[test]
fn what_rounds_cannot_do_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "fold");
    let refused = |settings: &[&str]| {
        let error = Trainer::<f32>::on(run(&data, settings), Device::Cpu).err();
        error.unwrap_or_else(|| panic!("{settings:?}")).to_string()
    };
    let kind = "env.kind=rounds";
    for (settings, words) in [
        (&[kind, "env.carry={{ prompt"][..], "template env.carry"),
        (&[kind, "rl.group=4096", "env.continuations=16"], "`env.continuations`: 16 of each of"),
        (&[kind, "env.continuations=0"], "`env.continuations`"),
        (&[kind, "env.max_tokens=9000000"], "`env.max_tokens`"),
    ] {
        let error = refused(settings);
        assert!(error.contains(words), "{error}");
    }
    let error = Trainer::<f32>::on(config(&data, &[kind]), Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("`reward.functions`: empty"), "{error}");
    // Keys that a kind does not read.
    let unread = |settings: &[&str], key: &str| {
        let set = [key.to_string()].into();
        run(&data, settings).refuse_unread(&set).map_err(|error| error.to_string())
    };
    for (key, there, elsewhere) in [
        ("env.history", "env.kind=own", kind),
        ("env.question_cost", "env.kind=ask", "env.kind=own"),
        ("env.continuations", kind, "env.kind=own"),
        ("env.carry", kind, "env.kind=own"),
    ] {
        unread(&[there], key).unwrap();
        let error = unread(&[elsewhere], key).unwrap_err();
        assert!(error.contains(key), "{error}");
    }
    unread(&["env.kind=own", "rl.advantage=gae"], "env.credit").unwrap();
    for settings in [&["env.kind=own"][..], &[kind, "rl.advantage=gae"]] {
        let error = unread(settings, "env.credit").unwrap_err();
        assert!(error.contains("env.credit"), "{error}");
    }
    // A field that a row lacks ends the run, and a prompt without room fails its sample.
    let lacks = trainer(&data, &[kind, "env.carry={{ nothing }}"], &Device::Cpu);
    let error = lacks.collect(0).unwrap_err().to_string();
    assert!(error.contains("env.carry"), "{error}");
    let long = "env.carry={% for i in range(40) %}{{ prompt }}{% endfor %}";
    let error = trainer(&data, &[kind, long], &Device::Cpu).collect(0).unwrap_err().to_string();
    assert!(error.contains("round 2 has a prompt of") && error.contains("12 of 12"), "{error}");
}
