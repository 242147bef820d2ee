//! The log-prob kernels on the emulator and on CUDA: against f64, against the CPU op, and against
//! themselves: a row has the same bits in host and device memory, alone and in a batch, at every
//! alignment and under every schedule.

use std::sync::Arc;

use crate::common::devices::{emulated, gpu_of, gpus};
use crate::common::{bits, normals, ulps_f32};
use crate::vocabulary::{PLAIN, TRANSFORMS};
use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::Float;
use gradus::ops::{
    LogProb, LogProbBwd, LogProbFused, LogitTransform, logprob, logprob_bwd, logprob_fused,
};
use gradus::view::{Dims, Location};
use gradus::{Device, View, ViewMut, bf16, f16};

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

/// Gradients against f64. The share of a column d below the maximum is 2^(d·log2 e) with d and the
/// product each rounded once: a relative error of 2^-24·(2|d| + a few); sums that cancel add
/// 2^-22 of the row's largest gradient; a result of 16 bits is rounded or its neighbor.
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
        assert!(got[r.vocab..].iter().all(|d| d.to_f64() == 0.0), "{name}: padding");
        let (z, y) = (r.z(i), r.targets[i] as usize);
        let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let max = z.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
        let others = |f: &dyn Fn(f64) -> f64| -> f64 {
            (0..z.len()).filter(|&v| v != y).map(|v| (z[v] - max).exp() * f(max - z[v])).sum()
        };
        for v in 0..r.vocab {
            // The target's gradient is the sum of all others' shares.
            let d = if v == y { others(&|d| d) / others(&|_| 1.0).max(1e-300) } else { max - z[v] };
            let (got, want) = (got[v].to_f64(), want[v]);
            let neighbor = match size_of::<T>() {
                2 => (want.abs() * 2f64.powi(-7)).max(2f64.powi(-24)),
                _ => f32::MIN_POSITIVE as f64,
            };
            // The f64 gradient itself has 1 - q at the target.
            let f64_error = 2f64.powi(-50) * g.dlogp[i].abs() as f64;
            let bound = 2f64.powi(-24) * ((8.0 + 2.0 * d) * want.abs() + 4.0 * largest) + f64_error;
            let off = (got - T::from_f64(want).to_f64()).abs();
            assert!(
                off <= bound + neighbor,
                "{name}: V {}, row {i}, {v}: {got} for {want}",
                z.len()
            );
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

const ALL: [KernelSet; 2] = [KernelSet::Sm80, KernelSet::Sm90a];

/// A view of device memory that starts `offset` elements into a buffer, rows `stride` apart.
fn placed<'a, T: Float>(
    gpu: &Arc<Gpu>,
    buffer: &'a DeviceBuffer<T>,
    offset: usize,
    shape: [usize; 2],
    stride: usize,
) -> View<'a, T> {
    let whole = buffer.view(&[buffer.len() as i64]).unwrap();
    assert!(offset + (shape[0] - 1) * stride + shape[1] <= buffer.len());
    let dims = Dims::strided(&shape.map(|n| n as i64), &[stride as i64, 1]).unwrap();
    let place = Location::Device(gpu.info().ordinal);
    // SAFETY: the assertion above keeps the rows inside the buffer, which outlives the view.
    unsafe { View::from_raw(whole.as_ptr().add(offset), dims, place).unwrap() }
}

