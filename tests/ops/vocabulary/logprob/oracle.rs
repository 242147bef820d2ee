//! Log-probs, entropies, gradients and the fused head against f64, torch's goldens, and the
//! promise that a row's bits are its own.

use crate::common::{Golden, check_gradient, normals, ulps_f32};
use gradus::dtype::Float;
use gradus::ops::{
    LogProb, LogProbBwd, LogProbFused, LogitTransform, logprob, logprob_bwd, logprob_fused,
};
use gradus::{Device, View, ViewMut, bf16};
use proptest::prelude::*;

/// logp, lse, entropy of every row.
pub struct Stats {
    pub logp: Vec<f32>,
    pub lse: Vec<f32>,
    pub entropy: Vec<f32>,
}

pub fn stats<T: Float>(logits: &[T], v: usize, targets: &[i32], t: LogitTransform) -> Stats {
    let n = targets.len();
    let mut out =
        Stats { logp: vec![f32::NAN; n], lse: vec![f32::NAN; n], entropy: vec![f32::NAN; n] };
    let args = LogProb {
        transform: t,
        lse: Some((&mut out.lse).into()),
        entropy: Some((&mut out.entropy).into()),
        ..LogProb::new(View::rows_of(logits, v).unwrap(), targets.into(), (&mut out.logp).into())
    };
    logprob(&Device::Cpu, args).unwrap();
    out
}

fn gradient<T: Float>(
    logits: &[T],
    v: usize,
    targets: &[i32],
    t: LogitTransform,
    dlogp: &[f32],
    dentropy: Option<&[f32]>,
) -> Vec<T> {
    let mut dlogits = vec![T::from_f32(f32::NAN); logits.len()];
    let args = LogProbBwd {
        transform: t,
        dentropy: dentropy.map(View::from),
        ..LogProbBwd::new(
            View::rows_of(logits, v).unwrap(),
            targets.into(),
            dlogp.into(),
            ViewMut::rows_of(&mut dlogits, v).unwrap(),
        )
    };
    logprob_bwd(&Device::Cpu, args).unwrap();
    dlogits
}

/// The textbook row in f64.
pub fn oracle(z: &[f64], y: usize) -> (f64, f64, f64) {
    let m = z.iter().cloned().fold(f64::MIN, f64::max);
    let lse = m + z.iter().map(|x| (x - m).exp()).sum::<f64>().ln();
    let entropy = z.iter().map(|x| -(x - lse).exp() * (x - lse)).sum();
    (z[y] - lse, lse, entropy)
}

fn golden_case<T: Float + bytemuck::Pod>(file: &Golden) {
    let logits: Vec<T> = file.get("logits");
    let targets: Vec<i32> = file.get::<i64>("target").into_iter().map(|t| t as i32).collect();
    let v = file.shape("logits")[1];
    let t =
        LogitTransform { temperature: file.number("temperature").unwrap(), ..Default::default() };
    let got = stats(&logits, v, &targets, t);
    let (logp, entropy) = (file.f64("logprob"), file.f64("entropy"));
    let g: Vec<f32> = file.f64("grad_logprob").into_iter().map(|g| g as f32).collect();
    let dlogits = gradient(&logits, v, &targets, t, &g, None);
    let want = file.f64("grad_logits");
    for (i, &target) in targets.iter().enumerate() {
        let row = &dlogits[i * v..(i + 1) * v];
        if target == -100 {
            assert_eq!(got.logp[i], 0.0, "{}", file.name);
            assert!(row.iter().all(|d| d.to_f64() == 0.0));
            continue;
        }
        let scale = logp[i].abs().max(got.lse[i].abs() as f64);
        let off = ulps_f32(got.logp[i], logp[i], scale);
        assert!(off <= 4.0, "{}: row {i}: logp off by {off} ulp", file.name);
        let off = ulps_f32(got.entropy[i], entropy[i], scale);
        assert!(off <= 4.0, "{}: row {i}: entropy off by {off} ulp", file.name);
        let want = &want[i * v..(i + 1) * v];
        let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // torch's own gradient is f32 (or rounded to bf16): half a unit of the stored type each.
        let unit =
            if T::DTYPE == gradus::DType::Bf16 { 2f64.powi(-8) } else { 4.0 * 2f64.powi(-24) };
        for (a, b) in row.iter().zip(want) {
            let bound = unit * b.abs().max(largest * 2f64.powi(-16));
            assert!(
                (a.to_f64() - b).abs() <= bound.max(4.0 * 2f64.powi(-24) * largest),
                "{}",
                file.name
            );
        }
    }
}

