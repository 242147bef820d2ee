//! Token and sequence kernels against the CPU ops: packed batches with empty, single-token, fully
//! masked and long sequences, every setting, strides, several schedules.

use std::sync::Arc;

use crate::common::devices::{close, emulated, executors, shared_gpus};
use crate::common::{f64s, same_stats};
use crate::policy::batch::*;
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Device, View, ViewMut};

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
        class_ids: Some((&class).into()),
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