/// Forward and backward with logits and gradients `offset` elements into device memory.
fn on_device<T: Float>(
    gpu: &Arc<Gpu>,
    r: &Rows<T>,
    offset: usize,
    gap: usize,
) -> (Vec<u32>, Vec<f64>) {
    let device = Device::Gpu(gpu.clone());
    let (n, stride) = (r.rows(), r.vocab + gap);
    // NaN around the rows: nobody may read it, and it must still be there afterwards.
    let mut data = vec![T::from_f32(f32::NAN); offset + n * stride];
    for i in 0..n {
        data[offset + i * stride..][..r.vocab].copy_from_slice(r.row(i));
    }
    let buffer = DeviceBuffer::from_host(gpu, &data).unwrap();
    let logits = placed(gpu, &buffer, offset, [n, r.vocab], stride);
    let targets = DeviceBuffer::from_host(gpu, &r.targets).unwrap();
    let mut logp = DeviceBuffer::<f32>::new(gpu, n).unwrap();
    let args = LogProb {
        transform: r.transform,
        ..LogProb::new(
            logits,
            targets.view(&[n as i64]).unwrap(),
            logp.view_mut(&[n as i64]).unwrap(),
        )
    };
    logprob(&device, args).unwrap();
    let g = DeviceBuffer::from_host(gpu, &Upstream::logp(n).dlogp).unwrap();
    let out = DeviceBuffer::from_host(gpu, &data).unwrap();
    let view = placed(gpu, &out, offset, [n, r.vocab], stride);
    // SAFETY: nothing else uses `out` until the op is done.
    let dlogits = unsafe {
        ViewMut::from_raw(view.as_ptr() as *mut T, *view.dims(), view.location()).unwrap()
    };
    let args = LogProbBwd {
        transform: r.transform,
        ..LogProbBwd::new(
            logits,
            targets.view(&[n as i64]).unwrap(),
            g.view(&[n as i64]).unwrap(),
            dlogits,
        )
    };
    logprob_bwd(&device, args).unwrap();
    let written: Vec<f64> = out.to_host().unwrap().iter().map(|x| x.to_f64()).collect();
    assert!(written[..offset].iter().all(|x| x.is_nan()), "written before the rows");
    let mut gradients = Vec::new();
    for row in written[offset..].chunks(stride) {
        gradients.extend_from_slice(&row[..r.vocab]);
        assert!(row[r.vocab..].iter().all(|x| x.is_nan()), "written between the rows");
    }
    (bits(&logp.to_host().unwrap()), gradients)
}

/// Bits do not depend on where a row lies: memory of host or device, 16-byte alignment, gaps.
#[test]
fn bits_do_not_depend_on_alignment() {
    fn check<T: Float>(vocab: &[usize]) {
        for executor in gpus() {
            let gpu = gpu_of(&executor.device);
            for &v in vocab {
                let r = Rows::<T>::new(31, 2, v, 0, 3.0);
                let want = bits(&forward(&executor.device, &r).logp);
                let dwant = backward(&executor.device, &r, &Upstream::logp(2));
                let dwant: Vec<f64> = dwant.iter().map(|x| x.to_f64()).collect();
                for (offset, gap) in [(0, 0), (1, 0), (3, 1), (5, 2), (7, 4), (8, 8), (0, 3)] {
                    let (logp, d) = on_device(gpu, &r, offset, gap);
                    assert_eq!(logp, want, "{}: V {v}, offset {offset}", executor.name);
                    assert_eq!(d, dwant, "{}: V {v}, offset {offset}", executor.name);
                }
            }
        }
    }
    check::<f32>(&[1, 5, 1000, 4099, 40_001]);
    check::<bf16>(&[1, 7, 1000, 4099, 80_003]);
    check::<f16>(&[9, 2055]);
}

/// A row alone, in a batch and under every schedule of warps and blocks.
#[test]
fn bits_do_not_depend_on_batch_or_schedule() {
    for set in ALL {
        for v in [33, 5000, 80_003] {
            let r = Rows::<bf16>::new(8, 5, v, 1, 3.0).with(TRANSFORMS[1]);
            let first = emulated(set, 0);
            let (out, d) = (forward(&first, &r), backward(&first, &r, &Upstream::all(5)));
            for seed in [1, 2, 3] {
                let device = emulated(set, seed);
                assert_eq!(forward(&device, &r).bits(), out.bits(), "seed {seed}");
                assert_eq!(backward(&device, &r, &Upstream::all(5)), d, "seed {seed}");
            }
            for i in [0, 4] {
                let g = Upstream::all(5);
                let one = |x: &Option<Vec<f32>>| x.as_ref().map(|x| vec![x[i]]);
                let g = Upstream {
                    dlogp: vec![g.dlogp[i]],
                    dentropy: one(&g.dentropy),
                    dlse: one(&g.dlse),
                };
                let alone = Rows {
                    logits: r.logits[i * r.columns..][..r.columns].to_vec(),
                    targets: vec![r.targets[i]],
                    ..r.clone()
                };
                assert_eq!(forward(&first, &alone).logp[0].to_bits(), out.logp[i].to_bits());
                assert_eq!(backward(&first, &alone, &g), d[i * r.columns..][..r.columns]);
            }
        }
    }
}