#[test]
fn logprob_golden_cases() {
    for file in Golden::family("logprob") {
        match file.dtype("logits") {
            safetensors::Dtype::BF16 => golden_case::<bf16>(&file),
            _ => golden_case::<f32>(&file),
        }
    }
}

#[test]
fn logprob_is_within_one_ulp_of_f64_at_every_size() {
    for v in [1, 2, 15, 16, 17, 31, 1000, 32_000, 50_257, 151_937] {
        for (seed, scale) in [(1, 1.0), (2, 30.0), (3, 1e-4)] {
            let logits: Vec<f32> = normals(seed, v, scale).iter().map(|&x| x as f32).collect();
            let y = (v * 2 / 3).min(v - 1);
            let got = stats(&logits, v, &[y as i32], LogitTransform::default());
            let z: Vec<f64> = logits.iter().map(|&x| x as f64).collect();
            let (logp, lse, entropy) = oracle(&z, y);
            let size = logp.abs().max(lse.abs());
            for (got, want) in [(got.logp[0], logp), (got.lse[0], lse), (got.entropy[0], entropy)] {
                let off = ulps_f32(got, want, size);
                assert!(off <= 1.0, "V {v} scale {scale}: {got} against {want}: {off} ulp");
            }
        }
    }
}

#[test]
fn logprob_of_impossible_tokens_and_broken_rows() {
    let inf = f32::INFINITY;
    let mut masked = vec![-inf; 40];
    masked[33] = 2.0;
    masked[37] = 2.0;
    let t = LogitTransform::default();
    let got = stats(&masked, 40, &[33], t);
    assert!((got.logp[0] + std::f32::consts::LN_2).abs() < 1e-7, "leading blocks of -inf");
    assert!((got.entropy[0] - std::f32::consts::LN_2).abs() < 1e-7);
    assert_eq!(stats(&masked, 40, &[0], t).logp[0], -inf);
    let empty = stats(&[-inf; 20], 20, &[3], t);
    assert_eq!((empty.logp[0], empty.lse[0], empty.entropy[0]), (-inf, -inf, 0.0));
    let far = stats(&[-1000.0f32, -1001.0], 2, &[0], t);
    assert!((far.logp[0] + 0.313_261_7).abs() < 1e-6, "rows far below zero");
    let capped = LogitTransform { softcap: 2.0, ..t };
    assert!((stats(&masked, 40, &[33], capped).logp[0] + std::f32::consts::LN_2).abs() < 1e-7);
    let nan = stats(&[1.0, f32::NAN, 0.0, 1.0, 2.0, 3.0], 3, &[0, 0], t);
    assert!(nan.logp[0].is_nan() && nan.logp[1].is_finite(), "NaN stays in its row");
    let d = gradient(&masked, 40, &[33], t, &[1.0], Some(&[1.0]));
    assert!(d.iter().all(|x| x.is_finite()));
}

#[test]
fn logprob_gradient_matches_central_differences() {
    let (n, v) = (3, 9);
    let x = normals(5, n * v, 1.5);
    let targets = [2, 8, 0];
    let (g, h) = ([0.7f32, -1.3, 0.4], [0.2f32, 0.5, -0.9]);
    for t in [
        LogitTransform::default(),
        LogitTransform { temperature: 0.6, ..Default::default() },
        LogitTransform { temperature: 1.7, scale: 0.4, softcap: 2.0 },
    ] {
        let objective = |x: &[f64]| -> f64 {
            (0..n)
                .map(|i| {
                    let z = |x: f64| {
                        let z = t.scale * x;
                        let z = if t.softcap.is_finite() {
                            t.softcap * (z / t.softcap).tanh()
                        } else {
                            z
                        };
                        z / t.temperature
                    };
                    let z: Vec<f64> = x[i * v..(i + 1) * v].iter().map(|&x| z(x)).collect();
                    let (logp, _, entropy) = oracle(&z, targets[i] as usize);
                    g[i] as f64 * logp + h[i] as f64 * entropy
                })
                .sum()
        };
        let d = gradient(&x, v, &targets, t, &g, Some(&h));
        let worst = check_gradient(objective, &x, &d, 1e-5);
        assert!(worst < 1e-6, "{t:?}: {worst}");
    }
}

