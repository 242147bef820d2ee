//! The policy loss against central differences for every loss, ratio and KL, the identities between
//! published objectives, and its promises on masks, splits and bad input.

use crate::common::devices::{close, on_all};
use crate::common::{check_gradient, normals, same_stats};
use gradus::ops::{
    Advantage, Aggregation, ClipCenter, Denominator, Kl, KlEstimator, KlGradient, KlWeight, Loss,
    PolicyLoss, PolicySettings, PolicyStats, RatioLevel, policy_loss, seq_weights,
};
use gradus::{Device, View, ViewMut};

const OFFSETS: [i64; 5] = [0, 4, 4, 7, 12];

/// A batch of four sequences (one empty), 12 tokens.
#[derive(Clone)]
struct Batch {
    logp: Vec<f64>,
    old: Vec<f64>,
    sampler: Vec<f64>,
    reference: Vec<f64>,
    second: Vec<f64>,
    advantage: Vec<f64>,
    mask: Vec<u8>,
    selected: Vec<u8>,
    entropy: Vec<f64>,
    weight: Vec<f64>,
}

impl Batch {
    fn new(seed: u64) -> Batch {
        let around = |k: u64, base: &[f64], scale| -> Vec<f64> {
            normals(seed * 31 + k, 12, scale).iter().zip(base).map(|(n, b)| b + n).collect()
        };
        let logp: Vec<f64> = normals(seed, 12, 0.5).iter().map(|x| -1.5 - x.abs()).collect();
        Batch {
            old: around(1, &logp, 0.15),
            sampler: around(2, &logp, 0.15),
            reference: around(3, &logp, 0.3),
            second: around(4, &logp, 0.3),
            logp,
            advantage: vec![1.3, 0.0, -0.8, 0.6],
            mask: vec![1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1],
            selected: vec![1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1],
            entropy: vec![0.5; 12],
            weight: vec![0.2, 0.3, 0.1, 0.4],
        }
    }

    /// On every executor; the CPU's result is returned.
    fn run(&self, settings: &PolicySettings) -> (f64, Vec<f64>, PolicyStats) {
        on_all(
            |device| self.run_on(device, settings),
            |name, cpu, gpu| {
                let name = format!("{name} {settings:?}");
                close(&name, &[cpu.0], &[gpu.0], 1e-12, 1.0);
                close(&name, &cpu.1, &gpu.1, 1e-12, 0.1);
                same_stats(&name, &cpu.2, &gpu.2);
            },
        )
    }

    fn run_on(&self, device: &Device, settings: &PolicySettings) -> (f64, Vec<f64>, PolicyStats) {
        let (mut loss, mut stats) = (f64::NAN, PolicyStats::default());
        let mut dlogp = vec![f64::NAN; 12];
        let args = PolicyLoss {
            old_logp: Some((&self.old).into()),
            sampler_logp: Some((&self.sampler).into()),
            ref_logp: Some((&self.reference).into()),
            ref2_logp: Some((&self.second).into()),
            mask: Some((&self.mask).into()),
            selected: Some((&self.selected).into()),
            entropy: Some((&self.entropy).into()),
            stats: Some(&mut stats),
            ..PolicyLoss::new(
                (&self.logp).into(),
                Advantage::PerSequence((&self.advantage).into()),
                (&OFFSETS[..]).into(),
                (&self.weight).into(),
                settings,
                &mut loss,
                ViewMut::from(&mut dlogp),
            )
        };
        policy_loss(device, args).unwrap();
        (loss, dlogp, stats)
    }
}

fn losses() -> Vec<Loss> {
    vec![
        Loss::CrossEntropy,
        Loss::Reinforce,
        Loss::PpoClip { lo: 0.8, hi: 1.2, dual: f64::INFINITY },
        Loss::PpoClip { lo: 0.9, hi: 1.1, dual: 1.15 },
        Loss::Sapo { tau_pos: 1.0, tau_neg: 1.05 },
        Loss::Gmpo { lo: 0.1, hi: 0.1 },
        Loss::Dro { beta: 0.3 },
        Loss::Prime { lo: 0.02, hi: 0.02, kappa: 0.1 },
        Loss::KlCov { kappa: 0.7 },
    ]
}

