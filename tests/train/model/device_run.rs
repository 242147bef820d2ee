//! The whole trainer on the device: the demo, shrunk, goes through one SFT step, quantization, a
//! rollout and one GRPO step on the CPU and on every GPU executor, and every tensor is compared.
//! Before each stage the device takes over the CPU's state, so that a stage's bound is its own.

use super::demo;
use crate::common::devices::{Executor, gpus};
use gradus::Device;
use gradus::dtype::{DType, Float, bf16};
use gradus::ops::Advantage;
use gradus::ops::presets;
use gradus::view::View;
use gradus_rft::io::safetensors::Tensors;
use gradus_rft::train::metrics::Metric;
use gradus_rft::train::record::Record;
use gradus_rft::train::step::Backward;
use gradus_rft::train::{RunConfig, Trainer};

/// The demo's shape in small: two blocks, grouped heads, odd widths, biases off.
fn config(dtype: &str) -> RunConfig {
    let mut config =
        demo(&["model.ffn=72", "rl.group=3", "rl.micro_batch=4", "rl.beta=0.04", "eval.samples=1"]);
    config.apply_set(&format!("model.dtype={dtype}")).unwrap();
    config
}

/// Largest |a − b| of a tensor, in units of its largest element.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let size = a.iter().fold(0f32, |m, x| m.max(x.abs())) as f64;
    let off = a.iter().zip(b).fold(0f64, |m, (a, b)| m.max((*a as f64 - *b as f64).abs()));
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    if off == 0.0 { 0.0 } else { off / size }
}

/// What docs/NUMERICS.md promises of a whole f32 step beside the CPU's.
const F32: f64 = 1.0 / 65_536.0;

/// Root of the summed squares of a − b, and of b, over all gradients.
fn distance(a: &Backward, b: &Backward) -> (f64, f64) {
    let (mut off, mut size) = (0.0, 0.0);
    for ((_, a), (_, b)) in a.gradients.iter().zip(b.gradients.iter()) {
        for (a, b) in a.to_host().unwrap().into_iter().zip(b.to_host().unwrap()) {
            off += (a as f64 - b as f64).powi(2);
            size += (b as f64).powi(2);
        }
    }
    (off.sqrt(), size.sqrt())
}

/// f32: loss, entropy and every gradient within a bound, the gradients relative to their largest
/// element. bf16: the device is as far from the f32 model of the same state as the CPU is.
fn assert_same_step<T: Float>(name: &str, trainer: &Trainer<T>, [cpu, gpu, exact]: [&Backward; 3]) {
    let (a, b) = (&cpu.figures, &gpu.figures);
    assert_eq!((a.tokens, a.stats.n_tokens), (b.tokens, b.stats.n_tokens), "{name}");
    if T::DTYPE == DType::Bf16 {
        let ((cpu, size), (gpu, _)) = (distance(cpu, exact), distance(gpu, exact));
        println!("{name}: gradients off by {:.1e}, the CPU's by {:.1e}", gpu / size, cpu / size);
        assert!(gpu <= 1.25 * cpu && gpu < 0.05 * size, "{name}: off by {gpu:e}, the CPU {cpu:e}");
        let (a, b) = (a.loss - exact.figures.loss, b.loss - exact.figures.loss);
        assert!(b.abs() <= 2.0 * a.abs() + 1e-3 * exact.figures.loss.abs(), "{name}: loss {b:e}");
        return;
    }
    assert!((a.loss - b.loss).abs() <= F32 * a.loss.abs().max(1.0), "{name}: {}", b.loss);
    let entropy = (a.stats.sum_entropy - b.stats.sum_entropy).abs();
    assert!(entropy <= F32 * a.stats.sum_entropy.abs(), "{name}: entropy off by {entropy:e}");
    let (mut moved, mut worst) = (0, 0f64);
    for ((id, cpu), (_, gpu)) in cpu.gradients.iter().zip(gpu.gradients.iter()) {
        let (cpu, gpu) = (cpu.to_host().unwrap(), gpu.to_host().unwrap());
        let (off, parameter) = (apart(&cpu, &gpu), &trainer.model.params.get(id).name);
        assert!(off <= F32, "{name}: the gradient of {parameter} is off by {off:e} of its largest");
        worst = worst.max(off);
        moved += cpu.iter().any(|&x| x != 0.0) as usize;
    }
    println!("{name}: gradients off by {worst:.1e} of their largest");
    assert!(moved > 0, "{name}: some gradient is not zero");
}

