//! Token and sequence kernels against the CPU ops: packed batches with empty, single-token, fully
//! masked and long sequences, every setting, strides, several schedules.

use std::sync::Arc;

use crate::common::devices::{close, emulated, executors, shared_gpus};
use crate::common::{f64s, normals, same_stats};
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Device, View, ViewMut};

/// Offsets of sequences with the given lengths.
fn offsets(lengths: &[usize]) -> Vec<i64> {
    let mut at = 0;
    let ends = lengths.iter().map(|&n| {
        at += n as i64;
        at
    });
    std::iter::once(0).chain(ends).collect()
}

/// A packed batch; the third sequence with tokens is masked whole.
struct Batch {
    cu: Vec<i64>,
    mask: Vec<u8>,
    columns: Vec<Vec<f64>>,
    per_sequence: Vec<Vec<f64>>,
}

impl Batch {
    fn new(seed: u64, lengths: &[usize]) -> Batch {
        let cu = offsets(lengths);
        let n = cu[lengths.len()] as usize;
        let mut mask: Vec<u8> =
            (0..n).map(|i| !(i * 7 + seed as usize).is_multiple_of(5) as u8).collect();
        if lengths.len() > 3 {
            mask[cu[2] as usize..cu[3] as usize].fill(0);
        }
        let logp: Vec<f64> = normals(seed, n, 0.7).iter().map(|x| -0.1 - x.abs()).collect();
        let near = |k: u64| -> Vec<f64> {
            normals(seed + k, n, 0.2).iter().zip(&logp).map(|(e, l)| l + e).collect()
        };
        let columns =
            vec![logp.clone(), near(1), near(2), near(3), near(4), normals(seed + 5, n, 1.0)];
        let b = lengths.len();
        Batch { cu, mask, columns, per_sequence: vec![normals(seed + 6, b, 1.0), vec![0.37; b]] }
    }

    fn typed<R: Real>(&self, i: usize) -> Vec<R> {
        self.columns[i].iter().map(|&x| R::from_f64(x)).collect()
    }
}

const LATTICE: [&[usize]; 7] =
    [&[], &[0], &[1], &[3, 0, 4, 1], &[127, 128, 129, 0, 31], &[1000, 1, 257, 64, 65], &[5003]];

/// How far two executors may be apart: a few rounding errors of the element type.
fn bound<R: Real>() -> f64 {
    if size_of::<R>() == 4 { 3e-7 } else { 1e-11 }
}

fn seq_reduce_on<R: Real>(
    device: &Device,
    batch: &Batch,
    reduction: SeqReduction,
) -> (Vec<f64>, Vec<i64>) {
    let x: Vec<R> = batch.typed(5);
    let sequences = batch.cu.len() - 1;
    let (mut y, mut count) = (vec![R::from_f64(f64::NAN); sequences], vec![-1; sequences]);
    let args = SeqReduce {
        x: (&x).into(),
        mask: Some((&batch.mask).into()),
        cu_seqlens: (&batch.cu).into(),
        reduction,
        y: (&mut y).into(),
        count: Some((&mut count).into()),
    };
    seq_reduce(device, args).unwrap();
    (y.iter().map(|v| v.to_f64()).collect(), count)
}

fn broadcast_on<R: Real>(device: &Device, batch: &Batch, mean: bool) -> Vec<f64> {
    let x: Vec<R> = batch.per_sequence[0].iter().map(|&x| R::from_f64(x)).collect();
    let mut y = vec![R::from_f64(f64::NAN); batch.mask.len()];
    let args = SeqBroadcast {
        x: (&x).into(),
        mask: Some((&batch.mask).into()),
        cu_seqlens: (&batch.cu).into(),
        mean,
        y: (&mut y).into(),
    };
    seq_broadcast(device, args).unwrap();
    y.iter().map(|v| v.to_f64()).collect()
}

fn reductions<R: Real>() {
    use SeqReduction::{Max, Mean, Min, Sum};
    for (seed, lengths) in LATTICE.iter().enumerate() {
        let batch = Batch::new(seed as u64 * 100, lengths);
        for executor in shared_gpus() {
            for reduction in [Sum, Mean, Max, Min] {
                let (want, n) = seq_reduce_on::<R>(&Device::Cpu, &batch, reduction);
                let (got, m) = seq_reduce_on::<R>(&executor.device, &batch, reduction);
                let floor = lengths.iter().max().copied().unwrap_or(1) as f64;
                close(
                    &format!("{} {reduction:?}", executor.name),
                    &want,
                    &got,
                    bound::<R>(),
                    floor,
                );
                assert_eq!(n, m);
            }
            for mean in [false, true] {
                let want = broadcast_on::<R>(&Device::Cpu, &batch, mean);
                assert_eq!(want, broadcast_on::<R>(&executor.device, &batch, mean));
            }
        }
    }
}