/// Every differentiable loss at every ratio level, with and without each KL. Losses that contain
/// stop-gradients (CISPO, VESPO, DPPO) are covered by the identities and the peers' goldens.
#[test]
fn policy_loss_gradients_match_central_differences() {
    let kls = [
        None,
        Some(Kl::k3(0.3)),
        Some(Kl { estimator: KlEstimator::K2, weight: KlWeight::Ratio, ..Kl::k3(0.3) }),
        Some(Kl { weight: KlWeight::Ratio, mix: 0.4, ..Kl::k3(0.3) }),
        Some(Kl { estimator: KlEstimator::Abs, ..Kl::k3(0.2) }),
        Some(Kl { estimator: KlEstimator::K1, ..Kl::k3(0.2) }),
    ];
    let mut checked = 0;
    for loss in losses() {
        for ratio in [RatioLevel::Token, RatioLevel::SequenceMean, RatioLevel::SequenceSum] {
            for kl in kls {
                let settings = PolicySettings { loss, ratio, kl, ..PolicySettings::default() };
                let batch = Batch::new(3);
                let (_, dlogp, _) = batch.run(&settings);
                let f = |x: &[f64]| batch_with(&batch, x).run_on(&Device::Cpu, &settings).0;
                let worst = check_gradient(f, &batch.logp, &dlogp, 1e-6);
                assert!(worst < 1e-6, "{loss:?} {ratio:?} {kl:?}: {worst}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 9 * 3 * 6);
}

fn batch_with(batch: &Batch, logp: &[f64]) -> Batch {
    Batch { logp: logp.to_vec(), ..batch.clone() }
}

/// GSPO-token has GSPO's value, and its gradient where advantages are constant over a sequence.
#[test]
fn gspo_token_equals_gspo_at_constant_advantage() {
    let at = |ratio| PolicySettings { ratio, ..PolicySettings::default() };
    let batch = Batch::new(4);
    let (a, da, _) = batch.run(&at(RatioLevel::SequenceMean));
    let (b, db, _) = batch.run(&at(RatioLevel::SequenceMeanToken));
    assert!((a - b).abs() < 1e-12);
    assert!(da.iter().zip(&db).all(|(x, y)| (x - y).abs() < 1e-12));
}

/// On the first update (ℓ_old = ℓ) PPO, CISPO and REINFORCE have one gradient, −A, and nothing is
/// clipped; VESPO and DPPO reduce to weighted forms of it.
#[test]
fn first_update_is_reinforce() {
    let mut batch = Batch::new(5);
    batch.old = batch.logp.clone();
    batch.sampler = batch.logp.clone();
    let (_, reinforce, _) =
        batch.run(&PolicySettings { loss: Loss::Reinforce, ..PolicySettings::default() });
    for loss in [
        Loss::PpoClip { lo: 0.8, hi: 1.2, dual: 3.0 },
        Loss::Cispo { lo: 0.0, hi: 5.0 },
        Loss::DppoTv { lo: 0.2, hi: 0.2, cap: 3.0 },
        Loss::DppoKl { lo: 0.2, hi: 0.2, cap: 3.0 },
        Loss::Sapo { tau_pos: 1.0, tau_neg: 1.0 },
    ] {
        let (_, dlogp, stats) = batch.run(&PolicySettings { loss, ..PolicySettings::default() });
        assert!(dlogp.iter().zip(&reinforce).all(|(a, b)| (a - b).abs() < 1e-12), "{loss:?}");
        assert_eq!(stats.n_clip_lo + stats.n_clip_hi + stats.n_dual, 0, "{loss:?}");
        assert_eq!((stats.min_ratio, stats.max_ratio), (1.0, 1.0));
    }
}

/// ReMix with a sampler equal to the old policy is PPO, bit for bit; two equal anchors are one.
#[test]
fn remix_reduces_to_ppo_and_one_anchor() {
    let mut batch = Batch::new(6);
    batch.sampler = batch.old.clone();
    batch.second = batch.reference.clone();
    let kl = Some(Kl::k3(0.1));
    let ppo = batch.run(&PolicySettings { kl, ..PolicySettings::default() });
    let remix = batch.run(&PolicySettings {
        denominator: Denominator::Sampler,
        center: ClipCenter::OldOverSampler,
        kl,
        ..PolicySettings::default()
    });
    assert_eq!((ppo.0, &ppo.1), (remix.0, &remix.1));
    let mixed = batch.run(&PolicySettings {
        kl: Some(Kl { mix: 0.3, ..Kl::k3(0.1) }),
        ..PolicySettings::default()
    });
    assert!((mixed.0 - ppo.0).abs() < 1e-14);
    assert!(mixed.1.iter().zip(&ppo.1).all(|(a, b)| (a - b).abs() < 1e-14));
}

/// At ℓ = ℓ_ref every estimator is 0; k2 and k3 have no gradient there, k1 has 1.
#[test]
fn kl_estimators_vanish_at_the_reference() {
    let mut batch = Batch::new(7);
    batch.reference = batch.logp.clone();
    let none = PolicySettings { loss: Loss::Reinforce, ..PolicySettings::default() };
    let base = batch.run(&none);
    for (estimator, slope) in [
        (KlEstimator::K1, 1.0),
        (KlEstimator::K2, 0.0),
        (KlEstimator::K3, 0.0),
        (KlEstimator::Abs, 0.0),
    ] {
        let kl = Some(Kl { estimator, ..Kl::k3(2.0) });
        let with = batch.run(&PolicySettings { kl, ..none });
        assert!((with.0 - base.0).abs() < 1e-15, "{estimator:?}");
        for (i, (a, b)) in with.1.iter().zip(&base.1).enumerate() {
            let w = batch.weight[OFFSETS.iter().rposition(|&o| o <= i as i64).unwrap()];
            let want = 2.0 * slope * w * batch.mask[i] as f64;
            assert!((a - b - want).abs() < 1e-12, "{estimator:?} token {i}");
        }
    }
}

/// Garbage under the mask changes no bit; a batch is the sum of its sequences; statistics merge.
#[test]
fn masked_tokens_are_never_read_and_batches_split() {
    let kl = Some(Kl::k3(0.05));
    let settings = PolicySettings { kl, entropy_coef: 0.01, ..PolicySettings::default() };
    let batch = Batch::new(8);
    let clean = batch.run(&settings);
    let mut dirty = batch.clone();
    for (t, _) in batch.mask.iter().enumerate().filter(|(_, m)| **m == 0) {
        for column in [&mut dirty.logp, &mut dirty.old, &mut dirty.sampler, &mut dirty.reference] {
            column[t] = f64::NAN;
        }
        dirty.entropy[t] = f64::INFINITY;
    }
    assert_eq!(dirty.run(&settings), clean);
    assert!(clean.1.iter().zip(&batch.mask).all(|(g, &m)| m == 1 || g.to_bits() == 0));
    let mut total = 0.0;
    let mut stats = PolicyStats::default();
    for i in 0..4 {
        let mut one = batch.clone();
        one.mask = (0..12)
            .map(|t| batch.mask[t] * (OFFSETS[i] <= t as i64 && (t as i64) < OFFSETS[i + 1]) as u8)
            .collect();
        let part = one.run(&settings);
        total += part.0;
        stats.merge(&part.2);
    }
    assert!((total - clean.0).abs() < 1e-14);
    assert_eq!(stats.n_tokens, clean.2.n_tokens);
    assert_eq!(stats.sum_kl, clean.2.sum_kl);
}

/// A straight-through gradient, a detached weight and a measured-only KL are what they say.
#[test]
fn kl_gradient_choices() {
    let batch = Batch::new(9);
    let run = |kl| batch.run(&PolicySettings { kl: Some(kl), ..PolicySettings::default() });
    let none = batch.run(&PolicySettings::default());
    let silent = run(Kl { gradient: KlGradient::None, ..Kl::k3(0.5) });
    assert_eq!(silent.1, none.1);
    assert!(silent.0 > none.0);
    let through = run(Kl { gradient: KlGradient::K2, ..Kl::k3(0.5) });
    let k2 = run(Kl { estimator: KlEstimator::K2, ..Kl::k3(0.5) });
    assert!(through.1.iter().zip(&k2.1).all(|(a, b)| (a - b).abs() < 1e-14));
    assert!((through.0 - silent.0).abs() < 1e-14);
}

#[test]
fn aggregation_weights() {
    let lengths = [4, 0, 3, 5];
    let w = |a| seq_weights(a, &lengths).unwrap();
    assert_eq!(w(Aggregation::TokenMean), [1.0 / 12.0, 0.0, 1.0 / 12.0, 1.0 / 12.0]);
    assert_eq!(w(Aggregation::SequenceMeanTokenMean { count_empty: true })[0], 1.0 / 16.0);
    assert_eq!(w(Aggregation::SequenceMeanTokenMean { count_empty: false })[0], 1.0 / 12.0);
    assert_eq!(w(Aggregation::SequenceMeanTokenSum { count_empty: false })[3], 1.0 / 3.0);
    assert_eq!(w(Aggregation::Constant { length: 10.0, count_empty: true })[2], 1.0 / 40.0);
    assert_eq!(w(Aggregation::TokenSum), [1.0, 0.0, 1.0, 1.0]);
    assert!(seq_weights(Aggregation::TokenMean, &[-1]).is_err());
    let error = seq_weights(Aggregation::TokenMeanOf { tokens: 0.0 }, &lengths).unwrap_err();
    assert!(error.to_string().contains("`tokens`"), "{error}");
}

#[test]
fn policy_loss_refuses_bad_settings_and_missing_inputs() {
    let ok = PolicySettings::default();
    let ppo = |lo, hi, dual| PolicySettings { loss: Loss::PpoClip { lo, hi, dual }, ..ok };
    for (settings, name) in [
        (ppo(1.1, 1.2, 3.0), "settings.loss"),
        (ppo(0.8, 0.9, 3.0), "settings.loss"),
        (ppo(0.8, 1.2, 1.1), "settings.loss"),
        (ppo(f64::NAN, 1.2, 3.0), "settings.loss"),
        (PolicySettings { loss: Loss::Dro { beta: 0.0 }, ..ok }, "settings.loss"),
        (PolicySettings { kl: Some(Kl::k3(-1.0)), ..ok }, "settings.kl.coef"),
        (PolicySettings { kl: Some(Kl { mix: 2.0, ..Kl::k3(1.0) }), ..ok }, "settings.kl.mix"),
        (PolicySettings { entropy_coef: f64::NAN, ..ok }, "settings.entropy_coef"),
        (PolicySettings { log_ratio_clamp: 0.0, ..ok }, "settings.log_ratio_clamp"),
        (PolicySettings { center: ClipCenter::OldOverSampler, ..ok }, "settings.center"),
    ] {
        let text = settings.validate().unwrap_err().to_string();
        assert!(text.contains(name), "{text} should name {name}");
    }
    let (x, mut loss, mut d) = ([-1f64; 3], 5.0, [7f64; 3]);
    let mut call = |settings: &PolicySettings, offsets: &[i64], weights: &[f64]| {
        let advantage = Advantage::PerToken(View::from(&x[..]));
        let (offsets, weights) = (offsets.into(), weights.into());
        let out = ViewMut::from(&mut d[..]);
        let args =
            PolicyLoss::new((&x[..]).into(), advantage, offsets, weights, settings, &mut loss, out);
        policy_loss(&Device::Cpu, args).unwrap_err().to_string()
    };
    let with_kl = PolicySettings { kl: Some(Kl::k3(0.1)), ..ok };
    let sampler = PolicySettings { denominator: Denominator::Sampler, ..ok };
    for (text, name) in [
        (call(&with_kl, &[0, 3], &[1.0]), "`ref_logp`"),
        (call(&sampler, &[0, 3], &[1.0]), "`sampler_logp`"),
        (call(&ok, &[0, 2], &[1.0]), "`cu_seqlens`"),
        (call(&ok, &[0, 2, 1, 3], &[1.0; 3]), "`cu_seqlens`"),
        (call(&ok, &[1, 3], &[1.0]), "`cu_seqlens`"),
        (call(&ok, &[], &[]), "`cu_seqlens`"),
        (call(&ok, &[0, 3], &[1.0, 2.0]), "`seq_weight`"),
    ] {
        assert!(text.contains(name), "{text} should name {name}");
    }
    assert_eq!((loss, d), (5.0, [7.0; 3]), "a refused call writes nothing");
}
