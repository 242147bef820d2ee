//! Interpolation on every executor.

use crate::common::devices::{Executor, executors};
use gradus::dtype::Float;
use gradus::ops::{Lerp, lerp};
use gradus::{Device, bf16, f16};

fn run<T: Float>(device: &Device, a: &[T], b: &[T], lambda: f64) -> Vec<T> {
    let mut y = vec![T::from_f64(f64::NAN); a.len()];
    lerp(device, Lerp { a: a.into(), b: b.into(), lambda, y: (&mut y).into() }).unwrap();
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
