//! Gradient norms: their definition, and the same bits on every executor.

use std::sync::Arc;

use crate::common::devices::{emulated, on_all, shared_gpus, traffic};
use crate::common::{in_pool, normals, normals_f32, refused};
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, View, bf16, f16};

fn norm_of<T: Float>(grads: &[View<'_, T>]) -> GlobalNorm {
    let on = |device: &Device| {
        let mut norm = GlobalNorm::default();
        grad_norm(device, GradNorm { grads, norm: &mut norm }).unwrap();
        norm
    };
    on_all(on, |name, cpu, gpu| {
        let same = cpu.value.to_bits() == gpu.value.to_bits();
        assert!(same || (cpu.value.is_nan() && gpu.value.is_nan()), "{name}: {gpu:?}, {cpu:?}");
        assert_eq!(cpu.finite, gpu.finite, "{name}");
    })
}

#[test]
fn grad_norm_is_the_l2_norm_in_f64() {
    for (n, m) in [(0, 0), (1, 0), (3, 4), (4096, 4097), (100_000, 17)] {
        let (a, b) = (normals_f32(60, n, 3.0), normals_f32(61, m, 1e-3));
        let got = norm_of(&[View::from(&a), View::from(&b)]);
        let want = a.iter().chain(&b).map(|&x| x as f64 * x as f64).sum::<f64>().sqrt();
        assert!(got.finite && (got.value - want).abs() <= 1e-13 * want, "{got:?} {want}");
    }
    // Squares far outside f32 are no overflow.
    assert_eq!(norm_of::<f32>(&[[3e38f32, 0.0][..].into()]).value, 3e38f32 as f64);
    let half: Vec<bf16> = [3.0f32, 4.0].map(bf16::from_f32).to_vec();
    assert_eq!(norm_of(&[View::from(&half)]).value, 5.0);
}

/// More blocks than one level of the final tree takes: on a GPU the levels wait for each other.
#[test]
fn grad_norm_of_many_tensors() {
    let data: Vec<f32> = (0..4300).map(|i| (i % 7) as f32 - 3.0).collect();
    let grads: Vec<View<'_, f32>> =
        data.chunks(1).map(|one| View::new(one, &[1]).unwrap()).collect();
    let want = data.iter().map(|&x| x as f64 * x as f64).sum::<f64>().sqrt();
    assert_eq!(norm_of(&grads).value, want, "sums of small integers are exact");
}

#[test]
fn grad_norm_reports_what_is_not_finite_and_clips_like_torch() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut a = normals_f32(62, 5000, 1.0);
        a[4999] = bad;
        let norm = norm_of(&[View::from(&a)]);
        assert!(!norm.finite && !norm.value.is_finite());
        assert!(norm.clip_coefficient(1.0).unwrap_err().to_string().contains("`norm`"));
    }
    let norm = GlobalNorm { value: 4.0, finite: true };
    assert_eq!(norm.clip_coefficient(1.0).unwrap(), 1.0 / (4.0 + 1e-6));
    assert_eq!(norm.clip_coefficient(5.0).unwrap(), 1.0);
    for bad in [f64::NAN, -1.0, f64::INFINITY] {
        assert!(norm.clip_coefficient(bad).unwrap_err().to_string().contains("`max_norm`"));
    }
    let gaps = [0f32; 9];
    let view = View::strided(&gaps, &[5], &[2]).unwrap();
    let mut out = GlobalNorm::default();
    refused(grad_norm(&Device::Cpu, GradNorm { grads: &[view], norm: &mut out }), "grads[0]");
}

/// Same bits on any number of threads, for any shape of the same tensor, and with empty company.
#[test]
fn grad_norm_is_bitwise_invariant() {
    let (a, b) = (normals_f32(63, 70_001, 1.0), normals_f32(64, 12_288, 1.0));
    let run = |threads| in_pool(threads, || norm_of(&[View::from(&a), View::from(&b)]).value);
    let one = run(1);
    for threads in [2, 4, 7] {
        assert_eq!(one.to_bits(), run(threads).to_bits(), "{threads} threads");
    }
    let empty: &[f32] = &[];
    let matrix = View::new(&b, &[3, 4096]).unwrap();
    let company = norm_of(&[empty.into(), View::from(&a), empty.into(), matrix]);
    assert_eq!(one.to_bits(), company.value.to_bits());
}

fn norm_on<T: Float>(device: &Device, grads: &[View<'_, T>]) -> GlobalNorm {
    let mut norm = GlobalNorm::default();
    grad_norm(device, GradNorm { grads, norm: &mut norm }).unwrap();
    norm
}

/// The norm has the Device::Cpu's bits: for every dtype, for lengths around a chunk, for more blocks than
/// one level of the last tree holds, with and without 16-byte alignment.
#[test]
fn norms_have_the_bits_of_the_cpu() {
    fn check<T: Float>() {
        let data: Vec<T> = normals(5, 70_000, 2.0).into_iter().map(T::from_f64).collect();
        let lists: [Vec<&[T]>; 5] = [
            vec![],
            vec![&data[..0], &data[..1]],
            vec![&data[1..4096], &data[..4096], &data[3..4100], &data[..17]],
            vec![&data[1..], &data[..12_289]],
            (0..5000).map(|i| &data[i..i + 1 + i % 3]).collect(),
        ];
        for (i, list) in lists.iter().enumerate() {
            let grads: Vec<View<'_, T>> = list.iter().map(|&slice| slice.into()).collect();
            let want = norm_on(&Device::Cpu, &grads);
            for executor in shared_gpus() {
                let got = norm_on(&executor.device, &grads);
                let name = format!("{} {} list {i}", executor.name, T::DTYPE.name());
                assert_eq!(got.value.to_bits(), want.value.to_bits(), "{name}");
            }
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
    check::<f64>();
}

/// Under any order of warps and blocks the bits are the same.
#[test]
fn grad_norm_does_not_depend_on_the_schedule() {
    let (a, b) = (normals(8, 90_001, 1.0), normals(9, 5, 1.0));
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let run = |seed| {
            let device = emulated(set, seed);
            norm_on(&device, &[View::from(&a), View::from(&b)]).value.to_bits()
        };
        let zero = run(0);
        assert!((1..4).all(|seed| run(seed) == zero), "{set:?}");
    }
}

/// Gradients are read once, in one launch; no gradients are no launch.
#[test]
fn gradients_are_read_once() {
    let n = 64 * 4096;
    let g: Vec<bf16> = normals(9, n, 1.0).into_iter().map(bf16::from_f64).collect();
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
        let device = Device::Gpu(Arc::new(gpu));
        norm_on::<f32>(&device, &[]);
        assert!(driver.take_launches().is_empty());
        norm_on(&device, &[View::from(&g), View::from(&g[..4096])]);
        let (launches, ratio) = traffic(&driver, 2 * (n + 4096));
        assert!(launches == 1 && ratio <= 1.05, "grad_norm: {ratio}");
    }
}
