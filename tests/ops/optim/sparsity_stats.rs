//! Sparsity of updates: what a loop counts, on every executor; refusals.

use std::sync::Arc;

use crate::common::devices::{on_all, shared_gpus, traffic};
use crate::common::{in_pool, normals, normals_f32, refused};
use crate::optim::device_of;
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, Error, View, bf16, f16};
use proptest::prelude::*;

fn stats_of<T: Float>(w0: &[T], w1: &[T], k: usize, tol: f64) -> (UpdateSparsity, Vec<i64>) {
    let on = |device: &Device| {
        let (mut stats, mut nnz) = (UpdateSparsity::default(), vec![-1; w0.len() / k]);
        let (w0, w1) = (View::rows_of(w0, k).unwrap(), View::rows_of(w1, k).unwrap());
        let row_nnz = Some((&mut nnz).into());
        let args = SparsityStats { w0, w1, tol, row_nnz, stats: &mut stats };
        sparsity_stats(device, args).unwrap();
        (stats, nnz)
    };
    on_all(on, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn sparsity_stats_count_what_a_loop_counts(seed in 0u64..1000, n in 1usize..9, k in 1usize..40) {
        let w0 = normals_f32(seed, n * k, 0.05);
        let step = normals_f32(seed + 1, n * k, 2e-5);
        let w1: Vec<f32> =
            w0.iter().zip(&step).enumerate().map(|(i, (w, d))| if i % 3 == 0 { *w } else { w + d }).collect();
        let (got, nnz) = stats_of(&w0, &w1, k, 1e-5);
        let mut want = UpdateSparsity { n: (n * k) as u64, ..UpdateSparsity::default() };
        let mut rows = vec![0i64; n];
        for i in 0..n * k {
            let delta = (w1[i] as f64 - w0[i] as f64).abs();
            want.equal_exact += (w0[i] == w1[i]) as u64;
            want.within_tol += (delta <= 1e-5) as u64;
            let same = bf16::from_f32(w0[i]).to_bits() == bf16::from_f32(w1[i]).to_bits();
            want.absorbed_bf16 += (w0[i] != w1[i] && same) as u64;
            want.max_delta = want.max_delta.max(delta);
            rows[i / k] += (w0[i] != w1[i]) as i64;
        }
        prop_assert_eq!(got, want);
        prop_assert_eq!(nnz, rows);
        // Δ and −Δ count alike.
        prop_assert_eq!(stats_of(&w1, &w0, k, 1e-5).0, want);
    }
}

#[test]
fn sparsity_stats_are_thread_invariant() {
    let (a, b) = (normals_f32(70, 200_000, 1.0), normals_f32(71, 200_000, 1.0));
    let y: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.7 * a + 0.3 * b).collect();
    let run = |threads| in_pool(threads, || stats_of(&a, &y, 400, 1e-5));
    let one = run(1);
    assert!([2, 4, 7].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn sparsity_stats_refuse_bad_arguments() {
    (0..=shared_gpus().len()).for_each(|i| refuse_sparsity_on(device_of(i as u64)));
}

fn refuse_sparsity_on(device: &Device) {
    let (w, mut stats) = (normals_f32(80, 12, 1.0), UpdateSparsity::default());
    let good = View::rows_of(&w, 4).unwrap();
    let mut call = |w0, w1, tol, nnz: usize, arg: &str| {
        let mut nnz = vec![-1i64; nnz];
        let row_nnz = Some((&mut nnz).into());
        let args = SparsityStats { w0, w1, tol, row_nnz, stats: &mut stats };
        refused(sparsity_stats(device, args), arg);
        assert!(nnz.iter().all(|&c| c == -1) && stats == UpdateSparsity::default());
    };
    call((&w).into(), good, 0.0, 3, "w0");
    call(good, View::rows_of(&w, 3).unwrap(), 0.0, 3, "w1");
    call(good, good, f64::NAN, 3, "tol");
    call(good, good, -1.0, 3, "tol");
    call(good, good, 0.0, 2, "row_nnz");
    let with = |x: f32| w.iter().enumerate().map(|(i, &v)| if i == 9 { x } else { v }).collect();
    let (nan, infinite): (Vec<f32>, Vec<f32>) = (with(f32::NAN), with(f32::INFINITY));
    let (nan, infinite) = (View::rows_of(&nan, 4).unwrap(), View::rows_of(&infinite, 4).unwrap());
    call(nan, good, 0.0, 3, "w0");
    call(good, nan, 0.0, 3, "w1");
    call(infinite, infinite, 0.0, 3, "w0");
    let args = SparsityStats { w0: infinite, w1: good, tol: 0.0, row_nnz: None, stats: &mut stats };
    let error = sparsity_stats(device, args).unwrap_err();
    assert!(matches!(error, Error::NonFinite { index: 9, .. }), "{error}");
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

/// Both weights are read once, in one launch.
#[test]
fn weights_are_read_once() {
    let (rows, columns) = (64, 4096);
    let w: Vec<bf16> = normals(9, rows * columns, 1.0).into_iter().map(bf16::from_f64).collect();
    let view = View::rows_of(&w, columns).unwrap();
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
        let mut stats = UpdateSparsity::default();
        let args = SparsityStats { w0: view, w1: view, tol: 0.0, row_nnz: None, stats: &mut stats };
        sparsity_stats(&Device::Gpu(Arc::new(gpu)), args).unwrap();
        let (launches, ratio) = traffic(&driver, 4 * rows * columns);
        assert!(launches == 1 && ratio <= 1.05, "{ratio}");
    }
}
