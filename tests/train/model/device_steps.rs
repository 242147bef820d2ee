//! What a step asks of the driver once it has run before: no memory, one wait a decode step, a known
//! number of launches; and the memory plan, which is the arena that a run needs.

use super::demo;
use std::collections::BTreeMap;
use std::sync::Arc;

use gradus::device::{Call, Driver, DriverInfo, EmuDriver, Gpu, KernelSet, RecordingDriver};
use gradus::dtype::Float;
use gradus::ops::Advantage;
use gradus::ops::presets;
use gradus::view::View;
use gradus::{Device, Error, bf16};
use gradus_rft::train::optimizer::Update;
use gradus_rft::train::{MemoryPlan, RunConfig, Trainer};

const LAYERS: usize = 2;

fn config(extra: &[&str]) -> RunConfig {
    let mut config = demo(&["model.ffn=64", "rl.group=2", "rl.micro_batch=2", "eval.samples=2"]);
    extra.iter().for_each(|setting| config.apply_set(setting).unwrap());
    config
}

/// A quantized trainer on a recorded emulator, its arena reserved by the plan.
fn recorded(config: RunConfig) -> (Trainer, Arc<RecordingDriver>) {
    recorded_as(config, KernelSet::Sm80)
}

fn recorded_as<T: Float>(config: RunConfig, set: KernelSet) -> (Trainer<T>, Arc<RecordingDriver>) {
    let driver = Arc::new(RecordingDriver::new(Arc::new(EmuDriver::new())));
    let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
    let plan = MemoryPlan::new::<T>(&config, gpu.info()).unwrap();
    let mut trainer = Trainer::on(config, Device::Gpu(Arc::new(gpu))).unwrap();
    trainer.model.allocator.arena().unwrap().reserve(plan.activations as usize).unwrap();
    trainer.quantize().unwrap();
    (trainer, driver)
}

fn emulator() -> DriverInfo {
    EmuDriver::new().info().clone()
}

fn launches(calls: &[Call]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        if let Call::Launch(kernel) = call {
            *counts.entry(kernel.clone()).or_insert(0) += 1;
        }
    }
    counts
}

/// Embedding, final norm, head and draw; a block's launches.
const fn decode(block: usize) -> usize {
    4 + LAYERS * block
}

/// Two norms, seven maps with their low-rank products, one rotation with the cache's rows, attention, the gate.
const BLOCK_F32: usize = 2 + 7 * 2 + 1 + 1 + 1;

/// On tensor cores q, k and v are one launch behind one for their low-rank products, and so are gate and up, which
/// gate on the way: two norms, four launches of products behind one each, the rotation, attention.
const BLOCK_BF16: usize = 2 + 4 * 2 + 1 + 1;

#[test]
fn a_decode_step_allocates_nothing_and_waits_once() {
    decodes::<f32>(config(&[]), KernelSet::Sm80, decode(BLOCK_F32));
}

#[test]
fn a_decode_step_in_bf16_has_twelve_launches_a_block() {
    assert_eq!(BLOCK_BF16, 12);
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        decodes::<bf16>(config(&["model.dtype=bf16"]), set, decode(BLOCK_BF16));
    }
}

fn decodes<T: Float>(config: RunConfig, set: KernelSet, launches_of_step: usize) {
    let (trainer, driver) = recorded_as::<T>(config, set);
    let prompts = || (0..2).map(|i| trainer.task.train_prompt(i)).collect::<Vec<_>>();
    let longest = |step| {
        let sampled = trainer.sample(prompts(), 2, step).unwrap();
        sampled.rollouts.iter().flatten().map(|r| r.tokens.len()).max().unwrap_or(0)
    };
    // Every batch size runs once as it is and is recorded once.
    (0..4).for_each(|step| assert!(longest(step) > 0));
    driver.take();
    let steps = longest(4) - 1;
    let calls = driver.take();
    assert!(!calls.iter().any(Call::is_memory), "{calls:?}");
    let graphs: Vec<usize> = calls
        .iter()
        .filter_map(|call| if let Call::LaunchGraph(n) = call { Some(*n) } else { None })
        .collect();
    println!("{steps} decode steps of {} launches", graphs[0]);
    assert_eq!(graphs, vec![launches_of_step; steps]);
    // The prefill and the first draw wait for their results, then every step once.
    let first = calls.iter().position(|call| matches!(call, Call::LaunchGraph(_))).unwrap();
    let waits = calls[first..].iter().filter(|call| call.is_wait()).count();
    assert_eq!(waits, steps);
    assert!(launches(&calls[first..]).is_empty(), "a step is one call");
}

#[test]
fn a_train_step_allocates_nothing() {
    check_train_step("rl.shared_prompts=false", 0);
    // Gradients of rows that predict several tokens are added up and converted, where the others are
    // copied.
    check_train_step("rl.shared_prompts=true", 1);
}

