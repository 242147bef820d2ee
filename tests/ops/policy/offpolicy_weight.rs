//! Off-policy weights: by hand, on every executor, in both dtypes, with NaN.

use crate::common::devices::{close, executors, shared_gpus};
use crate::policy::batch::*;
use crate::policy::columns::*;
use crate::policy::rounding::*;
use gradus::Device;
use gradus::dtype::Real;
use gradus::ops::*;

fn offpolicy<R: Real>(device: &Device) -> Vec<f64> {
    let (old, sampler) = (values::<R>(17, 300, 1.0), values::<R>(18, 300, 1.0));
    let mut weight = nan::<R>(300);
    let args = OffPolicyWeight {
        old_logp: (&old).into(),
        sampler_logp: (&sampler).into(),
        mask: None,
        cu_seqlens: [0i64, 100, 100, 299, 300][..].into(),
        settings: OffPolicySettings::default(),
        weight: (&mut weight).into(),
        stats: None,
    };
    offpolicy_weight(device, args).unwrap();
    wide(&[&weight])
}

#[test]
fn offpolicy_weight_in_f32_is_f64_rounded_once() {
    rounds_once("offpolicy_weight", offpolicy::<f32>, offpolicy::<f64>);
}

fn weights(
    settings: OffPolicySettings,
    old: &[f64],
    sampler: &[f64],
) -> (Vec<f64>, OffPolicyStats) {
    let (mut weight, mut stats) = (vec![f64::NAN; old.len()], OffPolicyStats::default());
    let args = OffPolicyWeight {
        old_logp: old.into(),
        sampler_logp: sampler.into(),
        mask: None,
        cu_seqlens: (&[0i64, 2, 4][..]).into(),
        settings,
        weight: (&mut weight).into(),
        stats: Some(&mut stats),
    };
    offpolicy_weight(&Device::Cpu, args).unwrap();
    (weight, stats)
}

#[test]
fn offpolicy_weights_by_hand() {
    let ln = |x: f64| x.ln();
    let (old, sampler) =
        ([ln(0.5), ln(0.4), ln(0.9), ln(0.1)], [ln(0.25), ln(0.4), ln(0.3), ln(0.4)]);
    // Ratios 2, 1 | 3, 1/4; sequence products 2 and 3/4.
    let token = OffPolicySettings { level: OffPolicyLevel::Token, ..Default::default() };
    let near = |got: &[f64], want: &[f64]| {
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} {want:?}");
    };
    let cut = OffPolicySettings { bound: OffPolicyBound::Truncate, max: 2.5, min: 0.5, ..token };
    near(&weights(cut, &old, &sampler).0, &[2.0, 1.0, 2.5, 0.5]);
    let mask = OffPolicySettings { bound: OffPolicyBound::Mask, max: 2.5, min: 0.5, ..token };
    let (w, stats) = weights(mask, &old, &sampler);
    near(&w, &[2.0, 1.0, 0.0, 0.0]);
    assert_eq!((stats.tokens, stats.dropped), (4, 2));
    assert!((stats.max - 3.0).abs() < 1e-12 && (stats.min - 0.25).abs() < 1e-12);
    assert!((stats.mean - 6.25 / 4.0).abs() < 1e-12);
    let sequence = OffPolicySettings { max: 1.5, ..Default::default() };
    near(&weights(sequence, &old, &sampler).0, &[0.0, 0.0, 0.75, 0.75]);
    let geometric = OffPolicySettings { bound: OffPolicyBound::SequenceMask, max: 1.2, ..token };
    near(&weights(geometric, &old, &sampler).0, &[0.0, 0.0, 3.0, 0.25]);
    let reject = Reject { by: RejectBy::K2, level: RejectLevel::SequenceMax, lo: 0.0, hi: 0.5 };
    let rejecting = OffPolicySettings { reject: Some(reject), max: f64::INFINITY, ..token };
    near(&weights(rejecting, &old, &sampler).0, &[2.0, 1.0, 0.0, 0.0]);
    let normal = OffPolicySettings { normalize: true, ..mask };
    near(&weights(normal, &old, &sampler).0, &[2.0 / 1.5, 1.0 / 1.5, 0.0, 0.0]);
    let (w, stats) = weights(token, &old, &[f64::NAN, ln(0.4), ln(0.9), ln(0.1)]);
    near(&w, &[1.0; 4]);
    assert_eq!((stats.nan_sampler, stats.ess, stats.chi2), (1, 1.0, 0.0));
    let bad = OffPolicySettings { min: 2.0, max: 1.0, ..token };
    let (x, mut out) = ([0f64; 1], [0f64; 1]);
    let args = OffPolicyWeight {
        old_logp: (&x[..]).into(),
        sampler_logp: (&x[..]).into(),
        mask: None,
        cu_seqlens: (&[0i64, 1][..]).into(),
        settings: bad,
        weight: (&mut out[..]).into(),
        stats: None,
    };
    let text = offpolicy_weight(&Device::Cpu, args).unwrap_err().to_string();
    assert!(text.contains("`settings.max`"), "{text}");
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

