//! Deltas: every bit comes back, on every executor; refusals.

use std::sync::Arc;

use crate::common::devices::{emulated, gpu_of, placed, shared_gpus, traffic, vector};
use crate::common::{bits, bits_of, in_pool, normals, normals_f32, refused};
use crate::optim::device_of;
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::Element;
use gradus::ops::*;
use gradus::{Device, bf16, f16};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// encode then apply restores every bit, zeros of either sign and NaN payloads included.
    #[test]
    fn delta_round_trip_is_bit_exact(seed in 0u64..1000, n in 0usize..9000, density in 0.0f64..1.0) {
        let device = device_of(seed);
        let old = normals_f32(seed, n, 1.0);
        let pick = normals(seed + 7, n, 1.0);
        let odd = [-0.0f32, 0.0, f32::from_bits(0x7FC0_1234), f32::INFINITY];
        let new: Vec<f32> = old.iter().zip(&pick).enumerate()
            .map(|(i, (o, p))| if p.abs() < density { odd[i % 4] } else { *o })
            .collect();
        let count = delta_count::<f32>(device, (&old).into(), (&new).into()).unwrap();
        prop_assert_eq!(count, old.iter().zip(&new).filter(|(a, b)| a.to_bits() != b.to_bits()).count());
        let (mut index, mut value, mut got) = (vec![-7i64; count + 1], vec![9f32; count + 1], 0);
        delta_encode(device, DeltaEncode {
            old_value: (&old).into(),
            new_value: (&new).into(),
            index: (&mut index).into(),
            value: (&mut value).into(),
            count: &mut got,
        }).unwrap();
        prop_assert_eq!((got, index[count], value[count]), (count, -7, 9.0));
        let mut target = old.clone();
        let (index, value) = (index[..count].into(), value[..count].into());
        delta_apply(device, DeltaApply { index, value, target: (&mut target).into() }).unwrap();
        prop_assert_eq!(bits(&target), bits(&new));
    }
}

#[test]
fn deltas_refuse_bad_arguments() {
    (0..=shared_gpus().len()).for_each(|i| refuse_deltas_on(device_of(i as u64)));
}

fn refuse_deltas_on(device: &Device) {
    let (old, new) = (vec![0f32; 4], vec![0f32, 1.0, 2.0, 0.0]);
    let encode = |old: &[f32], index: usize, value: usize, arg: &str| {
        let (mut index, mut value, mut count) = (vec![-7i64; index], vec![9f32; value], 99);
        let args = DeltaEncode {
            old_value: old.into(),
            new_value: (&new).into(),
            index: (&mut index).into(),
            value: (&mut value).into(),
            count: &mut count,
        };
        let error = delta_encode(device, args);
        assert!(count == 99 && index.iter().all(|&i| i == -7) && value.iter().all(|&v| v == 9.0));
        refused(error, arg);
    };
    encode(&old[..3], 2, 2, "new_value");
    encode(&old, 2, 3, "value");
    encode(&old, 1, 1, "index");
    let apply = |index: &[i64], value: &[f32], arg: &str| {
        let mut target = vec![5f32; 4];
        let args =
            DeltaApply { index: index.into(), value: value.into(), target: (&mut target).into() };
        refused(delta_apply(device, args), arg);
        assert_eq!(target, vec![5f32; 4]);
    };
    apply(&[0, 1], &[1.0], "value");
    apply(&[0, 4], &[1.0; 2], "index");
    apply(&[-1, 2], &[1.0; 2], "index");
    apply(&[2, 2], &[1.0; 2], "index");
}

fn deltas_of(device: &Device, old: &[f64]) -> (Vec<i64>, Vec<u64>) {
    let new: Vec<f64> =
        old.iter().enumerate().map(|(i, &x)| if i % 11 == 5 { -x } else { x }).collect();
    let count = delta_count::<f64>(device, old.into(), (&new).into()).unwrap();
    let (mut index, mut value, mut got) = (vec![-1; count], vec![f64::NAN; count], 0);
    let args = DeltaEncode {
        old_value: old.into(),
        new_value: (&new).into(),
        index: (&mut index).into(),
        value: (&mut value).into(),
        count: &mut got,
    };
    delta_encode(device, args).unwrap();
    assert_eq!(got, count);
    (index, bits_of(&value))
}

