//! The kernels of vocab_kl and gather_k on the emulator and on CUDA, against the CPU ops in f64
//! and against themselves.

use std::sync::Arc;

use crate::common::devices::{emulated, gpus};
use crate::common::{bits, normals, ulps_f32};
use crate::vocabulary::{PLAIN, SETS, TRANSFORMS, upstream, values, wide};
use gradus::device::EmuDriver;
use gradus::dtype::Float;
use gradus::ops::{
    Divergence, Guidance, LogitTransform, VocabKl, VocabKlBwd, vocab_kl, vocab_kl_bwd,
};
use gradus::{Device, View, ViewMut, bf16, f16};

const KINDS: [Divergence; 4] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.3 },
    Divergence::TotalVariation,
];

/// Policy, reference and second reference, `pad` columns of NaN behind each row.
#[derive(Clone)]
struct Pair<T> {
    policy: Vec<T>,
    reference: Vec<T>,
    guide: Option<(Vec<T>, f64)>,
    vocab: usize,
    columns: usize,
    transform: LogitTransform,
    divergence: Divergence,
}

impl<T: Float> Pair<T> {
    fn new(seed: u64, rows: usize, vocab: usize, pad: usize, apart: f64) -> Pair<T> {
        let columns = vocab + pad;
        let policy = values::<T>(seed, rows * columns, 2.0);
        let noise = normals(seed + 1, rows * columns, apart);
        let reference =
            policy.iter().zip(noise).map(|(x, n)| T::from_f64(x.to_f64() + n)).collect();
        let (transform, divergence) = (PLAIN, KINDS[0]);
        let mut pair =
            Pair { policy, reference, guide: None, vocab, columns, transform, divergence };
        for rows in [&mut pair.policy, &mut pair.reference] {
            rows.chunks_mut(columns).for_each(|row| row[vocab..].fill(T::from_f32(f32::NAN)));
        }
        pair
    }

    fn rows(&self) -> usize {
        self.policy.len() / self.columns
    }

    fn widened(&self) -> Pair<f64> {
        Pair {
            policy: wide(&self.policy),
            reference: wide(&self.reference),
            guide: self.guide.as_ref().map(|(u, gamma)| (wide(u), *gamma)),
            vocab: self.vocab,
            columns: self.columns,
            transform: self.transform,
            divergence: self.divergence,
        }
    }

    fn shape(&self) -> [i64; 2] {
        [self.rows() as i64, self.columns as i64]
    }

    fn guidance(&self) -> Option<Guidance<'_, T>> {
        let shape = self.shape();
        self.guide
            .as_ref()
            .map(|(u, gamma)| Guidance { logits: View::new(u, &shape).unwrap(), gamma: *gamma })
    }

    fn value(&self, device: &Device) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.rows()];
        let args = VocabKl {
            policy: View::new(&self.policy, &self.shape()).unwrap(),
            reference: View::new(&self.reference, &self.shape()).unwrap(),
            guidance: self.guidance(),
            vocab: self.vocab as i64,
            transform: self.transform,
            divergence: self.divergence,
            value: (&mut out).into(),
        };
        vocab_kl(device, args).unwrap();
        out
    }

    fn gradient(&self, device: &Device, dvalue: &[f32]) -> Vec<T> {
        let mut out = vec![T::from_f32(f32::NAN); self.policy.len()];
        let args = VocabKlBwd {
            policy: View::new(&self.policy, &self.shape()).unwrap(),
            reference: View::new(&self.reference, &self.shape()).unwrap(),
            guidance: self.guidance(),
            vocab: self.vocab as i64,
            transform: self.transform,
            divergence: self.divergence,
            dvalue: dvalue.into(),
            dpolicy: ViewMut::new(&mut out, &self.shape()).unwrap(),
        };
        vocab_kl_bwd(device, args).unwrap();
        out
    }
}