fn off_policy_settings() -> Vec<OffPolicySettings> {
    let plain = OffPolicySettings { min: 0.5, max: 2.0, ..OffPolicySettings::default() };
    let mut all = Vec::new();
    for bound in [OffPolicyBound::Truncate, OffPolicyBound::Mask, OffPolicyBound::SequenceMask] {
        for level in
            [OffPolicyLevel::Token, OffPolicyLevel::SequenceSum, OffPolicyLevel::SequenceMean]
        {
            all.extend([false, true].map(|normalize| OffPolicySettings {
                bound,
                level,
                normalize,
                min: 0.01,
                max: 100.0,
                ..plain
            }));
        }
    }
    for level in [
        RejectLevel::Token,
        RejectLevel::SequenceSum,
        RejectLevel::SequenceMean,
        RejectLevel::SequenceMax,
    ] {
        let reject = |by| Some(Reject { by, level, lo: -9.0, hi: 9.0 });
        all.extend(
            [RejectBy::K1, RejectBy::K2, RejectBy::K3]
                .map(|by| OffPolicySettings { reject: reject(by), ..plain }),
        );
    }
    all
}

#[test]
fn nan_stays_in_off_policy_weights() {
    let columns = policy_columns(1.0);
    let run = |device: &Device, columns: &Columns, settings: &OffPolicySettings| -> Outputs {
        let (cu, mask, mut weight) = (OFFSETS, mask(), vec![0.0; TOKENS]);
        let args = OffPolicyWeight {
            old_logp: columns.view("old_logp"),
            sampler_logp: columns.view("sampler_logp"),
            mask: Some((&mask).into()),
            cu_seqlens: (&cu[..]).into(),
            settings: *settings,
            weight: (&mut weight).into(),
            stats: None,
        };
        offpolicy_weight(device, args).unwrap();
        vec![("weight", weight)]
    };
    for executor in executors() {
        for s in off_policy_settings() {
            let whole = s.level != OffPolicyLevel::Token
                || s.bound == OffPolicyBound::SequenceMask
                || s.reject.as_ref().is_some_and(|r| r.level != RejectLevel::Token);
            let what = format!("{} offpolicy_weight {s:?}", executor.name);
            let clean = run(&executor.device, &columns, &s);
            assert!(clean[0].1.iter().filter(|&&w| w > 0.0).count() == TOKENS - 1, "{what}");
            let dirty = run(&executor.device, &columns.poisoned("old_logp", POISONED), &s);
            check(&what, &clean, &dirty, |_, i| match (s.normalize, whole) {
                _ if i == MASKED => false,
                // The mean of all weights is unknown.
                (true, _) => true,
                (false, true) => SECOND.contains(&i),
                (false, false) => i == POISONED,
            });
        }
    }
}
