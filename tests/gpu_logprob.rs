//! The log-prob kernels on the emulator and on CUDA: against f64, against the CPU op, and against
//! themselves: a row has the same bits in host and device memory, alone and in a batch, at every
//! alignment and under every schedule.

mod common;

use common::devices::{emulated, gpus};
use common::{bits, normals, ulps_f32};
use gradus::device::{DeviceBuffer, Gpu, KernelSet};
use gradus::dtype::Float;
use gradus::ops::{
    LogProb, LogProbBwd, LogProbFused, LogitTransform, logprob, logprob_bwd, logprob_fused,
};
use gradus::view::{Dims, Place};
use gradus::{Device, View, ViewMut, bf16, f16};
use std::sync::Arc;

const PLAIN: LogitTransform =
    LogitTransform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY };

const TRANSFORMS: [LogitTransform; 4] = [
    PLAIN,
    LogitTransform { temperature: 0.7, ..PLAIN },
    LogitTransform { temperature: 1.3, scale: -0.5, ..PLAIN },
    LogitTransform { temperature: 0.9, scale: 1.5, softcap: 8.0 },
];

/// Rows of `columns` columns, of which `vocab` exist; the others are NaN, which nobody may read.
#[derive(Clone)]
struct Rows<T> {
    logits: Vec<T>,
    vocab: usize,
    columns: usize,
    targets: Vec<i32>,
    transform: LogitTransform,
}

impl<T: Float> Rows<T> {
    fn new(seed: u64, rows: usize, vocab: usize, pad: usize, scale: f64) -> Rows<T> {
        let columns = vocab + pad;
        let mut logits = vec![T::from_f32(f32::NAN); rows * columns];
        let values = normals(seed, rows * vocab, scale);
        for (i, row) in logits.chunks_mut(columns).enumerate() {
            for (x, v) in row[..vocab].iter_mut().zip(&values[i * vocab..]) {
                *x = T::from_f64(*v);
            }
        }
        let targets = (0..rows).map(|i| ((i * 7919 + vocab / 2) % vocab) as i32).collect();
        Rows { logits, vocab, columns, targets, transform: PLAIN }
    }

    fn with(mut self, transform: LogitTransform) -> Rows<T> {
        self.transform = transform;
        self
    }

    fn rows(&self) -> usize {
        self.targets.len()
    }

    fn row(&self, i: usize) -> &[T] {
        &self.logits[i * self.columns..][..self.vocab]
    }

    /// z of a row in f64.
    fn z(&self, i: usize) -> Vec<f64> {
        let t = &self.transform;
        let z = |x: f64| {
            let z = x * t.scale;
            let z = if t.softcap.is_finite() { t.softcap * (z / t.softcap).tanh() } else { z };
            if x == f64::NEG_INFINITY { x } else { z / t.temperature }
        };
        self.row(i).iter().map(|x| z(x.to_f64())).collect()
    }
}

/// All outputs of the forward pass.
#[derive(Clone, Debug, PartialEq)]
struct Out {
    logp: Vec<f32>,
    lse: Vec<f32>,
    entropy: Vec<f32>,
    log_sum_sq: Vec<f32>,
    top1: Vec<u8>,
}

impl Out {
    fn bits(&self) -> Vec<u32> {
        let floats = [&self.logp, &self.lse, &self.entropy, &self.log_sum_sq];
        let mut all: Vec<u32> = floats.into_iter().flat_map(|f| bits(f)).collect();
        all.extend(self.top1.iter().map(|&t| t as u32));
        all
    }
}

fn forward<T: Float>(device: &Device, r: &Rows<T>) -> Out {
    let n = r.rows();
    let mut out = Out {
        logp: vec![f32::NAN; n],
        lse: vec![f32::NAN; n],
        entropy: vec![f32::NAN; n],
        log_sum_sq: vec![f32::NAN; n],
        top1: vec![9; n],
    };
    let args = LogProb {
        logits: View::new(&r.logits, &[n as i64, r.columns as i64]).unwrap(),
        targets: (&r.targets).into(),
        vocab: r.vocab as i64,
        transform: r.transform,
        logp: (&mut out.logp).into(),
        lse: Some((&mut out.lse).into()),
        entropy: Some((&mut out.entropy).into()),
        log_sum_sq: Some((&mut out.log_sum_sq).into()),
        top1: Some((&mut out.top1).into()),
    };
    logprob(device, args).unwrap();
    out
}

/// Upstream gradients of log-prob, entropy and lse.
struct Upstream {
    dlogp: Vec<f32>,
    dentropy: Option<Vec<f32>>,
    dlse: Option<Vec<f32>>,
}

impl Upstream {
    fn logp(n: usize) -> Upstream {
        let dlogp = normals(77, n, 1.0).iter().map(|&g| g as f32).collect();
        Upstream { dlogp, dentropy: None, dlse: None }
    }

    fn all(n: usize) -> Upstream {
        let f = |seed| Some(normals(seed, n, 0.3).iter().map(|&g| g as f32).collect());
        Upstream { dentropy: f(78), dlse: f(79), ..Upstream::logp(n) }
    }
}