/// bf16 gradients are the rounded f64 gradient or its neighbor, also at the target where p -> 1
/// cancels.
#[test]
fn bf16_gradients_round_once() {
    let v = 300;
    let mut logits: Vec<bf16> =
        normals(6, v, 2.0).iter().map(|&x| <bf16 as Float>::from_f64(x)).collect();
    logits[7] = bf16::from_f32(20.0);
    let t = LogitTransform::default();
    let d = gradient(&logits, v, &[7], t, &[1.0], None);
    let wide: Vec<f64> = logits.iter().map(|x| x.to_f64()).collect();
    let exact = gradient(&wide, v, &[7], t, &[1.0], None);
    for (got, want) in d.iter().zip(&exact) {
        let rounded = <bf16 as Float>::from_f64(*want);
        assert!((got.to_bits() as i32 - rounded.to_bits() as i32).abs() <= 1, "{got} {want}");
    }
}

#[test]
fn padded_vocabulary_and_ignored_rows_are_never_read() {
    let (v, alloc) = (5, 8);
    let mut logits = vec![f32::NAN; 3 * alloc];
    for i in [0, 2] {
        (0..v).for_each(|j| logits[i * alloc + j] = (i + j) as f32);
    }
    let (mut logp, mut dlogits) = (vec![9f32; 3], vec![9f32; 3 * alloc]);
    let targets = [1, -100, 4];
    let x = View::rows_of(&logits, alloc).unwrap();
    let args =
        LogProb { vocab: v as i64, ..LogProb::new(x, (&targets[..]).into(), (&mut logp).into()) };
    logprob(&Device::Cpu, args).unwrap();
    assert!(logp[0].is_finite() && logp[1] == 0.0 && logp[2].is_finite());
    let g = [1f32; 3];
    let out = ViewMut::rows_of(&mut dlogits, alloc).unwrap();
    let args = LogProbBwd {
        vocab: v as i64,
        ..LogProbBwd::new(x, (&targets[..]).into(), (&g[..]).into(), out)
    };
    logprob_bwd(&Device::Cpu, args).unwrap();
    for (i, row) in dlogits.chunks(alloc).enumerate() {
        assert!(row[v..].iter().all(|&d| d == 0.0));
        assert!(row[..v].iter().all(|&d| d.is_finite() && (i != 1 || d == 0.0)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A row has the same bits alone, in a batch, at any position, with any number of threads.
    #[test]
    fn logprob_rows_are_their_own(seed in 0u64..1000, n in 1usize..40, v in 1usize..400) {
        let logits: Vec<f32> = normals(seed, n * v, 3.0).iter().map(|&x| x as f32).collect();
        let targets: Vec<i32> = (0..n).map(|i| ((i * 7) % v) as i32).collect();
        let t = LogitTransform { temperature: 0.7, ..Default::default() };
        let all = stats(&logits, v, &targets, t);
        let g: Vec<f32> = (0..n).map(|i| i as f32 - 3.0).collect();
        let d = gradient(&logits, v, &targets, t, &g, None);
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                assert_eq!(stats(&logits, v, &targets, t).logp, all.logp);
                assert_eq!(gradient(&logits, v, &targets, t, &g, None), d);
            });
        }
        for i in 0..n {
            let row = &logits[i * v..(i + 1) * v];
            let alone = stats(row, v, &targets[i..=i], t);
            prop_assert_eq!(alone.logp[0].to_bits(), all.logp[i].to_bits());
            prop_assert_eq!(alone.entropy[0].to_bits(), all.entropy[i].to_bits());
            let di = gradient(row, v, &targets[i..=i], t, &g[i..=i], None);
            prop_assert_eq!(&di[..], &d[i * v..(i + 1) * v]);
        }
    }

    /// Σ p = 1, logp <= 0, and gradients of a row sum to 0.
    #[test]
    fn logprob_is_a_distribution(seed in 0u64..1000, v in 1usize..200) {
        let logits: Vec<f32> = normals(seed, v, 5.0).iter().map(|&x| x as f32).collect();
        let repeated: Vec<f32> = (0..v).flat_map(|_| logits.clone()).collect();
        let targets: Vec<i32> = (0..v as i32).collect();
        let logp = stats(&repeated, v, &targets, LogitTransform::default()).logp;
        let total: f64 = logp.iter().map(|&l| (l as f64).exp()).sum();
        prop_assert!((total - 1.0).abs() < 1e-6 && logp.iter().all(|&l| l <= 0.0));
        let d = gradient(&logits, v, &[0], LogitTransform::default(), &[1.0], None);
        prop_assert!(d.iter().map(|&d| d as f64).sum::<f64>().abs() < 1e-6);
    }
}