/// Elements of 1, 2, 4 and 8 bytes; more chunks than one tile of the scan holds; dense, sparse and
/// no changes.
#[test]
fn deltas_restore_every_bit() {
    const ALL: [usize; 4] = [1, 7, 40_009, usize::MAX];
    fn check<T: Element>(n: usize, first: usize, every: &[usize], value: impl Fn(usize) -> T) {
        let old: Vec<T> = (0..n + first).map(&value).collect();
        for &every in every {
            let change = |i: usize| value(if i % every == every / 2 { i + 1 } else { i });
            let new: Vec<T> = (0..n + first).map(change).collect();
            let (old, new) = (&old[first..], &new[first..]);
            let want = delta_count::<T>(&Device::Cpu, old.into(), new.into()).unwrap();
            for executor in shared_gpus() {
                let device = &executor.device;
                let count = delta_count::<T>(device, old.into(), new.into()).unwrap();
                assert_eq!(count, want, "{} {n}", executor.name);
                let (mut index, mut values, mut got) =
                    (vec![-7i64; count + 2], vec![value(0); count + 2], 0);
                let args = DeltaEncode {
                    old_value: old.into(),
                    new_value: new.into(),
                    index: (&mut index).into(),
                    value: (&mut values).into(),
                    count: &mut got,
                };
                delta_encode(device, args).unwrap();
                assert!(got == count && index[count..] == [-7, -7]);
                let mut target = old.to_vec();
                let args = DeltaApply {
                    index: index[..count].into(),
                    value: values[..count].into(),
                    target: (&mut target).into(),
                };
                delta_apply(device, args).unwrap();
                assert!(
                    bytemuck::cast_slice::<T, u8>(&target) == bytemuck::cast_slice::<T, u8>(new),
                    "{} {n}",
                    executor.name
                );
            }
        }
    }
    check(0, 0, &ALL, |i| i as u8);
    check(5_000_000, 0, &[900_001], |i| i as u8);
    check(16_385, 1, &ALL, |i| i as u8);
    check(50_000, 3, &ALL, |i| f16::from_bits(i as u16));
    check(33_001, 0, &ALL, |i| i as i32);
    check(16_384, 1, &ALL, |i| i as f64);
}

/// Indices in device memory that lie outside the target are passed over.
#[test]
fn senseless_indices_write_nothing() {
    for executor in shared_gpus() {
        let gpu = gpu_of(&executor.device);
        let index = placed(gpu, &[-1i64, 2, 5, i64::MAX, i64::MIN, 4]);
        let value = placed(gpu, &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut target = vec![0f32; 5];
        let args = DeltaApply {
            index: vector(&index),
            value: vector(&value),
            target: (&mut target).into(),
        };
        delta_apply(&executor.device, args).unwrap();
        assert_eq!(target, [0.0, 0.0, 2.0, 0.0, 6.0], "{}", executor.name);
    }
}

/// Under any order of warps and blocks the bits are the same.
#[test]
fn bits_do_not_depend_on_the_schedule() {
    let a = normals(8, 90_001, 1.0);
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let run = |seed| deltas_of(&emulated(set, seed), &a);
        let zero = run(0);
        assert!((1..4).all(|seed| run(seed) == zero), "{set:?}");
    }
}

/// Nothing to do is no launch.
#[test]
fn nothing_is_no_launch() {
    let driver = Arc::new(EmuDriver::new());
    let device = Device::Gpu(Arc::new(Gpu::new(driver.clone()).unwrap()));
    deltas_of(&device, &[]);
    assert!(driver.take_launches().is_empty());
}

/// Weights are read once; a delta reads again what changed.
#[test]
fn weights_are_read_once() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
        reads_of_weights(&driver, &Device::Gpu(Arc::new(gpu)));
    }
}

fn reads_of_weights(driver: &EmuDriver, device: &Device) {
    let n = 64 * 4096;
    let w: Vec<bf16> = normals(9, n, 1.0).into_iter().map(bf16::from_f64).collect();
    assert_eq!(delta_count::<bf16>(device, (&w).into(), (&w).into()).unwrap(), 0);
    let (launches, ratio) = traffic(driver, 4 * n);
    assert!(launches == 1 && ratio <= 1.02, "delta_count: {ratio}");
    let mut new = w.clone();
    new[100_000] = bf16::from_f32(77.0);
    let (mut index, mut value, mut count) = ([0i64], [bf16::ZERO], 0);
    let args = DeltaEncode {
        old_value: (&w).into(),
        new_value: (&new).into(),
        index: (&mut index[..]).into(),
        value: (&mut value[..]).into(),
        count: &mut count,
    };
    delta_encode(device, args).unwrap();
    assert_eq!((index, value, count), ([100_000], [bf16::from_f32(77.0)], 1));
    // One chunk of 16,384 is read again, one warp's part of it twice.
    let (launches, ratio) = traffic(driver, 4 * (n + 16_384 + 2048));
    assert!(launches == 2 && ratio <= 1.02, "delta_encode: {ratio}");
}

#[test]
fn deltas_are_thread_invariant() {
    let (a, b) = (normals_f32(70, 200_000, 1.0), normals_f32(71, 200_000, 1.0));
    let run = |threads| {
        in_pool(threads, || delta_count::<f32>(&Device::Cpu, (&a).into(), (&b).into()).unwrap())
    };
    let one = run(1);
    assert!([2, 4, 7].into_iter().all(|threads| run(threads) == one));
}
