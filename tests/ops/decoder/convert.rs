//! Conversions between dtypes: one rounding, any alignment, bad input.

use super::values;
use crate::common::devices::{executors, gpu_of, shared_gpus};
use crate::common::{bits_of, normals, refused_with};
use gradus::device::DeviceBuffer;
use gradus::dtype::Float;
use gradus::ops::{Convert, convert};
use gradus::{Device, View, ViewMut, bf16, f16};

/// Ties, neighbors of ties, subnormals of every dtype, overflow, infinities, NaN, and noise.
fn hard_values() -> Vec<f64> {
    let mut values =
        vec![0.0, -0.0, 1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 65_504.0, 65_520.0];
    for bits in [8, 9, 11, 12, 24, 25] {
        let tie = 1.0 + 2f64.powi(-bits);
        values.extend([
            tie,
            -tie,
            tie + 2f64.powi(-40),
            tie - 2f64.powi(-40),
            1.0 + 3.0 * 2f64.powi(-bits),
        ]);
    }
    for exponent in [-14, -15, -24, -25, -26, -126, -127, -133, -134, -149, -150, 127, 128, 300] {
        values.extend([
            2f64.powi(exponent),
            -1.5 * 2f64.powi(exponent),
            1.75 * 2f64.powi(exponent),
        ]);
    }
    values.extend(normals(5, 9000, 3.0));
    values
}

fn convert_on<S: Float, T: Float>(device: &Device, x: &[S]) -> Vec<T> {
    let mut y = vec![T::from_f64(f64::NAN); x.len()];
    convert(device, Convert { x: x.into(), y: (&mut y).into() }).unwrap();
    y
}

fn check_convert<S: Float, T: Float>() {
    let x: Vec<S> = hard_values().into_iter().map(S::from_f64).collect();
    // The oracle: f64 holds every value exactly, and rounds once.
    let want: Vec<T> = x.iter().map(|x| T::from_f64(x.to_f64())).collect();
    for executor in executors() {
        // Whole vectors, a rest, and a start that is not aligned.
        for part in [0..x.len(), 0..8, 0..5, 1..4099, 3..4] {
            let got = convert_on::<S, T>(&executor.device, &x[part.clone()]);
            let name = format!("{} {} to {}", executor.name, S::DTYPE.name(), T::DTYPE.name());
            assert_eq!(bits_of(&got), bits_of(&want[part.clone()]), "{name} {part:?}");
        }
    }
}

fn check_conversions<S: Float>() {
    check_convert::<S, f32>();
    check_convert::<S, bf16>();
    check_convert::<S, f16>();
    check_convert::<S, f64>();
}

#[test]
fn conversions_round_once_on_every_executor() {
    check_conversions::<f32>();
    check_conversions::<bf16>();
    check_conversions::<f16>();
    check_conversions::<f64>();
}

/// Views that start between two vectors of 16 bytes, in device memory and not staged.
#[test]
fn conversions_of_views_that_are_not_aligned() {
    let x = values::<f32>(6, 700);
    let want: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    for executor in shared_gpus() {
        let gpu = gpu_of(&executor.device);
        let source = DeviceBuffer::from_host(gpu, &x).unwrap();
        for first in [0, 1, 2, 4] {
            let mut y = DeviceBuffer::from_host(gpu, &[bf16::ONE; 700]).unwrap();
            let mut out = y.view_mut(&[700]).unwrap();
            let x = source.view(&[700]).unwrap().narrow(first, 690).unwrap();
            let args = Convert { x, y: out.narrow(first, 690).unwrap() };
            convert(&executor.device, args).unwrap();
            let got = y.to_host().unwrap();
            assert_eq!(bits_of(&got[first..][..690]), bits_of(&want[first..][..690]));
            assert!(got[..first].iter().chain(&got[first + 690..]).all(|&y| y == bf16::ONE));
        }
    }
}

#[test]
fn convert_takes_any_rank_and_refuses_bad_input() {
    let x = values::<f32>(7, 24);
    let mut y = vec![bf16::ZERO; 24];
    let (from, to) =
        (View::new(&x, &[2, 3, 4]).unwrap(), ViewMut::new(&mut y, &[2, 3, 4]).unwrap());
    convert(&Device::Cpu, Convert { x: from, y: to }).unwrap();
    assert!(y.iter().zip(&x).all(|(y, &x)| *y == bf16::from_f32(x)));
    let mut y = vec![bf16::ONE; 24];
    let mut run = |x: View<'_, f32>, shape: &[i64]| {
        convert(&Device::Cpu, Convert { x, y: ViewMut::new(&mut y, shape).unwrap() })
    };
    refused_with(run(View::new(&x, &[4, 6]).unwrap(), &[6, 4]), "y", "[4, 6]");
    refused_with(run(View::new(&x, &[4, 6]).unwrap(), &[24]), "y", "rank 2");
    refused_with(run(View::strided(&x, &[4, 3], &[6, 1]).unwrap(), &[4, 3]), "x", "");
    refused_with(run(View::strided(&x, &[4], &[2]).unwrap(), &[4]), "x", "");
    run(View::new(&[], &[0, 3]).unwrap(), &[0, 3]).unwrap();
    assert!(y.iter().all(|&y| y == bf16::ONE));
}