#[test]
fn sequence_reductions() {
    reductions::<f32>();
    reductions::<f64>();
}

fn value_loss_on<R: Real>(device: &Device, batch: &Batch, clip: f64) -> (f64, Vec<f64>) {
    let (v, target, old): (Vec<R>, Vec<R>, Vec<R>) =
        (batch.typed(0), batch.typed(5), batch.typed(1));
    let (mut loss, mut dvalue) = (f64::NAN, vec![R::from_f64(f64::NAN); v.len()]);
    let args = ValueLoss {
        value: (&v).into(),
        returns: (&target).into(),
        old_value: Some((&old).into()),
        mask: Some((&batch.mask).into()),
        clip,
        weight: 0.25,
        loss: &mut loss,
        dvalue: (&mut dvalue).into(),
    };
    value_loss(device, args).unwrap();
    (loss, dvalue.iter().map(|v| v.to_f64()).collect())
}

#[test]
fn value_losses() {
    for lengths in LATTICE.iter().chain([&[4095usize, 1, 4097, 5000][..]].iter()) {
        let batch = Batch::new(11, lengths);
        for executor in shared_gpus() {
            for clip in [f64::INFINITY, 0.1, 0.0] {
                let (want, got) = (
                    value_loss_on::<f64>(&Device::Cpu, &batch, clip),
                    value_loss_on::<f64>(&executor.device, &batch, clip),
                );
                close(&executor.name, &[want.0], &[got.0], 1e-12, 1e-3);
                assert_eq!(want.1, got.1, "{}", executor.name);
                let (want, got) = (
                    value_loss_on::<f32>(&Device::Cpu, &batch, clip),
                    value_loss_on::<f32>(&executor.device, &batch, clip),
                );
                close(&executor.name, &[want.0], &[got.0], 1e-12, 1e-3);
                assert_eq!(want.1, got.1, "{}", executor.name);
            }
        }
    }
}

fn offpolicy_settings() -> Vec<OffPolicySettings> {
    use OffPolicyBound::{Mask, SequenceMask, Truncate};
    use OffPolicyLevel::{SequenceMean, SequenceSum, Token};
    let mut list = Vec::new();
    for level in [Token, SequenceSum, SequenceMean] {
        for bound in [Truncate, Mask, SequenceMask] {
            for normalize in [false, true] {
                let base = OffPolicySettings {
                    level,
                    bound,
                    min: 0.7,
                    max: 1.6,
                    normalize,
                    ..Default::default()
                };
                list.push(base);
                for (by, level) in [
                    (RejectBy::K1, RejectLevel::Token),
                    (RejectBy::K2, RejectLevel::SequenceMean),
                    (RejectBy::K3, RejectLevel::SequenceMax),
                    (RejectBy::K3, RejectLevel::SequenceSum),
                ] {
                    let reject = Some(Reject { by, level, lo: -0.1, hi: 0.06 });
                    list.push(OffPolicySettings { reject, clamp: 0.5, ..base });
                }
            }
        }
    }
    list
}

fn offpolicy_on(
    device: &Device,
    batch: &Batch,
    settings: OffPolicySettings,
) -> (Vec<f64>, OffPolicyStats) {
    let (old, mut sampler) = (batch.columns[0].clone(), batch.columns[1].clone());
    if sampler.len() > 5 {
        sampler[4] = f64::NAN;
    }
    let (mut weight, mut stats) = (vec![f64::NAN; old.len()], OffPolicyStats::default());
    let args = OffPolicyWeight {
        old_logp: (&old).into(),
        sampler_logp: (&sampler).into(),
        mask: Some((&batch.mask).into()),
        cu_seqlens: (&batch.cu).into(),
        settings,
        weight: (&mut weight).into(),
        stats: Some(&mut stats),
    };
    offpolicy_weight(device, args).unwrap();
    (weight, stats)
}

#[test]
fn offpolicy_weights() {
    for lengths in LATTICE {
        let batch = Batch::new(21, lengths);
        for settings in offpolicy_settings() {
            let (want, a) = offpolicy_on(&Device::Cpu, &batch, settings);
            for executor in shared_gpus() {
                let (got, b) = offpolicy_on(&executor.device, &batch, settings);
                let name = format!("{} {settings:?} {lengths:?}", executor.name);
                close(&name, &want, &got, 1e-11, 1e-3);
                assert_eq!(
                    (a.tokens, a.dropped, a.nan_sampler),
                    (b.tokens, b.dropped, b.nan_sampler),
                    "{name}"
                );
                let sums = |s: &OffPolicyStats| [s.min, s.max, s.mean, s.ess, s.chi2];
                close(&name, &sums(&a), &sums(&b), 1e-10, 1.0);
            }
        }
    }
}