/// The f32 trainer of a trainer's state, which a bf16 one is a rounding of.
fn exact<T: Float>(of: &Trainer<T>) -> Trainer {
    let mut exact = Trainer::<f32>::on(config("f32"), Device::Cpu).unwrap();
    exact.load_state(&of.save_state().unwrap()).unwrap();
    exact
}

/// An SFT batch through the verbs.
fn sft<T: Float>(trainer: &Trainer<T>, records: &[Record]) -> Backward {
    let tokens: usize = records.iter().map(|r| r.scored().count()).sum();
    let weight = vec![1.0 / tokens as f32; records.len()];
    let settings = presets::sft().settings;
    let advantage = vec![1.0; records.len()];
    let advantage = Advantage::PerSequence(View::from(&advantage));
    trainer.forward_backward(records, advantage, &weight, trainer.sft_objective(&settings)).unwrap()
}

/// A GRPO batch through the verbs, with advantages that do not vanish.
fn grpo<T: Float>(trainer: &Trainer<T>, records: &[Record]) -> Backward {
    let advantage: Vec<f32> = (0..records.len()).map(|i| [1.0, -0.5, 0.25][i % 3]).collect();
    let weight = vec![1.0 / records.len() as f32; records.len()];
    let settings = presets::by_name("grpo", 8.0).unwrap().settings;
    let advantage = Advantage::PerSequence(View::from(&advantage));
    trainer.forward_backward(records, advantage, &weight, trainer.rl_objective(&settings)).unwrap()
}

/// All that moves, apart from optimizer moments and 4-bit codes.
fn parameters(state: &Tensors) -> Vec<(String, Vec<f32>)> {
    let named = state.iter().filter(|(name, _)| name.starts_with("param/"));
    named.map(|(name, data)| (name.clone(), data.to_vec::<f32>().unwrap())).collect()
}

/// The update of the gradients that `backward` holds is the CPU's AdamW, bit for bit, so what an
/// update leaves is compared after both devices were given the same gradients: here by their own
/// step, whose parameters may differ by twice the learning rate where a gradient is nothing but
/// rounding.
fn assert_same_update<T: Float>(name: &str, rate: f64, cpu: &Trainer<T>, gpu: &Trainer<T>) {
    let (a, b) = (cpu.save_state().unwrap(), gpu.save_state().unwrap());
    for ((key, a), (_, b)) in parameters(&a).into_iter().zip(parameters(&b)) {
        let off = a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((*a as f64 - *b as f64).abs()));
        assert!(off <= 2.1 * rate, "{name}: {key} moved apart by {off:e}");
        let close = a.iter().zip(&b).filter(|(a, b)| (**a - **b).abs() as f64 <= 0.1 * rate);
        assert!(close.count() * 10 >= a.len() * 9, "{name}: {key}: more than a tenth moved apart");
    }
}

/// In f32 a rollout has the CPU's tokens; log-probs agree within a bound up to the first token that differs.
fn assert_same_rollout<T: Float>(name: &str, cpu: &[Record], gpu: &[Record]) {
    for (a, b) in cpu.iter().zip(gpu) {
        let same = a.ids.iter().zip(&b.ids).take_while(|(a, b)| a == b).count();
        assert!(T::DTYPE == DType::Bf16 || a.ids == b.ids, "{name}: other tokens");
        let pairs = a.sampler_logp.iter().zip(&b.sampler_logp).take(same);
        let off = pairs.fold(0f64, |m, (a, b)| m.max((a - b).abs() as f64));
        let bound = if T::DTYPE == DType::Bf16 { 2f64.powi(-5) } else { F32 };
        assert!(off <= bound, "{name}: log-probs apart by {off:e}");
    }
}