/// In place, in one launch: the bits of the two ops.
#[test]
fn fused_has_the_bits_of_both() {
    for executor in gpus() {
        for v in [1, 45, 3001, 90_001] {
            let r = Rows::<bf16>::new(4, 3, v, 3, 2.0).with(TRANSFORMS[1]);
            let mut r = Rows { targets: vec![r.targets[0], -100, r.targets[2]], ..r };
            let (out, g) = (forward(&executor.device, &r), Upstream::logp(3));
            let d = backward(&executor.device, &r, &g);
            let (mut logp, mut entropy) = (vec![f32::NAN; 3], vec![f32::NAN; 3]);
            let args = LogProbFused {
                logits: ViewMut::new(&mut r.logits, &[3, r.columns as i64]).unwrap(),
                targets: (&r.targets).into(),
                vocab: v as i64,
                transform: r.transform,
                dlogp: (&g.dlogp).into(),
                logp: (&mut logp).into(),
                entropy: Some((&mut entropy).into()),
            };
            logprob_fused(&executor.device, args).unwrap();
            assert_eq!((bits(&logp), bits(&entropy)), (bits(&out.logp), bits(&out.entropy)));
            assert_eq!(r.logits, d, "{}: V {v}", executor.name);
        }
    }
}

/// NaN equals NaN.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6 || a == b || (a.is_nan() && b.is_nan()))
}

/// Rows of `v` logits with tokens that cannot occur, with NaN, with infinities, ignored; and their targets.
fn broken_rows(v: usize) -> Vec<(Vec<f32>, i32)> {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let mut rows = Vec::new();
    let normal: Vec<f32> = normals(3, v, 2.0).iter().map(|&x| x as f32).collect();
    for (at, value, target) in [
        (0, nan, 5),
        (2499, nan, 2499),
        (7, inf, 7),
        (7, inf, 8),
        (9, -inf, 9),
        (9, f32::MIN, 9),
        (11, f32::MAX, 12),
        (0, 0.0, -100),
    ] {
        let mut row = normal.clone();
        row[at] = value;
        rows.push((row, target));
    }
    rows.push((vec![-inf; v], 3));
    rows.push((vec![-inf; v], 0));
    rows.push((vec![nan; v], 3));
    rows.push((vec![f32::MIN; v], 3));
    rows.push((vec![-1000.0; v], 3));
    let mut leading = vec![-inf; v];
    (leading[2400], leading[2499]) = (2.0, 2.0);
    rows.extend([(leading.clone(), 2400), (leading.clone(), 2499), (leading, 0)]);
    rows
}

/// Broken rows give what the CPU op says.
#[test]
fn broken_rows_are_those_of_the_cpu() {
    let v = 2500;
    let rows = broken_rows(v);
    for transform in TRANSFORMS {
        let r = Rows {
            logits: rows.iter().flat_map(|(row, _)| row.clone()).collect(),
            vocab: v,
            columns: v,
            targets: rows.iter().map(|(_, target)| *target).collect(),
            transform,
        };
        let want = forward(&Device::Cpu, &r);
        let g = Upstream::all(rows.len());
        let dwant = backward(&Device::Cpu, &r, &g);
        for executor in gpus() {
            let got = forward(&executor.device, &r);
            let name = format!("{} {transform:?}", executor.name);
            for (got, want, what) in [
                (&got.logp, &want.logp, "logp"),
                (&got.lse, &want.lse, "lse"),
                (&got.entropy, &want.entropy, "entropy"),
                (&got.log_sum_sq, &want.log_sum_sq, "log_sum_sq"),
            ] {
                for i in 0..rows.len() {
                    let scale = want[i].abs().max(1.0) * 2f32.powi(-21);
                    let near = (got[i] - want[i]).abs() <= scale;
                    let equal = got[i] == want[i] || (got[i].is_nan() && want[i].is_nan());
                    assert!(near || equal, "{name}: {what}[{i}]: {} for {}", got[i], want[i]);
                }
            }
            assert_eq!(got.top1, want.top1, "{name}");
            let d = backward(&executor.device, &r, &g);
            for i in 0..rows.len() {
                let (d, want) = (&d[i * v..][..v], &dwant[i * v..][..v]);
                assert!(same(d, want), "{name}: gradient of row {i}");
            }
        }
    }
}

