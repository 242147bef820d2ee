//! Interpolation on every executor.

use crate::common::devices::{Executor, executors};
use crate::common::{bits, in_pool, normals_f32, refused};
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, bf16, f16};
use proptest::prelude::*;

fn run<T: Float>(device: &Device, a: &[T], b: &[T], lambda: f64) -> Vec<T> {
    let mut y = vec![T::from_f64(f64::NAN); a.len()];
    lerp(device, Lerp { a: a.into(), b: b.into(), weight: lambda, y: (&mut y).into() }).unwrap();
    y
}

fn agree<T: Float>(executor: &Executor) {
    for n in [0, 1, 7, 8, 31, 255, 1024, 8191, 8193, 20_011] {
        let value = |i: usize, k: usize| {
            T::from_f64(((i * 7919 + k * 104_729) % 2001) as f64 / 500.0 - 2.0)
        };
        let a: Vec<T> = (0..n).map(|i| value(i, 1)).collect();
        let b: Vec<T> = (0..n).map(|i| value(i, 2)).collect();
        for lambda in [0.0, 1.0, 0.3, -0.5] {
            let (got, want) =
                (run(&executor.device, &a, &b, lambda), run(&Device::Cpu, &a, &b, lambda));
            assert!(got == want, "{} n {n} lambda {lambda} {}", executor.name, T::DTYPE.name());
        }
    }
}

#[test]
fn all_executors_give_the_same_bits() {
    for executor in executors() {
        agree::<f32>(&executor);
        agree::<bf16>(&executor);
        agree::<f16>(&executor);
        agree::<f64>(&executor);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Correctly rounded; symmetric where 1 − λ is exact; between equal ends it stays.
    #[test]
    fn lerp_is_rounded_once_and_symmetric(seed in 0u64..1000, n in 1usize..5000, eighths in 0i32..9) {
        let (a, b) = (normals_f32(seed, n, 1.0), normals_f32(seed + 3, n, 100.0));
        let lambda = eighths as f64 / 8.0;
        let y = mix(&a, &b, lambda);
        prop_assert_eq!(bits(&y), bits(&mix(&b, &a, 1.0 - lambda)));
        prop_assert_eq!(bits(&mix(&a, &a, 0.3)), bits(&a));
        for i in 0..n {
            let exact = (1.0 - lambda) * a[i] as f64 + lambda * b[i] as f64;
            prop_assert_eq!(y[i], exact as f32);
        }
    }
}

fn mix<T: Float>(a: &[T], b: &[T], lambda: f64) -> Vec<T> {
    let mut y = vec![T::from_f64(f64::NAN); a.len()];
    let args = Lerp { a: a.into(), b: b.into(), weight: lambda, y: (&mut y).into() };
    lerp(&Device::Cpu, args).unwrap();
    y
}

#[test]
fn lerp_ends_are_bit_identical() {
    let a = [-0.0f32, 0.0, f32::from_bits(0x7FC0_0042), f32::INFINITY, 1e-45, 3.0];
    let b = [f32::NAN, -0.0, 1.0, f32::NEG_INFINITY, f32::MAX, f32::from_bits(0xFFC0_0001)];
    assert_eq!(bits(&mix(&a, &b, 0.0)), bits(&a));
    assert_eq!(bits(&mix(&a, &b, -0.0)), bits(&a));
    assert_eq!(bits(&mix(&a, &b, 1.0)), bits(&b));
    let (a, b) = ([1.0f32, 2.0].map(f16::from_f32), [2.0f32, 4.0].map(f16::from_f32));
    assert_eq!(mix(&a, &b, 2.0), [3.0f32, 6.0].map(f16::from_f32), "extrapolation");
}

#[test]
fn lerp_is_thread_invariant() {
    let (a, b) = (normals_f32(70, 200_000, 1.0), normals_f32(71, 200_000, 1.0));
    let run = |threads| in_pool(threads, || bits(&mix(&a, &b, 0.3)));
    let one = run(1);
    assert!([2, 4, 7].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn lerp_refuses_bad_arguments() {
    executors().iter().for_each(|executor| refuse_on(&executor.device));
}

fn refuse_on(device: &Device) {
    let (old, new) = (vec![0f32; 4], vec![0f32, 1.0, 2.0, 0.0]);
    let blend = |a: &[f32], b: &[f32], lambda: f64, y: usize, arg: &str| {
        let mut y = vec![7f32; y];
        let args = Lerp { a: a.into(), b: b.into(), weight: lambda, y: (&mut y).into() };
        refused(lerp(device, args), arg);
        assert!(y.iter().all(|&v| v == 7.0));
    };
    blend(&old, &new[..3], 0.5, 4, "b");
    blend(&old, &new, 0.5, 5, "y");
    blend(&old, &new, f64::NAN, 4, "weight");
    blend(&old, &new, f64::INFINITY, 4, "weight");
}