fn policies() -> Vec<PolicySettings> {
    let base = PolicySettings::default();
    let losses = [
        Loss::CrossEntropy,
        Loss::Reinforce,
        Loss::PpoClip { lo: 0.9, hi: 1.1, dual: 1.2 },
        Loss::Cispo { lo: 0.8, hi: 1.1 },
        Loss::Sapo { tau_pos: 1.0, tau_neg: 1.05 },
        Loss::Vespo { pos: (2.0, 3.0), neg: (3.0, 2.0) },
        Loss::Gmpo { lo: 0.1, hi: 0.1 },
        Loss::Dro { beta: 0.3 },
        Loss::DppoTv { lo: 0.02, hi: 0.03, cap: 1.2 },
        Loss::DppoKl { lo: 0.001, hi: 0.002, cap: 1.2 },
        Loss::Prime { lo: 0.02, hi: 0.02, kappa: 0.1 },
        Loss::KlCov { kappa: 0.7 },
    ];
    let mut list: Vec<PolicySettings> =
        losses.iter().map(|&loss| PolicySettings { loss, ..base }).collect();
    for ratio in [RatioLevel::SequenceMean, RatioLevel::SequenceMeanToken, RatioLevel::SequenceSum]
    {
        list.push(PolicySettings { ratio, seq_log_ratio_max: 0.05, ..base });
    }
    for (estimator, gradient, weight) in [
        (KlEstimator::K1, KlGradient::K2, KlWeight::One),
        (KlEstimator::K2, KlGradient::Same, KlWeight::Ratio),
        (KlEstimator::K3, KlGradient::None, KlWeight::RatioDetached),
        (KlEstimator::Abs, KlGradient::Same, KlWeight::One),
    ] {
        let kl = Kl {
            estimator,
            gradient,
            weight,
            clamp_in: 0.3,
            clamp_out: 0.2,
            mix: 0.4,
            ..Kl::k3(0.5)
        };
        list.push(PolicySettings { kl: Some(kl), ..base });
    }
    list.push(PolicySettings {
        denominator: Denominator::Sampler,
        center: ClipCenter::OldOverSampler,
        opsm: 0.01,
        log_ratio_clamp: 0.15,
        entropy_coef: 0.01,
        class_weight: [1.0, 0.5, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0],
        class_self_ratio: [false, true, false, false, false, false, false, false],
        ..base
    });
    list
}

struct Output {
    loss: f64,
    dlogp: Vec<f64>,
    dentropy: Vec<f64>,
    token_loss: Vec<f64>,
    stats: PolicyStats,
}

fn policy_on<R: Real>(
    device: &Device,
    batch: &Batch,
    settings: &PolicySettings,
    stride: usize,
) -> Output {
    let n = batch.mask.len();
    // Columns of one matrix: every vector has the same stride.
    let spread = |column: &[f64]| -> Vec<R> {
        let mut out = vec![R::from_f64(9e9); (n.max(1) - 1) * stride + 1];
        column.iter().enumerate().for_each(|(i, &x)| out[i * stride] = R::from_f64(x));
        out
    };
    let data: Vec<Vec<R>> = batch.columns.iter().map(|c| spread(c)).collect();
    let view = |i: usize| View::strided(&data[i], &[n as i64], &[stride as i64]).unwrap();
    let class: Vec<u8> = (0..n).map(|i| (i % 4) as u8).collect();
    let selected: Vec<u8> = (0..n).map(|i| (i % 3 == 0) as u8).collect();
    let advantage: Vec<R> = batch.per_sequence[0].iter().map(|&x| R::from_f64(x)).collect();
    let weight: Vec<R> = batch.per_sequence[1].iter().map(|&x| R::from_f64(x)).collect();
    let rho: Vec<R> = batch.columns[4].iter().map(|&x| R::from_f64(x.abs())).collect();
    let mut outputs = vec![vec![R::from_f64(f64::NAN); (n.max(1) - 1) * stride + 1]; 3];
    let (mut loss, mut stats) = (f64::NAN, PolicyStats::default());
    let mut out =
        outputs.iter_mut().map(|o| ViewMut::strided(o, &[n as i64], &[stride as i64]).unwrap());
    let args = PolicyLoss {
        old_logp: Some(view(1)),
        sampler_logp: Some(view(2)),
        ref_logp: Some(view(3)),
        ref2_logp: Some(view(4)),
        mask: Some((&batch.mask).into()),
        class: Some((&class).into()),
        selected: Some((&selected).into()),
        token_weight: Some((&rho).into()),
        is_weight: Some((&rho).into()),
        entropy: Some(view(5)),
        dentropy: out.next(),
        token_loss: out.next(),
        stats: Some(&mut stats),
        ..PolicyLoss::new(
            view(0),
            Advantage::PerSequence((&advantage).into()),
            (&batch.cu).into(),
            (&weight).into(),
            settings,
            &mut loss,
            out.next().unwrap(),
        )
    };
    policy_loss(device, args).unwrap();
    let pick = |o: &[R]| (0..n).map(|i| o[i * stride].to_f64()).collect::<Vec<f64>>();
    Output {
        loss,
        dentropy: pick(&outputs[0]),
        token_loss: pick(&outputs[1]),
        dlogp: pick(&outputs[2]),
        stats,
    }
}