fn backward<T: Float>(device: &Device, r: &Rows<T>, g: &Upstream) -> Vec<T> {
    let shape = [r.rows() as i64, r.columns as i64];
    let mut dlogits = vec![T::from_f32(f32::NAN); r.logits.len()];
    let args = LogProbBwd {
        logits: View::new(&r.logits, &shape).unwrap(),
        targets: (&r.targets).into(),
        vocab: r.vocab as i64,
        transform: r.transform,
        dlogp: (&g.dlogp).into(),
        dentropy: g.dentropy.as_ref().map(View::from),
        dlse: g.dlse.as_ref().map(View::from),
        dlogits: ViewMut::new(&mut dlogits, &shape).unwrap(),
    };
    logprob_bwd(device, args).unwrap();
    dlogits
}

/// The definitions in f64: logp, lse, entropy, log Σp².
fn oracle(z: &[f64], y: usize) -> [f64; 4] {
    let m = z.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = z.iter().map(|x| (x - m).exp()).collect();
    let s: f64 = e.iter().sum();
    let mean: f64 = e.iter().zip(z).filter(|(e, _)| **e > 0.0).map(|(e, x)| e * (x - m)).sum();
    let squares: f64 = e.iter().map(|e| e * e).sum();
    [z[y] - m - s.ln(), m + s.ln(), s.ln() - mean / s, squares.ln() - 2.0 * s.ln()]
}

/// Outputs within 4 ulp (f32) of f64, at the size of max(|logp|, |lse|, 1); returns the worst.
fn check_forward<T: Float>(name: &str, r: &Rows<T>, out: &Out) -> f64 {
    let mut worst = 0.0f64;
    for (i, &y) in r.targets.iter().enumerate() {
        let want = oracle(&r.z(i), y as usize);
        let size = want[0].abs().max(want[1].abs()).max(1.0);
        let got = [out.logp[i], out.lse[i], out.entropy[i], out.log_sum_sq[i]];
        for (got, want) in got.into_iter().zip(want) {
            let off = ulps_f32(got, want, size);
            assert!(off <= 4.0, "{name}: V {}, row {i}: {got} for {want}: {off} ulp", r.vocab);
            worst = worst.max(off);
        }
        assert!(out.logp[i] <= 0.0 && out.entropy[i] >= 0.0, "{name}");
    }
    worst
}

/// Gradients within `bound` of f64, relative to the row's largest.
fn check_backward<T: Float>(name: &str, r: &Rows<T>, g: &Upstream, got: &[T]) {
    let wide = Rows {
        logits: r.logits.iter().map(|x| x.to_f64()).collect::<Vec<f64>>(),
        vocab: r.vocab,
        columns: r.columns,
        targets: r.targets.clone(),
        transform: r.transform,
    };
    let exact = backward(&Device::Cpu, &wide, g);
    for (i, (got, want)) in got.chunks(r.columns).zip(exact.chunks(r.columns)).enumerate() {
        let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(got[r.vocab..].iter().all(|d| d.to_f64() == 0.0), "{name}: padding");
        for (v, (got, want)) in got.iter().zip(want).enumerate() {
            let rounded = T::from_f64(*want).to_f64();
            let unit = match size_of::<T>() {
                2 => (want.abs() * 2f64.powi(-7)).max(2f64.powi(-24)),
                _ => 0.0,
            };
            let off = (got.to_f64() - rounded).abs();
            let bound = unit + 2f64.powi(-20) * want.abs() + 2f64.powi(-22) * largest;
            assert!(off <= bound, "{name}: V {}, row {i}, {v}: {got:?} for {want}", r.vocab);
        }
    }
}

fn lattice<T: Float>(vocab: &[usize]) {
    for gpu in gpus() {
        for (j, &v) in vocab.iter().enumerate() {
            for (k, transform) in TRANSFORMS.into_iter().enumerate() {
                if v > 5000 && k != j % 4 && k != 0 {
                    continue;
                }
                let rows = if v > 5000 { 2 } else { 3 };
                let scale = [3.0, 0.01, 12.0][j % 3];
                let r = Rows::<T>::new(v as u64, rows, v, [0, 1, 5][j % 3], scale).with(transform);
                let name = format!("{} {}", gpu.name, T::DTYPE.name());
                let out = forward(&gpu.device, &r);
                check_forward(&name, &r, &out);
                assert_eq!(out.top1, forward(&Device::Cpu, &r).top1, "{name}: V {v}");
                let g = if j % 2 == 0 { Upstream::logp(rows) } else { Upstream::all(rows) };
                check_backward(&name, &r, &g, &backward(&gpu.device, &r, &g));
            }
        }
    }
}

const SMALL: [usize; 19] =
    [1, 2, 3, 7, 8, 9, 31, 32, 33, 127, 128, 129, 255, 257, 1000, 1023, 1025, 2048, 4099];

#[test]
fn logprob_lattice_f32() {
    lattice::<f32>(&SMALL);
    lattice::<f32>(&[50_257, 151_937]);
}

#[test]
fn logprob_lattice_bf16() {
    lattice::<bf16>(&SMALL);
    lattice::<bf16>(&[32_000, 151_936, 151_937]);
}

#[test]
fn logprob_lattice_f16() {
    lattice::<f16>(&SMALL);
    lattice::<f16>(&[50_257]);
}

/// The largest vocabulary that is promised, and rows that no cluster can hold.
#[test]
fn logprob_of_the_widest_rows() {
    for gpu in gpus() {
        for v in [262_144, 480_001] {
            let r = Rows::<f32>::new(5, 1, v, 0, 4.0);
            check_forward(&gpu.name, &r, &forward(&gpu.device, &r));
            let g = Upstream::all(1);
            check_backward(&gpu.name, &r, &g, &backward(&gpu.device, &r, &g));
        }
    }
}
