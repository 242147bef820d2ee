//! Sparsity of updates, and deltas.

use crate::common::devices::{on_all, shared_gpus};
use crate::common::{bits, in_pool, normals, normals_f32, refused};
use crate::optim::device_of;
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, Error, View, bf16};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;

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
fn deltas_are_thread_invariant() {
    let (a, b) = (normals_f32(70, 200_000, 1.0), normals_f32(71, 200_000, 1.0));
    let y: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.7 * a + 0.3 * b).collect();
    let run = |threads| {
        in_pool(threads, || {
            let count = delta_count::<f32>(&CPU, (&a).into(), (&y).into()).unwrap();
            (count, stats_of(&a, &y, 400, 1e-5))
        })
    };
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