#[test]
fn policy_losses() {
    for lengths in LATTICE {
        let batch = Batch::new(31, lengths);
        for (k, settings) in policies().iter().enumerate() {
            let want = policy_on::<f64>(&Device::Cpu, &batch, settings, 1);
            for executor in shared_gpus() {
                let name = format!("{} {settings:?} {lengths:?}", executor.name);
                let got = policy_on::<f64>(&executor.device, &batch, settings, 1 + k % 3);
                let scale = want.dlogp.iter().fold(1e-3f64, |m, g| m.max(g.abs()));
                close(&name, &[want.loss], &[got.loss], 1e-11, 1.0);
                close(&name, &want.dlogp, &got.dlogp, 1e-11, scale);
                close(&name, &want.token_loss, &got.token_loss, 1e-11, 1.0);
                assert_eq!(want.dentropy, got.dentropy, "{name}");
                same_stats(&name, &want.stats, &got.stats);
            }
        }
    }
}

/// f32 results are the f64 results on the same inputs, rounded once.
#[test]
fn policy_loss_rounds_once() {
    let batch = Batch::new(41, &[33, 0, 70, 5, 300]);
    let narrow = Batch {
        columns: batch.columns.iter().map(|c| f64s(&crate::common::f32s(c))).collect(),
        per_sequence: batch.per_sequence.iter().map(|c| f64s(&crate::common::f32s(c))).collect(),
        ..batch
    };
    for settings in policies() {
        for executor in executors() {
            let wide = policy_on::<f64>(&executor.device, &narrow, &settings, 1);
            let got = policy_on::<f32>(&executor.device, &narrow, &settings, 1);
            let want: Vec<f64> = wide.dlogp.iter().map(|&x| x as f32 as f64).collect();
            // |rho| is rounded to f32 in one run and not in the other: one more rounding.
            close(&executor.name, &want, &got.dlogp, 4e-7, 1e-2);
        }
    }
}

/// The same bits for every order of warps and blocks, in one launch each, and for a sequence alone.
#[test]
fn schedules_and_batches_do_not_matter() {
    let lengths = [200, 0, 7, 130, 64];
    let batch = Batch::new(51, &lengths);
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        for settings in &policies()[..15] {
            let first = policy_on::<f32>(&emulated(set, 0), &batch, settings, 1);
            for seed in 1..4 {
                let driver = Arc::new(EmuDriver::new().with_seed(seed));
                let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
                let again = policy_on::<f32>(&Device::Gpu(Arc::new(gpu)), &batch, settings, 1);
                assert_eq!(first.loss.to_bits(), again.loss.to_bits(), "{settings:?} seed {seed}");
                assert_eq!(first.dlogp, again.dlogp);
                assert_eq!(driver.take_launches().len(), 1, "policy_loss is one launch");
            }
            let last = batch.cu[4] as usize..batch.cu[5] as usize;
            let alone = Batch {
                cu: vec![0, 64],
                mask: batch.mask[last.clone()].to_vec(),
                columns: batch.columns.iter().map(|c| c[last.clone()].to_vec()).collect(),
                per_sequence: batch.per_sequence.iter().map(|c| vec![c[4]]).collect(),
            };
            // Classes and marks follow the place in the batch: 401 is 1 mod 4, so they are shifted.
            if settings.class_weight == [1.0; 8] && !matches!(settings.loss, Loss::KlCov { .. }) {
                let alone = policy_on::<f32>(&emulated(set, 0), &alone, settings, 1);
                assert_eq!(alone.dlogp, first.dlogp[last]);
            }
        }
    }
}