fn run<T: Float>(dtype: &str, executor: &Executor) {
    let name = format!("{dtype} on {}", executor.name);
    let mut cpu = Trainer::<T>::on(config(dtype), Device::Cpu).unwrap();
    let mut gpu = Trainer::<T>::on(config(dtype), executor.device.clone()).unwrap();
    let (a, b) = (cpu.save_state().unwrap(), gpu.save_state().unwrap());
    assert_eq!(a, b, "{name}: the same start");

    // 1. One SFT step on dense weights.
    let records = cpu.demonstrations(0).unwrap();
    let steps = [sft(&cpu, &records), sft(&gpu, &records), sft(&exact(&cpu), &records)];
    assert_same_step(&format!("{name}, sft"), &cpu, steps.each_ref());
    let (a, b) = (cpu.sft_step(0).unwrap(), gpu.sft_step(0).unwrap());
    for ((metric, a), (_, b)) in a.iter().zip(b.iter()) {
        let bound = if T::DTYPE == DType::Bf16 { 0.02 } else { F32 };
        assert!((a - b).abs() <= bound * a.abs(), "{name}: sft {metric:?}: {a} and {b}");
    }
    assert_same_update(&name, a.get(Metric::LearningRate).unwrap(), &cpu, &gpu);

    // 2. Quantization of the same weights gives the same bytes.
    gpu.load_state(&cpu.save_state().unwrap()).unwrap();
    assert_eq!(cpu.quantize().unwrap(), gpu.quantize().unwrap(), "{name}");
    assert_eq!(cpu.save_state().unwrap(), gpu.save_state().unwrap(), "{name}: 4-bit state");

    // 3. A rollout with the same draws; its log-probs are the trainer's, bit for bit.
    let (_, records, _) = cpu.collect(0).unwrap();
    let (_, mut own, _) = gpu.collect(0).unwrap();
    assert_same_rollout::<T>(&name, &records, &own);

    // 4. One GRPO step, with a KL to the base: on the CPU's records both devices agree, on the
    // device's own the first ratio is exactly 1.
    let steps = [grpo(&cpu, &records), grpo(&gpu, &records), grpo(&exact(&cpu), &records)];
    assert_same_step(&format!("{name}, grpo"), &cpu, steps.each_ref());
    let on_policy = grpo(&gpu, &own);
    assert_eq!(on_policy.figures.ratio_max_abs_dev, 0.0, "{name}: the first ratio");
    assert_eq!(on_policy.figures.stats.max_ratio, 1.0, "{name}");
    own.iter_mut().enumerate().for_each(|(i, record)| record.reward = (i % 2) as f32);
    let before = gpu.save_state().unwrap();
    let metrics = gpu.rl_step(0, own).unwrap();
    assert_eq!(metrics.get(Metric::RatioMaxAbsDev), Some(0.0), "{name}");
    assert_ne!(gpu.save_state().unwrap(), before, "{name}: rewards move the adapters");
    assert!(
        metrics.get(Metric::Kl).unwrap().abs() < 1e-9,
        "{name}: the KL of a fresh adapter to its base"
    );

    // 5. What the device saved goes on, on the CPU and on a fresh device.
    let state = gpu.save_state().unwrap();
    let mut again = Trainer::<T>::on(config(dtype), executor.device.clone()).unwrap();
    again.load_state(&state).unwrap();
    assert_eq!(again.save_state().unwrap(), state, "{name}: a state survives");
    let (_, a, _) = gpu.collect(1).unwrap();
    let (_, b, _) = again.collect(1).unwrap();
    assert_eq!(a, b, "{name}: a resumed device samples the same bits");
    cpu.load_state(&state).unwrap();
    assert_eq!(cpu.save_state().unwrap(), state, "{name}: the CPU takes the device's state");
}

#[test]
fn a_step_on_the_device_is_the_cpus_in_f32() {
    gpus().iter().for_each(|executor| run::<f32>("f32", executor));
}

#[test]
fn a_step_on_the_device_is_the_cpus_in_bf16() {
    gpus().iter().for_each(|executor| run::<bf16>("bf16", executor));
}
