//! A NaN among the inputs of a loss or of a token op is in the loss and in every output that it reaches, and
//! nowhere else: a step with one must be skipped, not half taken. On every executor.

use crate::common::devices::executors;
use crate::common::devices::{gpu_of, placed, shared_gpus, vector};
use gradus::ops::*;
use gradus::{Device, View};

const NAN: f64 = f64::NAN;
/// Three sequences; the poisoned token is in the second, its fourth token is masked.
const OFFSETS: [i64; 4] = [0, 3, 8, 10];
const TOKENS: usize = 10;
const POISONED: usize = 4;
const MASKED: usize = 6;
const SECOND: std::ops::Range<usize> = 3..8;

/// Inputs by name.
#[derive(Clone)]
struct Columns(Vec<(&'static str, Vec<f64>)>);

impl Columns {
    fn get(&self, name: &str) -> &[f64] {
        &self.0.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no {name}")).1
    }
    fn view(&self, name: &str) -> View<'_, f64> {
        self.get(name).into()
    }
    fn poisoned(&self, name: &str, at: usize) -> Columns {
        let mut all = self.clone();
        all.0.iter_mut().find(|(n, _)| *n == name).unwrap().1[at] = NAN;
        all
    }
}

/// `n` numbers around `center`, none of them twice.
fn around(center: f64, n: usize, seed: u64) -> Vec<f64> {
    crate::common::normals(seed, n, 0.15).into_iter().map(|x| center + x.clamp(-0.5, 0.5)).collect()
}

fn mask() -> Vec<u8> {
    (0..TOKENS).map(|t| (t != MASKED) as u8).collect()
}

/// Outputs by name.
type Outputs = Vec<(&'static str, Vec<f64>)>;

fn out<'o>(outputs: &'o Outputs, name: &str) -> &'o [f64] {
    &outputs.iter().find(|(n, _)| *n == name).unwrap().1
}