fn check_train_step(shared: &str, more: usize) {
    let (mut trainer, driver) = recorded(config(&[shared]));
    let (_, records, _) = trainer.collect(0).unwrap();
    let records = &records[..2];
    let settings = presets::by_name("grpo", 8.0).unwrap().settings;
    let update =
        Update { learning_rate: 1e-3, beta1: 0.9, beta2: 0.95, weight_decay: 0.0, grad_clip: 1.0 };
    let advantage = [1.0, -1.0];
    let mut step = || {
        let advantage = Advantage::PerSequence(View::from(&advantage[..]));
        let objective = trainer.rl_objective(&settings);
        let backward =
            trainer.forward_backward(records, advantage, &[0.5, 0.5], objective).unwrap();
        assert!(trainer.optim_step(&backward, update).unwrap().applied);
    };
    (0..2).for_each(|_| step());
    driver.take();
    step();
    let calls = driver.take();
    let counts = launches(&calls);
    let total: usize = counts.values().sum();
    println!("a train step of one micro-batch: {total} launches\n{counts:#?}");
    assert!(!calls.iter().any(Call::is_memory), "{calls:?}");
    // Loss, log-probs for the ratio, norm and update report to the host.
    let waits = calls.iter().filter(|call| call.is_wait()).count();
    println!("{waits} waits");
    assert_eq!(waits, 4);
    // Embedding, final norm; two norms, seven maps with their low-rank part, the rotation,
    // attention, the gate.
    let forward = 2 + LAYERS * BLOCK_F32;
    // The scored rows, logits, log-probs, their gradient, the score vectors; the loss.
    let head = 5 + 1;
    // Scores scaled and put back, the final norm; per map its input's gradient (2) and its
    // adapter's (3), attention in two passes. Below the first block nothing trains.
    let backward = 3 + LAYERS * (2 + 7 * (2 + 3) + 2 + 2 + 1) - (3 * 2 + 1);
    let update = 3;
    assert_eq!(total, forward + head + backward + update + more);
}

#[test]
fn the_plan_is_the_arena_that_a_run_needs() {
    let config = config(&[]);
    let (mut trainer, _) = recorded(config.clone());
    let plan = MemoryPlan::new::<f32>(&config, &emulator()).unwrap();
    println!("{plan}");
    let (_, records, _) = trainer.collect(0).unwrap();
    trainer.rl_step(0, records).unwrap();
    let used = trainer.model.allocator.arena().unwrap().peak() as u64;
    assert!(used <= plan.activations, "{used} of {}", plan.activations);
    assert_eq!(trainer.model.allocator.arena().unwrap().live(), 0, "nothing stays out");
}

#[test]
fn a_run_that_does_not_fit_says_what_would() {
    let config = config(&["rl.prompts=8", "rl.group=8", "rl.micro_batch=64", "rl.slots=64"]);
    let info = |memory| DriverInfo { memory, ..emulator() };
    let plan = MemoryPlan::new::<f32>(&config, &info(80 << 30)).unwrap();
    // Even with activations computed again and the smallest cache.
    let short = info(plan.total * 9 / 20);
    let error = MemoryPlan::fitting::<f32>(&config, &short).unwrap_err();
    let Error::OutOfMemory { what, bytes } = &error else { panic!("{error}") };
    assert_eq!(*bytes, plan.total);
    let advice = what.split("; ").last().unwrap();
    assert!(advice.contains("rl.micro_batch=") && advice.contains("rl.slots="), "{what}");
    // The advice holds.
    let mut smaller = config.clone();
    for word in advice.split_whitespace().filter(|word| word.starts_with("rl.")) {
        smaller.apply_set(word).unwrap();
    }
    assert!(MemoryPlan::fitting::<f32>(&smaller, &short).unwrap().total <= short.memory);
    let none = info(1 << 10);
    let error = MemoryPlan::fitting::<f32>(&config, &none).unwrap_err().to_string();
    assert!(error.contains("the weights are too large"), "{error}");
}

/// Names of the tensors that two trainers do not share.
fn differing(a: &Trainer, b: &Trainer) -> Vec<String> {
    let (a, b) = (a.save_state().unwrap(), b.save_state().unwrap());
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    a.keys().filter(|key| a[*key] != b[*key]).cloned().collect()
}

/// Moments in host memory: the same bits, less device memory, and a checkpoint that either takes.
#[test]
fn paged_moments_change_no_bit() {
    let paged = config(&["rl.optim=paged_adamw"]);
    let (mut a, _) = recorded(config(&[]));
    let (mut b, _) = recorded(paged.clone());
    for step in 0..2 {
        for trainer in [&mut a, &mut b] {
            let (_, mut records, _) = trainer.collect(step).unwrap();
            records.iter_mut().enumerate().for_each(|(i, r)| r.reward = (i % 2) as f32);
            trainer.rl_step(step, records).unwrap();
        }
        assert_eq!(differing(&a, &b), Vec::<String>::new(), "step {step}");
    }
    assert_eq!(a.optimizer.t, 2);
    a.load_state(&b.save_state().unwrap()).unwrap();
    assert_eq!(differing(&a, &b), Vec::<String>::new());
    let error = Trainer::<f32>::on(paged, Device::Cpu).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("rl.optim"), "{error}");
}