/// q, p, log q − log p of a row's columns in f64, and the size of guided logits.
fn shares(pair: &Pair<f64>, i: usize) -> Vec<[f64; 4]> {
    let t = &pair.transform;
    let bend = |x: &f64| {
        let z = x * t.scale;
        let z = if t.softcap.is_finite() { t.softcap * (z / t.softcap).tanh() } else { z };
        z / t.temperature
    };
    let row =
        |x: &[f64]| -> Vec<f64> { x[i * pair.columns..][..pair.vocab].iter().map(bend).collect() };
    let (z, mut c) = (row(&pair.policy), row(&pair.reference));
    if let Some((u, gamma)) = &pair.guide {
        c.iter_mut().zip(row(u)).for_each(|(c, u)| *c = u + gamma * (*c - u));
    }
    let size = pair.guide.is_some() as u8 as f64;
    let lse = |z: &[f64]| {
        let m = z.iter().cloned().fold(f64::MIN, f64::max);
        m + z.iter().map(|x| (x - m).exp()).sum::<f64>().ln()
    };
    let (a, b) = (lse(&z), lse(&c));
    let column =
        |(z, c): (&f64, &f64)| [(z - a).exp(), (c - b).exp(), (z - a) - (c - b), size * c.abs()];
    z.iter().zip(&c).map(column).collect()
}

/// Values within 4 ulp (f32) at the size of max(|value|, 1). Gradients within 2^-20 of what they
/// are a difference of, (q + p)·(1 + |log q − log p| + |value|), with guidance (whose logits are rounded
/// to f32) |z| more, and in 16 bits a neighbor of the rounded one.
fn check_pair<T: Float>(name: &str, device: &Device, pair: &Pair<T>) {
    let exact = pair.widened();
    let (got, values) = (pair.value(device), exact.value(&Device::Cpu));
    for (got, &want) in got.iter().zip(&values) {
        let off = ulps_f32(*got, want as f64, want.abs().max(1.0) as f64);
        assert!(off <= 4.0, "{name}: V {} {got} for {want}: {off} ulp", pair.vocab);
        assert!(*got >= 0.0, "{name}: {got}");
    }
    let g = upstream(pair.rows());
    let (got, want) = (pair.gradient(device, &g), exact.gradient(&Device::Cpu, &g));
    let k = (pair.transform.scale / pair.transform.temperature).abs();
    for (i, (got, want)) in got.chunks(pair.columns).zip(want.chunks(pair.columns)).enumerate() {
        assert!(got[pair.vocab..].iter().all(|d| d.to_f64() == 0.0), "{name}: padding");
        for (v, [q, p, delta, guided]) in shares(&exact, i).into_iter().enumerate() {
            let neighbor = match size_of::<T>() {
                2 => (want[v].abs() * 2f64.powi(-7)).max(2f64.powi(-24)),
                _ => f32::MIN_POSITIVE as f64,
            };
            let size = g[i].abs() as f64
                * k
                * (q + p)
                * (1.0 + delta.abs() + values[i].abs() as f64 + guided);
            let off = (got[v].to_f64() - T::from_f64(want[v]).to_f64()).abs();
            let bound = 2f64.powi(-20) * size + neighbor;
            assert!(off <= bound, "{name}: V {}, {v}: {:?} for {}", pair.vocab, got[v], want[v]);
        }
    }
}

fn lattice<T: Float>(vocab: &[usize]) {
    for gpu in gpus() {
        for (j, &v) in vocab.iter().enumerate() {
            for (k, divergence) in KINDS.into_iter().enumerate() {
                let rows = if v > 5000 { 1 } else { 3 };
                let apart = [1.0, 1e-3, 0.1][(j + k) % 3];
                let mut pair = Pair::<T>::new(v as u64, rows, v, [0, 1, 5][j % 3], apart);
                (pair.divergence, pair.transform) = (divergence, TRANSFORMS[(j + k) % 4]);
                let name = format!("{} {} {divergence:?}", gpu.name, T::DTYPE.name());
                check_pair(&name, &gpu.device, &pair);
                let u = values::<T>(71, pair.policy.len(), 2.0);
                pair.guide = Some((u, [1.5, 0.0, 1.0, -0.5][j % 4]));
                check_pair(&format!("{name} guided"), &gpu.device, &pair);
            }
        }
    }
}

#[test]
fn vocab_kl_lattice() {
    lattice::<f32>(&[1, 2, 7, 33, 129, 1000, 1023, 4099]);
    lattice::<bf16>(&[3, 8, 255, 1025, 2048]);
    lattice::<f16>(&[31, 127, 3001]);
}

