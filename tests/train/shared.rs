//! What sequences begin with in common is computed once: the bits of every log-prob and loss stay, the
//! gradients differ by rounding.

use gradus::Device;
use gradus::dtype::Float;
use gradus::ops::{Advantage, presets};
use gradus::view::View;
use gradus_rft::model::Decoder;
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::step::{Backward, Objective, Scoring, forward_backward, score_records};
use gradus_rft::train::{RunConfig, Trainer};

use super::objective::value;
use crate::common::devices::executors;
use crate::common::{bits, in_pool};

fn config(settings: &[&str]) -> RunConfig {
    let mut config = RunConfig::default();
    let small = [
        "model.hidden=32",
        "model.heads=4",
        "model.kv_heads=2",
        "model.head_dim=16",
        "model.ffn=64",
        "task.digits=2",
        "rl.prompts=3",
        "rl.group=4",
        "rl.micro_batch=6",
        "rl.max_new_tokens=8",
        "eval.max_prompts=2",
    ];
    small.iter().chain(settings).for_each(|setting| config.apply_set(setting).unwrap());
    config
}

/// A trainer that computes in `T`.
fn trainer<T: Float>(device: &Device) -> Trainer<T> {
    let dtype = format!("model.dtype={}", T::DTYPE.name());
    Trainer::<T>::on(config(&[&dtype]), device.clone()).unwrap()
}

/// Four samples of a prompt of seven tokens, of which two begin alike and one has a single token; one of
/// a prompt that begins otherwise; three of another prompt, which is learned too, as the turns of an
/// episode are.
fn records() -> Vec<Record> {
    let record = |group: u32, prompt: &[i32], class: TokenClass, answer: &[i32]| {
        let mut record = Record { group, finished: true, ..Record::default() };
        record.push(prompt, class, &[]);
        record.push(answer, TokenClass::Gen, &vec![-2.0; answer.len()]);
        record
    };
    let (a, b, c) = ([1, 2, 3, 4, 5, 6, 7], [5, 6, 7], [2, 3, 4, 5, 6]);
    vec![
        record(0, &a, TokenClass::Prompt, &[1, 2, 3, 4, 5]),
        record(0, &a, TokenClass::Prompt, &[1, 2, 9]),
        record(0, &a, TokenClass::Prompt, &[6]),
        record(0, &a, TokenClass::Prompt, &[2, 2, 2, 2, 2, 2, 2]),
        record(1, &b, TokenClass::Prompt, &[1, 1, 1]),
        record(2, &c, TokenClass::Context, &[3, 2, 1]),
        record(2, &c, TokenClass::Context, &[3, 1]),
        record(2, &c, TokenClass::Context, &[4, 4, 4, 4]),
    ]
}

/// Gradients of `records` with advantages of both signs, none of which a clip takes away.
fn backward<T: Float>(model: &Decoder<T>, micro_batch: usize, shared: bool) -> Backward {
    let records = records();
    let settings = presets::by_name("verl/gpg", 8.0).unwrap().settings;
    let objective = Objective {
        settings: &settings,
        temperature: 0.9,
        micro_batch,
        micro_batch_tokens: usize::MAX,
        shared,
        shared_tokens: usize::MAX,
        recompute: false,
        critic: None,
        dropout: None,
    };
    let advantage: Vec<f32> = (0..records.len()).map(|i| 0.5 - i as f32 % 3.0).collect();
    let weight = vec![0.125; records.len()];
    let advantage = Advantage::PerSequence(View::from(&advantage));
    forward_backward(model, &records, advantage, &weight, objective).unwrap()
}

fn flat(backward: &Backward) -> Vec<f64> {
    let each = backward.gradients.iter().flat_map(|(_, g)| g.to_host().unwrap());
    each.map(f64::from).collect()
}

/// ‖a − b‖ of ‖b‖.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

fn check_log_probs<T: Float>(name: &str, device: &Device) {
    let trainer = trainer::<T>(device);
    let records = records();
    let scores = |micro_batch, shared| {
        let how = Scoring { shared, ..Scoring::at(0.7, micro_batch) };
        bits(&score_records(&trainer.model, &records, true, how).unwrap().concat())
    };
    let want = scores(1, false);
    for micro_batch in [1, 3, 8] {
        assert_eq!(scores(micro_batch, true), want, "{name} {micro_batch}");
    }
}

#[test]
fn log_probs_are_those_of_whole_sequences() {
    for executor in executors() {
        check_log_probs::<f32>(&executor.name, &executor.device);
        check_log_probs::<gradus::bf16>(&executor.name, &executor.device);
    }
}

