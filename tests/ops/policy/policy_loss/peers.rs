//! The policy loss against TRL's and verl's own output: loss and gradient from f64 inputs.

use crate::common::devices::{close, on_all};
use crate::common::{Golden, max_rel, same_stats};
use gradus::ops::{
    Advantage, Aggregation, Kl, KlEstimator, KlGradient, Loss, PolicyLoss, PolicySettings,
    PolicyStats, RatioLevel, policy_loss, presets, seq_weights,
};
use gradus::{Device, View, ViewMut};

/// A golden batch `[B, T]`: padded rows are one packed sequence each, the mask left in place.
struct Batch {
    b: usize,
    t: usize,
    logp: Vec<f64>,
    old: Vec<f64>,
    reference: Option<Vec<f64>>,
    mask: Vec<u8>,
    advantage: Vec<f64>,
    lengths: Vec<i64>,
}

impl Batch {
    fn of(file: &Golden) -> Batch {
        let shape = file.shape("logprob");
        let mask: Vec<u8> = file.f64("mask").iter().map(|&m| m as u8).collect();
        let lengths =
            mask.chunks(shape[1]).map(|row| row.iter().map(|&m| m as i64).sum()).collect();
        let column = |name: &str| if file.has(name) { Some(file.f64(name)) } else { None };
        Batch {
            b: shape[0],
            t: shape[1],
            logp: file.f64("logprob"),
            old: column("old_logprob").unwrap_or_else(|| file.f64("logprob")),
            reference: column("ref_logprob"),
            advantage: column("advantage").unwrap_or(vec![0.0; shape[0] * shape[1]]),
            mask,
            lengths,
        }
    }

    /// On every executor; the CPU's result is returned.
    fn run(&self, settings: &PolicySettings, aggregation: Aggregation) -> Output {
        let run = |device: &Device| self.run_on(device, settings, aggregation);
        on_all(run, |name, cpu, gpu| {
            let scale = cpu.dlogp.iter().fold(0.0f64, |m, g| m.max(g.abs()));
            close(name, &[cpu.loss], &[gpu.loss], 1e-12, 1.0);
            close(name, &cpu.dlogp, &gpu.dlogp, 1e-12, scale);
            close(name, &cpu.token_loss, &gpu.token_loss, 1e-12, 1.0);
            same_stats(name, &cpu.stats, &gpu.stats);
        })
    }

    fn run_on(
        &self,
        device: &Device,
        settings: &PolicySettings,
        aggregation: Aggregation,
    ) -> Output {
        let weight = seq_weights(aggregation, &self.lengths).unwrap();
        let offsets: Vec<i64> = (0..=self.b as i64).map(|i| i * self.t as i64).collect();
        let n = self.b * self.t;
        let mut out = Output {
            loss: f64::NAN,
            dlogp: vec![f64::NAN; n],
            token_loss: vec![f64::NAN; n],
            stats: PolicyStats::default(),
        };
        let args = PolicyLoss {
            old_logp: Some((&self.old).into()),
            ref_logp: self.reference.as_ref().map(View::from),
            mask: Some((&self.mask).into()),
            token_loss: Some((&mut out.token_loss).into()),
            stats: Some(&mut out.stats),
            ..PolicyLoss::new(
                (&self.logp).into(),
                Advantage::PerToken((&self.advantage).into()),
                (&offsets).into(),
                (&weight).into(),
                settings,
                &mut out.loss,
                ViewMut::from(&mut out.dlogp),
            )
        };
        policy_loss(device, args).unwrap();
        out
    }
}

struct Output {
    loss: f64,
    dlogp: Vec<f64>,
    token_loss: Vec<f64>,
    stats: PolicyStats,
}

fn assert_close(file: &Golden, out: &Output) {
    let want = file.get::<f64>("loss")[0];
    let off = (out.loss - want).abs() / want.abs().max(1e-3);
    assert!(off < 1e-6, "{}: loss {} against {want}", file.name, out.loss);
    let want = file.f64("grad_logprob");
    let scale = want.iter().fold(0.0f64, |m, g| m.max(g.abs()));
    let off = max_rel(&out.dlogp, &want, 1e-4 * scale);
    assert!(off < 1e-6, "{}: gradient off by {off:e}", file.name);
}

#[test]
fn trl_losses() {
    for file in Golden::family("trl") {
        let number = |key: &str| file.number(key);
        let length = number("max_completion_length").unwrap();
        let mut preset = presets::trl(file.text("loss_type").unwrap(), length).unwrap();
        let (low, high) = (number("epsilon_low").unwrap(), number("epsilon_high").unwrap());
        let settings = &mut preset.settings;
        match &mut settings.loss {
            Loss::PpoClip { lo, hi, dual } => {
                (*lo, *hi) = (1.0 - low, 1.0 + high);
                *dual = number("delta").unwrap_or(f64::INFINITY);
            }
            Loss::Cispo { hi, .. } => *hi = high,
            _ => {}
        }
        if file.text("importance_sampling_level") == Some("sequence") {
            settings.ratio = RatioLevel::SequenceMean;
        }
        let beta = number("beta").unwrap();
        let corrected = file.settings["use_bias_correction_kl"].as_bool().unwrap();
        settings.kl = (beta > 0.0).then(|| presets::trl_kl(beta, corrected));
        settings.opsm = number("off_policy_mask_threshold").unwrap_or(f64::INFINITY);
        let batch = Batch::of(&file);
        let out = batch.run(settings, preset.aggregation);
        assert_close(&file, &out);
        assert_eq!(out.stats.n_tokens as i64, batch.lengths.iter().sum::<i64>());
    }
}