#[test]
fn vocab_kl_of_wide_rows() {
    lattice::<bf16>(&[32_000, 151_937]);
    lattice::<f32>(&[50_257]);
}

#[test]
fn equal_rows_diverge_by_exactly_nothing() {
    for gpu in gpus() {
        for divergence in KINDS {
            for transform in TRANSFORMS {
                let mut pair = Pair::<f32>::new(3, 4, 777, 1, 1.0);
                pair.reference = pair.policy.clone();
                (pair.divergence, pair.transform) = (divergence, transform);
                assert_eq!(pair.value(&gpu.device), [0.0; 4], "{} {divergence:?}", gpu.name);
                let d = pair.gradient(&gpu.device, &[1.0; 4]);
                assert!(d.iter().all(|d| *d == 0.0), "{} {divergence:?}", gpu.name);
            }
        }
    }
}

/// Tokens that one or both cannot produce, rows without any, NaN: what the CPU op says.
#[test]
fn broken_pairs_are_those_of_the_cpu() {
    let (inf, nan, v) = (f32::INFINITY, f32::NAN, 600);
    let (p, r) = (values::<f32>(1, v, 1.0), values::<f32>(2, v, 1.0));
    let with = |x: &[f32], at: usize, value: f32| {
        let mut x = x.to_vec();
        x[at] = value;
        x
    };
    let none = vec![-inf; v];
    let rows = [
        (with(&p, 9, -inf), with(&r, 9, -inf)),
        (with(&p, 9, -inf), r.clone()),
        (p.clone(), with(&r, 9, -inf)),
        (p.clone(), none.clone()),
        (none.clone(), r.clone()),
        (none.clone(), none),
        (with(&p, 599, nan), r.clone()),
        (p.clone(), with(&r, 0, nan)),
        (with(&p, 3, inf), r.clone()),
        (p.clone(), with(&r, 3, 20.0)),
    ];
    for divergence in KINDS {
        for transform in TRANSFORMS {
            let pair = Pair {
                policy: rows.iter().flat_map(|(p, _)| p.clone()).collect(),
                reference: rows.iter().flat_map(|(_, r)| r.clone()).collect(),
                guide: None,
                vocab: v,
                columns: v,
                transform,
                divergence,
            };
            let g = upstream(rows.len());
            let (value, gradient) = (pair.value(&Device::Cpu), pair.gradient(&Device::Cpu, &g));
            for gpu in gpus() {
                let name = format!("{} {divergence:?} {transform:?}", gpu.name);
                let near = |a: f32, b: f32| {
                    (a - b).abs() <= 2e-6 * b.abs().max(1.0) || a == b || (a.is_nan() && b.is_nan())
                };
                for (i, (got, want)) in pair.value(&gpu.device).iter().zip(&value).enumerate() {
                    assert!(near(*got, *want), "{name}: row {i}: {got} for {want}");
                }
                let d = pair.gradient(&gpu.device, &g);
                for (i, (got, want)) in d.iter().zip(&gradient).enumerate() {
                    assert!(near(*got, *want), "{name}: row {}: {got} for {want}", i / v);
                }
            }
        }
    }
}

/// A row alone, in a batch, with other paddings (which move it in memory), under every schedule.
#[test]
fn vocab_kl_bits_are_a_rows_own() {
    for set in SETS {
        for (k, divergence) in KINDS.into_iter().enumerate() {
            let mut pair = Pair::<bf16>::new(5, 3, [40, 3001, 33_333, 5000][k], 0, 0.5);
            pair.guide = (k % 2 == 0).then(|| (values(6, pair.policy.len(), 2.0), 1.5));
            pair.divergence = divergence;
            let g = upstream(3);
            let device = emulated(set, 0);
            let (value, d) = (pair.value(&device), pair.gradient(&device, &g));
            for seed in [1, 2] {
                let device = emulated(set, seed);
                assert_eq!(bits(&pair.value(&device)), bits(&value));
                assert_eq!(pair.gradient(&device, &g), d);
            }
            for pad in [1, 3] {
                let columns = pair.vocab + pad;
                let spread = |x: &[bf16]| -> Vec<bf16> {
                    let row = |row: &[bf16]| [row, &vec![bf16::NAN; pad][..]].concat();
                    x.chunks(pair.columns).flat_map(row).collect()
                };
                let padded = Pair {
                    policy: spread(&pair.policy),
                    reference: spread(&pair.reference),
                    guide: pair.guide.as_ref().map(|(u, gamma)| (spread(u), *gamma)),
                    columns,
                    ..pair.clone()
                };
                assert_eq!(bits(&padded.value(&device)), bits(&value), "{divergence:?}");
                let dp = padded.gradient(&device, &g);
                for i in 0..3 {
                    assert_eq!(dp[i * columns..][..pair.vocab], d[i * pair.vocab..][..pair.vocab]);
                }
            }
        }
    }
}

