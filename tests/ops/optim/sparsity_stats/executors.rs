//! Kernels of update statistics and deltas: odd extents against the CPU, every dtype, senseless indices, launches and
//! traffic.

use std::sync::Arc;

use crate::common::devices::{emulated, gpu_of, placed, shared_gpus, traffic, vector};
use crate::common::{bits_of, normals};
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::{Element, Float};
use gradus::ops::*;
use gradus::{Device, View, bf16, f16};

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

/// Every dtype, aligned and not, rows with gaps between them, tails shorter than 16 bytes.
#[test]
fn sparsity_is_what_the_cpu_counts() {
    fn check<T: Float>() {
        for (rows, columns, stride, first) in
            [(1, 1, 1, 0), (3, 100, 100, 0), (9, 257, 260, 3), (40, 64, 64, 1), (2, 0, 4, 0)]
        {
            let n = first + rows * stride;
            let old: Vec<T> = normals(6, n, 1e-3).into_iter().map(T::from_f64).collect();
            let step = normals(7, n, 3e-5);
            let moved = |(i, (w, d)): (usize, (&T, &f64))| {
                if i % 3 == 0 { *w } else { T::from_f64(w.to_f64() + d) }
            };
            let new: Vec<T> = old.iter().zip(&step).enumerate().map(moved).collect();
            let run = |device: &Device| {
                let shape = [rows as i64, columns as i64];
                let view = |x| View::strided(x, &shape, &[stride as i64, 1]).unwrap();
                let (mut stats, mut nnz) = (UpdateSparsity::default(), vec![-7i64; rows]);
                let args = SparsityStats {
                    w0: view(&old[first..]),
                    w1: view(&new[first..]),
                    tol: 1e-5,
                    row_nnz: Some((&mut nnz).into()),
                    stats: &mut stats,
                };
                sparsity_stats(device, args).unwrap();
                (stats, nnz)
            };
            for executor in shared_gpus() {
                let name = format!("{} {} {rows}x{columns}", executor.name, T::DTYPE.name());
                assert_eq!(run(&executor.device), run(&Device::Cpu), "{name}");
            }
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
    check::<f64>();
}

/// The error names the value that the CPU names.
#[test]
fn sparsity_finds_the_first_value_that_is_not_finite() {
    let (rows, columns) = (12, 70);
    let huge = f64::MAX;
    // (operand, flat index, value) written into zeros.
    let cases: [&[(usize, usize, f64)]; 5] = [
        &[(0, 500, f64::NAN), (1, 71, f64::INFINITY)],
        &[(1, 75, f64::NAN), (0, 139, f64::NAN), (0, 138, f64::INFINITY)],
        &[(1, 839, f64::NEG_INFINITY)],
        &[(0, 290, huge), (1, 290, -huge)],
        &[(0, 290, huge), (1, 290, -huge), (1, 345, f64::NAN)],
    ];
    for case in cases {
        let mut w = [vec![0f64; rows * columns], vec![0f64; rows * columns]];
        case.iter().for_each(|&(operand, i, value)| w[operand][i] = value);
        let run = |device: &Device| {
            let mut stats = UpdateSparsity::default();
            let [w0, w1] = [&w[0], &w[1]].map(|w| View::rows_of(w, columns).unwrap());
            let args = SparsityStats { w0, w1, tol: 0.0, row_nnz: None, stats: &mut stats };
            sparsity_stats(device, args).unwrap_err().to_string()
        };
        for executor in shared_gpus() {
            assert_eq!(run(&executor.device), run(&Device::Cpu), "{}", executor.name);
        }
    }
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
    let (rows, columns) = (64, 4096);
    let n = rows * columns;
    let w: Vec<bf16> = normals(9, n, 1.0).into_iter().map(bf16::from_f64).collect();
    let view = View::rows_of(&w, columns).unwrap();
    let mut stats = UpdateSparsity::default();
    let args = SparsityStats { w0: view, w1: view, tol: 0.0, row_nnz: None, stats: &mut stats };
    sparsity_stats(device, args).unwrap();
    let (launches, ratio) = traffic(driver, 4 * n);
    assert!(launches == 1 && ratio <= 1.05, "sparsity_stats: {ratio}");
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