/// In place and in one call: the bits of forward and backward.
#[test]
fn logprob_fused_is_forward_and_backward() {
    let (n, v, alloc) = (7, 45, 48);
    let mut logits: Vec<f32> = normals(12, n * alloc, 2.0).iter().map(|&x| x as f32).collect();
    let targets = [3, 44, -100, 0, 7, 7, 20];
    let g = [1.0f32, -0.5, 9.0, 0.25, 2.0, -3.0, 0.0];
    let t = LogitTransform { temperature: 0.9, ..Default::default() };
    let (mut logp, mut entropy, mut dlogits) =
        (vec![0f32; n], vec![0f32; n], vec![9f32; n * alloc]);
    let x = View::rows_of(&logits, alloc).unwrap();
    let args = LogProb {
        vocab: v,
        transform: t,
        entropy: Some((&mut entropy).into()),
        ..LogProb::new(x, (&targets[..]).into(), (&mut logp).into())
    };
    logprob(&Device::Cpu, args).unwrap();
    let out = ViewMut::rows_of(&mut dlogits, alloc).unwrap();
    let args = LogProbBwd {
        vocab: v,
        transform: t,
        ..LogProbBwd::new(x, (&targets[..]).into(), (&g[..]).into(), out)
    };
    logprob_bwd(&Device::Cpu, args).unwrap();
    let (mut fused_logp, mut fused_entropy) = (vec![9f32; n], vec![9f32; n]);
    let args = LogProbFused {
        logits: ViewMut::rows_of(&mut logits, alloc).unwrap(),
        targets: (&targets[..]).into(),
        vocab: v,
        transform: t,
        dlogp: (&g[..]).into(),
        logp: (&mut fused_logp).into(),
        entropy: Some((&mut fused_entropy).into()),
    };
    logprob_fused(&Device::Cpu, args).unwrap();
    assert_eq!((fused_logp, fused_entropy, logits), (logp, entropy, dlogits));
}

#[test]
fn logprob_refuses_bad_input_by_name() {
    let (logits, mut logp) = (vec![0f32; 12], vec![7f32; 3]);
    let x = View::rows_of(&logits, 4).unwrap();
    let mut call = |targets: &[i32], vocab: i64, t: LogitTransform| {
        let args =
            LogProb { vocab, transform: t, ..LogProb::new(x, targets.into(), (&mut logp).into()) };
        logprob(&Device::Cpu, args).unwrap_err().to_string()
    };
    let ok = LogitTransform::default();
    for (text, name) in [
        (call(&[0, 1], 4, ok), "`targets`"),
        (call(&[0, 1, 4], 4, ok), "`targets`: got 4 at index 2"),
        (call(&[0, -1, 2], 4, ok), "`targets`: got -1 at index 1"),
        (call(&[0, 1, 2], 5, ok), "`vocab`: got 5"),
        (call(&[0, 1, 2], 0, ok), "`vocab`: got 0"),
        (call(&[0, 1, 2], 4, LogitTransform { temperature: 0.0, ..ok }), "`transform.temperature`"),
        (
            call(&[0, 1, 2], 4, LogitTransform { temperature: f64::NAN, ..ok }),
            "`transform.temperature`",
        ),
        (call(&[0, 1, 2], 4, LogitTransform { softcap: -1.0, ..ok }), "`transform.softcap`"),
        (call(&[0, 1, 2], 4, LogitTransform { scale: 0.0, ..ok }), "`transform.scale`"),
    ] {
        assert!(text.contains(name), "{text} should name {name}");
    }
    assert_eq!(logp, [7.0; 3], "a refused call writes nothing");
}