/// Every element is NaN where `reached` says so, and elsewhere what it is without NaN.
fn check(
    what: &str,
    clean: &[(&'static str, Vec<f64>)],
    dirty: &[(&'static str, Vec<f64>)],
    reached: impl Fn(&str, usize) -> bool,
) {
    for ((name, before), (_, after)) in clean.iter().zip(dirty) {
        for (i, (b, a)) in before.iter().zip(after).enumerate() {
            assert!(!b.is_nan(), "{what}: {name}[{i}] is NaN without a NaN");
            let fits = if reached(name, i) { a.is_nan() } else { a == b };
            assert!(fits, "{what}: {name}[{i}] was {b} and is {a}");
        }
    }
}

// ---- policy_loss --------------------------------------------------------------------------------

fn losses() -> Vec<Loss> {
    vec![
        Loss::CrossEntropy,
        Loss::Reinforce,
        Loss::PpoClip { lo: 0.8, hi: 1.2, dual: f64::INFINITY },
        Loss::PpoClip { lo: 0.8, hi: 1.2, dual: 3.0 },
        Loss::Cispo { lo: 0.0, hi: 1.3 },
        Loss::Sapo { tau_pos: 1.0, tau_neg: 1.05 },
        Loss::Vespo { pos: (2.0, 3.0), neg: (3.0, 2.0) },
        Loss::Gmpo { lo: 0.4, hi: 0.4 },
        Loss::Dro { beta: 0.1 },
        Loss::DppoTv { lo: 0.2, hi: 0.2, cap: 5.0 },
        Loss::DppoKl { lo: 0.05, hi: 0.05, cap: 5.0 },
        Loss::Prime { lo: 0.2, hi: 0.2, kappa: 0.1 },
        Loss::KlCov { kappa: 0.1 },
    ]
}

fn policy_columns(sign: f64) -> Columns {
    let logp = around(-1.0, TOKENS, 1);
    let near = |seed| logp.iter().zip(around(0.0, TOKENS, seed)).map(|(l, e)| l + e).collect();
    Columns(vec![
        ("old_logp", near(2)),
        ("sampler_logp", near(3)),
        ("ref_logp", near(4)),
        ("ref2_logp", near(5)),
        ("token_weight", around(1.0, TOKENS, 6)),
        ("is_weight", around(1.0, TOKENS, 7)),
        ("entropy", around(1.5, TOKENS, 8)),
        ("advantage", around(1.0, TOKENS, 9).into_iter().map(|a| a * sign).collect()),
        ("seq_weight", around(0.5, 3, 10)),
        ("logp", logp),
    ])
}

fn run_policy(device: &Device, columns: &Columns, settings: &PolicySettings) -> Outputs {
    let (mut loss, cu, mask) = (0.0, OFFSETS, mask());
    let mut zeros = [(); 3].map(|_| vec![0.0; TOKENS]);
    let [dlogp, dentropy, token_loss] = &mut zeros;
    let (selected, mut stats) = (vec![1u8; TOKENS], PolicyStats::default());
    let mut args = PolicyLoss::new(
        columns.view("logp"),
        Advantage::PerToken(columns.view("advantage")),
        (&cu[..]).into(),
        columns.view("seq_weight"),
        settings,
        &mut loss,
        dlogp.as_mut_slice().into(),
    );
    args.old_logp = Some(columns.view("old_logp"));
    args.sampler_logp = Some(columns.view("sampler_logp"));
    args.ref_logp = Some(columns.view("ref_logp"));
    args.ref2_logp = Some(columns.view("ref2_logp"));
    args.token_weight = Some(columns.view("token_weight"));
    args.is_weight = Some(columns.view("is_weight"));
    args.entropy = Some(columns.view("entropy"));
    args.mask = Some((&mask).into());
    args.selected = Some((&selected).into());
    args.dentropy = Some(dentropy.as_mut_slice().into());
    args.token_loss = Some(token_loss.as_mut_slice().into());
    args.stats = Some(&mut stats);
    policy_loss(device, args).unwrap();
    let [dlogp, dentropy, token_loss] = zeros;
    vec![
        ("loss", vec![loss]),
        ("dlogp", dlogp),
        ("dentropy", dentropy),
        ("token_loss", token_loss),
        ("n_nonfinite", vec![stats.n_nonfinite as f64]),
    ]
}

/// What a column reaches: nothing, its token, or the tokens of its sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reach {
    Nothing,
    Token,
    Sequence,
}

/// (loss of tokens, gradient of tokens) that a NaN in `column` reaches.
fn reach(s: &PolicySettings, column: &str, sign: f64) -> (Reach, Reach) {
    use Reach::{Nothing, Sequence, Token};
    let weighs_kl = s.kl.as_ref().is_some_and(|kl| kl.weight != KlWeight::One);
    let ratio = weighs_kl || !matches!(s.loss, Loss::CrossEntropy | Loss::Reinforce);
    let joined = matches!(s.loss, Loss::Gmpo { .. } | Loss::Vespo { .. });
    // A gradient through a ratio that all tokens share carries every token's weight.
    let shared = matches!(s.loss, Loss::Gmpo { .. }) || s.ratio == RatioLevel::SequenceMean;
    let of_ratio = match (ratio, joined || s.ratio != RatioLevel::Token) {
        (false, _) => Nothing,
        (true, false) => Token,
        (true, true) => Sequence,
    };
    let masks = s.opsm.is_finite() && sign < 0.0 && s.loss != Loss::CrossEntropy;
    let by_advantage = matches!(
        s.loss,
        Loss::PpoClip { .. } | Loss::Sapo { .. } | Loss::Prime { .. } | Loss::KlCov { .. }
    );
    match column {
        "logp" if of_ratio == Sequence || masks => (Sequence, Sequence),
        "logp" => (Token, Token),
        "old_logp" if s.denominator == Denominator::Old => (of_ratio, of_ratio),
        "old_logp" if s.center == ClipCenter::OldOverSampler => (Token, Token),
        "sampler_logp" if s.denominator == Denominator::Sampler => (of_ratio, of_ratio),
        "sampler_logp" if masks => (Sequence, Sequence),
        "old_logp" | "sampler_logp" => (Nothing, Nothing),
        "ref_logp" | "ref2_logp" => match &s.kl {
            Some(kl) if column == "ref_logp" || kl.mix < 1.0 => {
                (Token, if kl.gradient == KlGradient::None { Nothing } else { Token })
            }
            _ => (Nothing, Nothing),
        },
        "is_weight" if matches!(s.loss, Loss::Vespo { .. }) => (Sequence, Sequence),
        "token_weight" | "is_weight" => (Token, if shared { Sequence } else { Token }),
        "advantage" if s.loss == Loss::CrossEntropy => (Nothing, Nothing),
        "advantage" if matches!(s.loss, Loss::Gmpo { .. }) => (Sequence, Sequence),
        "advantage" => (Token, if shared && by_advantage { Sequence } else { Token }),
        "entropy" if s.entropy_coef > 0.0 => (Token, Nothing),
        "entropy" => (Nothing, Nothing),
        other => panic!("{other}"),
    }
}

fn check_policy(device: &Device, name: &str, s: &PolicySettings, sign: f64) {
    let columns = policy_columns(sign);
    let clean = run_policy(device, &columns, s);
    for (column, _) in &columns.0 {
        let what = format!("{name} {:?} {:?} sign {sign}: NaN in {column}", s.loss, s.ratio);
        if *column == "seq_weight" {
            let dirty = run_policy(device, &columns.poisoned(column, 1), s);
            // The caller's weight is no part of a token's loss.
            check(&what, &clean[..4], &dirty[..4], |out, i| match out {
                "loss" => true,
                "dlogp" | "dentropy" => SECOND.contains(&i) && i != MASKED,
                _ => false,
            });
            continue;
        }
        // A masked token is not read.
        let masked = run_policy(device, &columns.poisoned(column, MASKED), s);
        check(&what, &clean, &masked, |_, _| false);
        let (loss, gradient) = reach(s, column, sign);
        let dirty = run_policy(device, &columns.poisoned(column, POISONED), s);
        let within = |reach: Reach, i: usize| match reach {
            Reach::Nothing => false,
            Reach::Token => i == POISONED,
            Reach::Sequence => SECOND.contains(&i) && i != MASKED,
        };
        let counted = (0..TOKENS).filter(|&i| within(loss, i) || within(gradient, i)).count();
        assert_eq!(out(&dirty, "n_nonfinite"), [counted as f64], "{what}");
        check(&what, &clean[..4], &dirty[..4], |out, i| match out {
            "loss" => loss != Reach::Nothing,
            "dlogp" => within(gradient, i),
            "token_loss" => within(loss, i),
            _ => false,
        });
    }
}

/// Settings beside the loss itself that bring every column into play.
fn variants(loss: Loss) -> Vec<PolicySettings> {
    let plain = PolicySettings { loss, ..PolicySettings::default() };
    let kl =
        |estimator, gradient, weight| Kl { estimator, gradient, weight, mix: 0.5, ..Kl::k3(0.1) };
    let with = |k: Kl| PolicySettings { kl: Some(k), entropy_coef: 0.01, ..plain };
    let mut all = vec![
        plain,
        PolicySettings { log_ratio_clamp: 20.0, seq_log_ratio_max: 10.0, ..plain },
        PolicySettings { denominator: Denominator::Sampler, ..plain },
        PolicySettings { opsm: 5.0, ..plain },
        with(kl(KlEstimator::K3, KlGradient::Same, KlWeight::One)),
        with(kl(KlEstimator::Abs, KlGradient::K2, KlWeight::RatioDetached)),
        with(kl(KlEstimator::K1, KlGradient::None, KlWeight::One)),
        with(Kl { clamp_in: 3.0, clamp_out: 2.0, mix: 1.0, ..Kl::k3(0.1) }),
    ];
    if !matches!(loss, Loss::Gmpo { .. } | Loss::Vespo { .. }) {
        let levels = [RatioLevel::SequenceMean, RatioLevel::SequenceMeanToken];
        all.extend(levels.map(|ratio| PolicySettings { ratio, ..plain }));
    }
    all
}

#[test]
fn nan_stays_in_every_policy_loss() {
    for executor in executors() {
        for loss in losses() {
            for settings in variants(loss) {
                for sign in [1.0, -1.0] {
                    check_policy(&executor.device, &executor.name, &settings, sign);
                }
            }
        }
        let stale = PolicySettings {
            denominator: Denominator::Sampler,
            center: ClipCenter::OldOverSampler,
            ..PolicySettings::default()
        };
        check_policy(&executor.device, &executor.name, &stale, 1.0);
        check_policy(&executor.device, &executor.name, &stale, -1.0);
    }
}

// ---- other token ops ----------------------------------------------------------------------------

#[test]
fn nan_stays_in_the_critic_s_loss() {
    let columns = Columns(vec![
        ("value", around(0.0, TOKENS, 1)),
        ("returns", around(1.0, TOKENS, 2)),
        ("old_value", around(0.1, TOKENS, 3)),
    ]);
    let run = |device: &Device, columns: &Columns| -> Outputs {
        let (mut loss, mut dvalue, mask) = (0.0, vec![0.0; TOKENS], mask());
        let args = ValueLoss {
            value: columns.view("value"),
            returns: columns.view("returns"),
            old_value: Some(columns.view("old_value")),
            mask: Some((&mask).into()),
            clip: 0.2,
            weight: 0.5,
            loss: &mut loss,
            dvalue: (&mut dvalue).into(),
        };
        value_loss(device, args).unwrap();
        vec![("loss", vec![loss]), ("dvalue", dvalue)]
    };
    for executor in executors() {
        let clean = run(&executor.device, &columns);
        for (column, _) in &columns.0 {
            let what = format!("{} value_loss: NaN in {column}", executor.name);
            let dirty = run(&executor.device, &columns.poisoned(column, POISONED));
            check(&what, &clean, &dirty, |out, i| out == "loss" || i == POISONED);
            let masked = run(&executor.device, &columns.poisoned(column, MASKED));
            check(&what, &clean, &masked, |_, _| false);
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

// ---- pair losses: NaN in host memory is refused, in device memory it must show -------------------

fn kinds() -> Vec<PreferenceKind> {
    vec![
        PreferenceKind::Sigmoid { label_smoothing: 0.1, margin: 0.2 },
        PreferenceKind::Hinge,
        PreferenceKind::Ipo,
        PreferenceKind::Robust { label_smoothing: 0.1 },
        PreferenceKind::Exo { label_smoothing: 0.1 },
        PreferenceKind::Nca,
        PreferenceKind::Bco { reference_point: 0.1 },
        PreferenceKind::SppoHard,
        PreferenceKind::ApoZero,
        PreferenceKind::ApoDown,
        PreferenceKind::Discopop { temperature: 0.5 },
        PreferenceKind::Orpo,
    ]
}

fn run_preference(device: &Device, columns: &Columns, kind: PreferenceKind) -> Outputs {
    let gpu = gpu_of(device);
    let n = columns.get("logp_chosen").len();
    let held = |name: &str| placed(gpu, columns.get(name));
    let (chosen, rejected) = (held("logp_chosen"), held("logp_rejected"));
    let (ref_chosen, ref_rejected) = (held("reference_chosen"), held("reference_rejected"));
    let [mut loss, mut d_chosen, mut d_rejected] = [(); 3].map(|_| vec![0.0; n]);
    let mut total = vec![0.0];
    let (orpo, length) = (matches!(kind, PreferenceKind::Orpo), vec![1i64; n]);
    let args = PreferenceLoss {
        logp: Pair { chosen: vector(&chosen), rejected: vector(&rejected) },
        reference: (!orpo)
            .then(|| Pair { chosen: vector(&ref_chosen), rejected: vector(&ref_rejected) }),
        length: Some(Pair { chosen: (&length[..]).into(), rejected: (&length[..]).into() }),
        kind,
        score: PreferenceScore::ReverseKl,
        beta: 0.5,
        likelihood: 0.0,
        weight: None,
        loss: (&mut loss).into(),
        d_logp: Pair { chosen: (&mut d_chosen).into(), rejected: (&mut d_rejected).into() },
        reward: None,
        total: Some((&mut total).into()),
    };
    preference_loss(device, args).unwrap();
    vec![("loss", loss), ("chosen", d_chosen), ("rejected", d_rejected), ("total", total)]
}

#[test]
fn nan_stays_in_preference_losses() {
    let columns = Columns(vec![
        ("logp_chosen", around(-1.0, 4, 1)),
        ("logp_rejected", around(-1.5, 4, 2)),
        ("reference_chosen", around(-1.1, 4, 3)),
        ("reference_rejected", around(-1.2, 4, 4)),
    ]);
    for executor in shared_gpus() {
        for kind in kinds() {
            let orpo = matches!(kind, PreferenceKind::Orpo);
            // Losses whose two slopes each depend on their own side.
            let apart = matches!(
                kind,
                PreferenceKind::Nca
                    | PreferenceKind::Bco { .. }
                    | PreferenceKind::SppoHard
                    | PreferenceKind::ApoZero
            );
            let clean = run_preference(&executor.device, &columns, kind);
            for (column, _) in &columns.0 {
                let what = format!("{} {kind:?}: NaN in {column}", executor.name);
                let dirty = run_preference(&executor.device, &columns.poisoned(column, 2), kind);
                check(&what, &clean, &dirty, |out, i| {
                    let here = i == 2 && !(orpo && column.starts_with("reference"));
                    let side = column.ends_with(out);
                    // APO-down's rejected side sees the margin, its chosen side as well.
                    match out {
                        "loss" => here,
                        "total" => !(orpo && column.starts_with("reference")),
                        _ => here && (side || !apart),
                    }
                });
            }
        }
    }
}

#[test]
fn nan_stays_in_group_losses() {
    let columns = Columns(vec![
        ("logp", around(-1.0, TOKENS, 1)),
        ("reference", around(-1.1, TOKENS, 2)),
        ("reward", around(0.5, TOKENS, 3)),
    ]);
    let groups = OFFSETS.len() - 1;
    let run = |device: &Device, columns: &Columns, copg: bool| -> Outputs {
        let gpu = gpu_of(device);
        let held = |name: &str| placed(gpu, columns.get(name));
        let (logp, reference, reward) = (held("logp"), held("reference"), held("reward"));
        let (offsets, mut loss) = (OFFSETS, vec![0.0; groups]);
        let (mut d_logp, mut total) = (vec![0.0; TOKENS], vec![0.0]);
        if copg {
            let args = CopgLoss {
                logp: vector(&logp),
                reference: Some(vector(&reference)),
                reward: vector(&reward),
                offsets: (&offsets[..]).into(),
                beta: 0.3,
                weight: None,
                loss: (&mut loss).into(),
                d_logp: (&mut d_logp).into(),
                total: Some((&mut total).into()),
            };
            copg_loss(device, args).unwrap();
        } else {
            let args = BetaMmlLoss {
                logp: vector(&logp),
                offsets: (&offsets[..]).into(),
                beta: 0.3,
                weight: None,
                loss: (&mut loss).into(),
                d_logp: (&mut d_logp).into(),
                total: Some((&mut total).into()),
            };
            beta_mml_loss(device, args).unwrap();
        }
        vec![("loss", loss), ("d_logp", d_logp), ("total", total)]
    };
    for executor in shared_gpus() {
        for (copg, column) in [(true, "logp"), (true, "reference"), (false, "logp")] {
            let what = format!("{} copg {copg}: NaN in {column}", executor.name);
            let clean = run(&executor.device, &columns, copg);
            let dirty = run(&executor.device, &columns.poisoned(column, POISONED), copg);
            check(&what, &clean, &dirty, |out, i| match out {
                "loss" => i == 1,
                "d_logp" => SECOND.contains(&i),
                _ => true,
            });
        }
    }
}

#[test]
fn nan_stays_in_prdp() {
    let columns = policy_columns(1.0);
    let columns = Columns(vec![
        ("logp", columns.get("logp").to_vec()),
        ("old", columns.get("old_logp").to_vec()),
        ("reference", columns.get("ref_logp").to_vec()),
    ]);
    let run = |device: &Device, columns: &Columns, clip: f64| -> Outputs {
        let gpu = gpu_of(device);
        let held = |name: &str| placed(gpu, columns.get(name));
        let (logp, old, reference) = (held("logp"), held("old"), held("reference"));
        let (offsets, mask, reward) = (OFFSETS, mask(), [1.0, 0.0, 0.5]);
        let pairs = [0i64, 1, 1, 2, 2, 0];
        let (mut loss, mut d_logp, mut total) = (vec![0.0; 3], vec![0.0; TOKENS], vec![0.0]);
        let args = PrdpLoss {
            logp: vector(&logp),
            old: vector(&old),
            reference: vector(&reference),
            mask: Some((&mask).into()),
            cu_seqlens: (&offsets[..]).into(),
            reward: (&reward[..]).into(),
            pairs: View::rows_of(&pairs, 2).unwrap(),
            beta: 0.5,
            clip,
            weight: None,
            loss: (&mut loss).into(),
            d_logp: (&mut d_logp).into(),
            total: Some((&mut total).into()),
        };
        prdp_loss(device, args).unwrap();
        vec![("loss", loss), ("d_logp", d_logp), ("total", total)]
    };
    for executor in shared_gpus() {
        for clip in [0.01, 10.0] {
            let clean = run(&executor.device, &columns, clip);
            for (column, _) in &columns.0 {
                let what = format!("{} prdp clip {clip}: NaN in {column}", executor.name);
                let dirty = run(&executor.device, &columns.poisoned(column, POISONED), clip);
                check(&what, &clean, &dirty, |out, i| match out {
                    // The third pair is without the second sequence.
                    "loss" => i != 2,
                    "d_logp" => i != MASKED,
                    _ => true,
                });
                let masked = run(&executor.device, &columns.poisoned(column, MASKED), clip);
                check(&what, &clean, &masked, |_, _| false);
            }
        }
    }
}