/// Policy and reference that start at different places of a 16-byte word.
#[test]
fn vocab_kl_of_rows_that_lie_differently() {
    for gpu in gpus() {
        for v in [100, 5001] {
            let pair = Pair::<bf16>::new(5, 2, v, 0, 0.5);
            let (want, dwant) = (pair.value(&gpu.device), pair.gradient(&gpu.device, &[1.0; 2]));
            let wide = v + 3;
            let mut reference = vec![bf16::NAN; 2 * wide];
            let mut d = vec![bf16::NAN; 2 * (v + 5)];
            for i in 0..2 {
                reference[i * wide..][..v].copy_from_slice(&pair.reference[i * v..][..v]);
            }
            let shape = [2, v as i64];
            let reference = View::strided(&reference, &shape, &[wide as i64, 1]).unwrap();
            let policy = View::new(&pair.policy, &shape).unwrap();
            let mut value = vec![f32::NAN; 2];
            let args = VocabKl {
                policy,
                reference,
                guidance: None,
                vocab: v as i64,
                transform: PLAIN,
                divergence: KINDS[0],
                value: (&mut value).into(),
            };
            vocab_kl(&gpu.device, args).unwrap();
            assert_eq!(bits(&value), bits(&want), "{}", gpu.name);
            let args = VocabKlBwd {
                policy,
                reference,
                guidance: None,
                vocab: v as i64,
                transform: PLAIN,
                divergence: KINDS[0],
                dvalue: (&[1.0f32; 2][..]).into(),
                dpolicy: ViewMut::strided(&mut d, &shape, &[v as i64 + 5, 1]).unwrap(),
            };
            vocab_kl_bwd(&gpu.device, args).unwrap();
            for i in 0..2 {
                assert_eq!(d[i * (v + 5)..][..v], dwant[i * v..][..v], "{}", gpu.name);
            }
        }
    }
}

#[test]
fn vocab_kl_reads_both_rows_once() {
    let driver = Arc::new(EmuDriver::new());
    let device = Device::gpu(driver.clone()).unwrap();
    for v in [32_000, 151_936] {
        let pair = Pair::<bf16>::new(4, 4, v, 0, 0.5);
        let bytes = (2 * pair.policy.len()) as f64;
        driver.take_launches();
        pair.value(&device);
        pair.gradient(&device, &upstream(4));
        for ((kernel, c), rows) in driver.take_launches().iter().zip([2.0, 3.0]) {
            let traffic = c.global_bytes() as f64 / (rows * bytes);
            assert!(traffic <= 1.05, "{kernel} V {v}: {traffic}");
        }
    }
}

#[test]
fn f64_rows_are_refused() {
    for gpu in gpus() {
        let Device::Gpu(gpu) = &gpu.device else { continue };
        let device = Device::Gpu(gpu.clone());
        let pair = Pair::<f64>::new(1, 1, 4, 0, 1.0);
        let mut value = [0f32];
        let args = VocabKl {
            policy: View::new(&pair.policy, &[1, 4]).unwrap(),
            reference: View::new(&pair.reference, &[1, 4]).unwrap(),
            guidance: None,
            vocab: 4,
            transform: PLAIN,
            divergence: KINDS[0],
            value: (&mut value[..]).into(),
        };
        assert!(vocab_kl(&device, args).unwrap_err().to_string().contains("f64"));
    }
}