/// Sequences of a micro-batch, and how many tokens of all records go through the model then.
const COMPUTED: [(usize, usize); 4] = [(1, 66), (2, 45), (4, 35), (8, 35)];

fn check_gradients<T: Float>(name: &str, device: &Device, most: f64) {
    let model = trainer::<T>(device).model;
    for (micro_batch, computed) in COMPUTED {
        let [shared, whole] = [true, false].map(|shared| backward(&model, micro_batch, shared));
        let (ours, theirs) = (shared.figures, whole.figures);
        assert_eq!(ours.loss.to_bits(), theirs.loss.to_bits(), "{name} {micro_batch}");
        assert_eq!((ours.stats, ours.tokens), (theirs.stats, theirs.tokens), "{name}");
        assert_eq!((ours.computed, theirs.computed), (computed, COMPUTED[0].1), "{name}");
        let off = apart(&flat(&shared), &flat(&whole));
        assert!(off <= most, "{name} {micro_batch}: {off:e}");
        // What is not shared is not touched.
        assert_eq!(off == 0.0, micro_batch == 1, "{name} {micro_batch}: {off:e}");
    }
}

#[test]
fn gradients_differ_by_rounding() {
    for executor in executors() {
        check_gradients::<f32>(&executor.name, &executor.device, 2e-6);
        check_gradients::<gradus::bf16>(&executor.name, &executor.device, 2e-2);
    }
}

/// A model in f64 with the same weights: what is shared is no further from it than what is whole.
#[test]
fn gradients_are_those_of_an_f64_model() {
    let model = trainer::<f32>(&Device::Cpu).model;
    let mut exact = Decoder::<f64>::random(&model.config, Device::Cpu, 0).unwrap();
    for p in model.params.iter() {
        exact.params.set(&p.name, &p.shape, &p.values().unwrap()).unwrap();
    }
    let want = flat(&backward(&exact, 1, false));
    for micro_batch in [2, 4, 8] {
        let [shared, whole] =
            [true, false].map(|shared| apart(&flat(&backward(&model, micro_batch, shared)), &want));
        assert!(shared <= 2e-6 && whole <= 2e-6, "{micro_batch}: {shared:e} {whole:e}");
        assert!(shared <= 2.0 * whole, "{micro_batch}: {shared:e} {whole:e}");
    }
}

#[test]
fn gradients_do_not_depend_on_threads() {
    let model = trainer::<f32>(&Device::Cpu).model;
    let run = || flat(&backward(&model, 3, true)).into_iter().map(f64::to_bits).collect::<Vec<_>>();
    let one = in_pool(1, run);
    for threads in [2, 5] {
        assert_eq!(in_pool(threads, run), one, "{threads} threads");
    }
}

/// On rollouts of a group the first ratio is 1, the loss and all statistics are those of whole
/// sequences, and a prompt is computed once for all samples of a micro-batch.
#[test]
fn a_step_on_rollouts_computes_prompts_once() {
    for executor in executors() {
        let step = |shared: &str| {
            // Whatever the reward says, all samples are learned from.
            let keys = [shared, "rl.advantage=one", "rl.loss=ce"];
            let mut trainer = Trainer::<f32>::on(config(&keys), executor.device.clone()).unwrap();
            let (_, records, _) = trainer.collect(0).unwrap();
            let prompt = |r: &Record| r.ids.len() - r.sampled();
            let whole: usize = records.iter().map(|r| r.ids.len() - 1).sum();
            // Groups of four in micro-batches of six: the second prompt is computed twice.
            let again: usize =
                [1, 2, 3, 5, 7, 9, 10, 11].iter().map(|&i| prompt(&records[i])).sum();
            let metrics = trainer.rl_step(0, records).unwrap();
            assert_eq!(value(&metrics, "ratio_max_abs_dev"), 0.0, "{}", executor.name);
            let computed = value(&metrics, "update/computed_tokens") as usize;
            (metrics, computed, whole, again)
        };
        let (ours, computed, whole, again) = step("rl.shared_prompts=true");
        // Completions that begin alike may save more.
        assert!(computed <= whole - again, "{}: {computed} {whole} {again}", executor.name);
        let (theirs, computed, whole, _) = step("rl.shared_prompts=false");
        assert_eq!(computed, whole, "{}", executor.name);
        for key in ["loss", "entropy", "update/tokens"] {
            let (ours, theirs) = (value(&ours, key), value(&theirs, key));
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{} {key}", executor.name);
        }
    }
}