/// Targets in device memory are not looked at before the launch: one that is out of range makes
/// its own row NaN and its gradient 0.
#[test]
fn device_targets_out_of_range() {
    for executor in gpus() {
        let gpu = gpu_of(&executor.device);
        let mut r = Rows::<f32>::new(6, 4, 300, 0, 1.0);
        r.targets = vec![5, 300, -7, i32::MAX];
        let (logp, d) = on_device(gpu, &r, 1, 0);
        assert!(f32::from_bits(logp[0]).is_finite(), "{}", executor.name);
        assert!(logp[1..].iter().all(|&l| f32::from_bits(l).is_nan()), "{}", executor.name);
        assert!(d[300..].iter().all(|&d| d == 0.0) && d[..300].iter().any(|&d| d != 0.0));
    }
}

/// No rows, no launch; f64 rows are refused.
#[test]
fn nothing_to_do_and_nothing_that_can() {
    for executor in gpus() {
        let empty =
            Rows::<f32> { logits: vec![], vocab: 7, columns: 7, targets: vec![], transform: PLAIN };
        assert!(forward(&executor.device, &empty).logp.is_empty());
        let (logits, targets, mut logp) = ([0f64; 2], [0i32], [0f32]);
        let x = View::new(&logits, &[1, 2]).unwrap();
        let args = LogProb::new(x, (&targets[..]).into(), (&mut logp[..]).into());
        let error = logprob(&executor.device, args).unwrap_err().to_string();
        assert!(error.contains("f64"), "{error}");
    }
}

/// Counted traffic of a launch in units of `bytes`, and the share of a full warp that works.
fn traffic(driver: &EmuDriver, bytes: usize) -> (f64, f64) {
    let launches = driver.take_launches();
    assert_eq!(launches.len(), 1, "one launch");
    let c = &launches[0].1;
    assert!(c.sector_efficiency() >= 0.95 && c.local_accesses == 0, "{}", launches[0].0);
    (c.global_bytes() as f64 / bytes as f64, c.lanes_per_instruction())
}

/// Forward reads a row once and backward once more writes it, within 5 % and also where rows are
/// not aligned. Only rows that the one block of sm_80 cannot hold are read twice by backward.
#[test]
fn traffic_is_the_least_there_is() {
    fn check<T: Float>(set: KernelSet, v: usize) {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
        let device = Device::Gpu(Arc::new(gpu));
        let r = Rows::<T>::new(4, 8, v, 0, 3.0);
        let bytes = r.rows() * v * size_of::<T>();
        let mut logp = vec![0f32; r.rows()];
        let logits = View::rows_of(&r.logits, v).unwrap();
        let args = LogProb::new(logits, (&r.targets).into(), (&mut logp).into());
        logprob(&device, args).unwrap();
        let (forward, lanes) = traffic(&driver, bytes);
        let name = format!("{} {} V {v}", set.name(), T::DTYPE.name());
        assert!(forward <= 1.05 && lanes >= 31.0, "{name}: {forward} bytes, {lanes} lanes");
        backward(&device, &r, &Upstream::logp(r.rows()));
        let (twice, _) = traffic(&driver, 2 * bytes);
        let held = set == KernelSet::Sm90a || v * size_of::<T>() <= 220_000;
        assert!(twice <= if held { 1.05 } else { 1.575 }, "{name}: backward {twice}");
    }
    for set in ALL {
        for v in [32_000, 50_257, 151_936, 151_937] {
            check::<bf16>(set, v);
            check::<f32>(set, v);
        }
    }
}
