//! Gradient norm, update sparsity, deltas, interpolation.

use crate::common::devices::{on_all, shared_gpus};
use crate::common::normals;
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, Error, View, bf16, f16};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;

fn normals_f32(seed: u64, n: usize, scale: f64) -> Vec<f32> {
    normals(seed, n, scale).into_iter().map(|x| x as f32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn refused(result: gradus::Result<()>, arg: &str) {
    let text = result.expect_err(arg).to_string();
    assert!(text.contains(&format!("`{arg}`")), "`{arg}` not named: {text}");
}

fn on_threads<R: Send>(threads: usize, body: impl Fn() -> R + Send + Sync) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(body)
}

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
    refused(grad_norm(&CPU, GradNorm { grads: &[view], norm: &mut out }), "grads[0]");
}

/// Same bits on any number of threads, for any shape of the same tensor, and with empty company.
#[test]
fn grad_norm_is_bitwise_invariant() {
    let (a, b) = (normals_f32(63, 70_001, 1.0), normals_f32(64, 12_288, 1.0));
    let run = |threads| on_threads(threads, || norm_of(&[View::from(&a), View::from(&b)]).value);
    let one = run(1);
    for threads in [2, 4, 7] {
        assert_eq!(one.to_bits(), run(threads).to_bits(), "{threads} threads");
    }
    let empty: &[f32] = &[];
    let matrix = View::new(&b, &[3, 4096]).unwrap();
    let company = norm_of(&[empty.into(), View::from(&a), empty.into(), matrix]);
    assert_eq!(one.to_bits(), company.value.to_bits());
}

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

/// The executor of a case: the CPU, then the GPUs, in turn.
fn device_of(case: u64) -> &'static Device {
    match case as usize % (1 + shared_gpus().len()) {
        0 => &CPU,
        i => &shared_gpus()[i - 1].device,
    }
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
            old: (&old).into(),
            new: (&new).into(),
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
    let args = Lerp { a: a.into(), b: b.into(), lambda, y: (&mut y).into() };
    lerp(&CPU, args).unwrap();
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
fn lerp_and_deltas_are_thread_invariant() {
    let (a, b) = (normals_f32(70, 200_000, 1.0), normals_f32(71, 200_000, 1.0));
    let run = |threads| {
        on_threads(threads, || {
            let y = mix(&a, &b, 0.3);
            let count = delta_count::<f32>(&CPU, (&a).into(), (&y).into()).unwrap();
            (bits(&y), count, stats_of(&a, &y, 400, 1e-5))
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
fn deltas_and_lerp_refuse_bad_arguments() {
    (0..=shared_gpus().len()).for_each(|i| refuse_deltas_on(device_of(i as u64)));
}

fn refuse_deltas_on(device: &Device) {
    let (old, new) = (vec![0f32; 4], vec![0f32, 1.0, 2.0, 0.0]);
    let encode = |old: &[f32], index: usize, value: usize, arg: &str| {
        let (mut index, mut value, mut count) = (vec![-7i64; index], vec![9f32; value], 99);
        let args = DeltaEncode {
            old: old.into(),
            new: (&new).into(),
            index: (&mut index).into(),
            value: (&mut value).into(),
            count: &mut count,
        };
        let error = delta_encode(device, args);
        assert!(count == 99 && index.iter().all(|&i| i == -7) && value.iter().all(|&v| v == 9.0));
        refused(error, arg);
    };
    encode(&old[..3], 2, 2, "new");
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
    let blend = |a: &[f32], b: &[f32], lambda: f64, y: usize, arg: &str| {
        let mut y = vec![7f32; y];
        let args = Lerp { a: a.into(), b: b.into(), lambda, y: (&mut y).into() };
        refused(lerp(device, args), arg);
        assert!(y.iter().all(|&v| v == 7.0));
    };
    blend(&old, &new[..3], 0.5, 4, "b");
    blend(&old, &new, 0.5, 5, "y");
    blend(&old, &new, f64::NAN, 4, "lambda");
    blend(&old, &new, f64::INFINITY, 4, "lambda");
}
