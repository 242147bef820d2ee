//! A NaN among the inputs of a loss or of a token op is in the loss and in every output that it reaches, and
//! nowhere else: a step with one must be skipped, not half taken. On every executor.

use crate::common::devices::executors;
use crate::policy::columns::*;
use gradus::Device;
use gradus::ops::*;

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