#[test]
fn verl_losses() {
    for file in Golden::family("verl") {
        let name = file.text("loss").unwrap();
        let mut preset = presets::verl(name).unwrap();
        let number = |key: &str| file.number(key).unwrap();
        let (low, high) = (number("clip_ratio_low"), number("clip_ratio_high"));
        match &mut preset.settings.loss {
            Loss::PpoClip { lo, hi, .. } | Loss::Cispo { lo, hi } => {
                (*lo, *hi) = (1.0 - low, 1.0 + high);
            }
            Loss::Gmpo { lo, hi } | Loss::DppoTv { lo, hi, .. } | Loss::DppoKl { lo, hi, .. } => {
                (*lo, *hi) = (low, high);
            }
            _ => {}
        }
        let batch = Batch::of(&file);
        // geo_mean and sapo fix their aggregation, whatever the setting says.
        if !["geo_mean", "sapo"].contains(&name) {
            preset.aggregation = match file.text("loss_agg_mode").unwrap() {
                "token-mean" => Aggregation::TokenMean,
                "seq-mean-token-sum" => Aggregation::SequenceMeanTokenSum { count_empty: false },
                "seq-mean-token-mean" => Aggregation::SequenceMeanTokenMean { count_empty: false },
                "seq-mean-token-sum-norm" => {
                    Aggregation::Constant { length: batch.t as f64, count_empty: false }
                }
                other => panic!("{other}"),
            };
        }
        assert_close(&file, &batch.run(&preset.settings, preset.aggregation));
    }
}

/// verl's `kl_penalty`: values and gradients of every kind. Its k3 clamps k to ± 20 and the value
/// to ± 10, and so loses the gradient where the policy fell far below the reference.
#[test]
fn verl_kl_penalties() {
    for file in Golden::family("verl_kl") {
        let kind = file.text("kind").unwrap();
        let estimator = match kind.trim_end_matches('+') {
            "kl" | "k1" => KlEstimator::K1,
            "abs" => KlEstimator::Abs,
            "mse" | "k2" => KlEstimator::K2,
            "low_var_kl" | "k3" => KlEstimator::K3,
            other => panic!("{other}"),
        };
        let straight = kind.ends_with('+');
        let clamps = estimator == KlEstimator::K3;
        let kl = Kl {
            estimator,
            gradient: if straight { KlGradient::K2 } else { KlGradient::Same },
            clamp_in: if clamps { 20.0 } else { f64::INFINITY },
            clamp_out: if clamps { 10.0 } else { f64::INFINITY },
            ..Kl::k3(1.0)
        };
        let settings = PolicySettings { kl: Some(kl), ..PolicySettings::default() };
        let batch = Batch::of(&file);
        let out = batch.run(&settings, Aggregation::TokenSum);
        let masked = |x: Vec<f64>| -> Vec<f64> {
            x.iter().zip(&batch.mask).map(|(x, &m)| x * m as f64).collect()
        };
        let off = max_rel(&out.token_loss, &masked(file.f64("kl")), 1e-9);
        assert!(off < 1e-6, "{}: values off by {off:e}", file.name);
        let off = max_rel(&out.dlogp, &masked(file.f64("grad_logprob")), 1e-9);
        assert!(off < 1e-6, "{}: gradients off by {off:e}", file.name);
    }
}

fn one_token_kl(kl: Kl, logp: f32, reference: f32) -> (f32, f32) {
    let run = |device: &Device| one_token_kl_on(device, kl, logp, reference);
    on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name}"))
}

fn one_token_kl_on(device: &Device, kl: Kl, logp: f32, reference: f32) -> (f32, f32) {
    let settings = PolicySettings { kl: Some(kl), ..PolicySettings::default() };
    let (logp, reference) = ([logp], [reference]);
    let (mut loss, mut dlogp, mut token) = (0.0, [0f32], [0f32]);
    let args = PolicyLoss {
        ref_logp: Some((&reference[..]).into()),
        token_loss: Some((&mut token[..]).into()),
        ..PolicyLoss::new(
            (&logp[..]).into(),
            Advantage::PerSequence((&[0f32][..]).into()),
            (&[0i64, 1][..]).into(),
            (&[1f32][..]).into(),
            &settings,
            &mut loss,
            (&mut dlogp[..]).into(),
        )
    };
    policy_loss(device, args).unwrap();
    (token[0], dlogp[0])
}

/// Where the peers are wrong: e^k − k − 1 in f32 is −6e-8 at k = 2e-6, where the KL is 2e-12; and a
/// clamp on the value kills the gradient exactly where the penalty should act.
#[test]
fn k3_neither_cancels_nor_dies() {
    let k = 2f32.powi(-19);
    let naive = k.exp() - k - 1.0;
    assert!(naive <= 0.0 || (naive / (0.5 * k * k)) > 1e3, "the naive form: {naive:e}");
    let (value, slope) = one_token_kl(Kl::k3(1.0), -1.0, -1.0 + k);
    assert!((value / (0.5 * k * k) - 1.0).abs() < 1e-4, "{value:e}");
    assert!((slope / -k - 1.0).abs() < 1e-4, "{slope:e}");
    let clamped = Kl { clamp_in: 20.0, clamp_out: 10.0, ..Kl::k3(1.0) };
    assert_eq!(one_token_kl(clamped, -6.0, -1.0).1, 0.0, "verl's clamp has no gradient at k = 5");
    assert!((one_token_kl(Kl::k3(1.0), -6.0, -1.0).1 as f64 + 5f64.exp_m1()).abs() < 1e-4);
}
