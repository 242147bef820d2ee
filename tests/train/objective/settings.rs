//! What reaches the ops, by name.

use gradus::ops::presets::{self, Covariance, Estimator};
use gradus::ops::{
    Aggregation, ClipCenter, Denominator, EpsForm, GroupBaseline, GroupScale, GroupSettings, Kl,
    KlEstimator, KlGradient, KlWeight, Loss, OffPolicyBound, OffPolicyLevel, OffPolicySettings,
    OnSingle, PolicySettings, PreferenceKind, RatioLevel,
};
use gradus_rft::train::recipe::{Recipe, Weighing};
use gradus_rft::train::record::TokenClass;
use gradus_rft::train::sequence::{self, Preference, SequenceKind, SequenceLoss};

use super::{config, try_config};

const OFF: f64 = f64::INFINITY;
const LENGTH: f64 = 9.0;

/// One name with all that it stands for.
struct Row {
    name: &'static str,
    loss: Loss,
    ratio: RatioLevel,
    clamp: f64,
    seq_max: f64,
    entropy: f64,
    aggregation: Aggregation,
    estimator: Estimator,
    /// β and whether it is in the reward.
    kl: (f64, bool),
    /// Ratios to the sampler, clipped around the old policy.
    stale: bool,
    value_clip: f64,
    value_coef: f64,
    covariance: Option<Covariance>,
}

fn ppo(low: f64, high: f64, dual: f64) -> Loss {
    Loss::PpoClip { lo: 1.0 - low, hi: 1.0 + high, dual }
}

fn group(baseline: GroupBaseline, scale: GroupScale, eps: f64, on_single: OnSingle) -> Estimator {
    let eps_form = EpsForm::AddToStd;
    Estimator::Group(GroupSettings { baseline, scale, ddof: 1, eps, eps_form, on_single })
}

/// TRL: (R − mean) / (σ + 1e-4).
fn trl() -> Estimator {
    group(GroupBaseline::Mean, GroupScale::GroupStd, 1e-4, OnSingle::Zero)
}

/// verl: (R − mean) / (σ + 1e-6), a group of one keeps its reward.
fn verl() -> Estimator {
    group(GroupBaseline::Mean, GroupScale::GroupStd, 1e-6, OnSingle::Raw)
}

/// Dr. GRPO: R − mean.
fn undivided() -> Estimator {
    group(GroupBaseline::Mean, GroupScale::None, 1e-4, OnSingle::Zero)
}

const SEQUENCES: Aggregation = Aggregation::SequenceMeanTokenMean { count_empty: true };
const TOKENS: Aggregation = Aggregation::TokenMean;
const CONSTANT: Aggregation = Aggregation::Constant { length: LENGTH, count_empty: true };

fn row(name: &'static str, loss: Loss, aggregation: Aggregation, estimator: Estimator) -> Row {
    Row {
        name,
        loss,
        ratio: RatioLevel::Token,
        clamp: OFF,
        seq_max: OFF,
        entropy: 0.0,
        aggregation,
        estimator,
        kl: (0.0, false),
        stale: false,
        value_clip: OFF,
        value_coef: 0.0,
        covariance: None,
    }
}

/// Papers.
fn published() -> Vec<Row> {
    let no_clip = Loss::PpoClip { lo: 0.0, hi: OFF, dual: OFF };
    vec![
        row("grpo", ppo(0.2, 0.2, OFF), SEQUENCES, trl()),
        // DeepSeekMath §4.1.1: ε 0.2, β 0.04.
        Row { kl: (0.04, false), ..row("deepseekmath_grpo", ppo(0.2, 0.2, OFF), SEQUENCES, trl()) },
        row("dr_grpo", ppo(0.2, 0.2, OFF), CONSTANT, undivided()),
        row("dapo", ppo(0.2, 0.28, OFF), TOKENS, trl()),
        Row {
            ratio: RatioLevel::SequenceMean,
            ..row("gspo", ppo(3e-4, 4e-4, OFF), SEQUENCES, trl())
        },
        row("cispo", Loss::Cispo { lo: 0.0, hi: 5.0 }, TOKENS, trl()),
        Row {
            kl: (0.05, true),
            value_clip: 0.2,
            value_coef: 5.0,
            ..row("reft", ppo(0.2, 0.2, OFF), SEQUENCES, Estimator::Gae)
        },
        Row { entropy: 1e-3, ..row("relift", no_clip, CONSTANT, undivided()) },
        // β is not in what was available of the paper; 0.04 is ours.
        Row {
            kl: (0.04, false),
            stale: true,
            ..row("remix", ppo(0.2, 0.2, OFF), SEQUENCES, trl())
        },
        Row { entropy: 1e-3, ..row("prefix_rft", ppo(0.2, 0.2, 3.0), CONSTANT, undivided()) },
        row("ce", Loss::CrossEntropy, TOKENS, Estimator::One),
    ]
}

/// TRL 1.16.
fn of_trl() -> Vec<Row> {
    let (plain, sums) =
        (ppo(0.2, 0.2, OFF), Aggregation::SequenceMeanTokenSum { count_empty: true });
    let sapo = Loss::Sapo { tau_pos: 1.0, tau_neg: 1.05f32 as f64 };
    let loo = group(GroupBaseline::LeaveOneOut, GroupScale::None, 1e-4, OnSingle::Zero);
    vec![
        row("trl/grpo", plain, SEQUENCES, trl()),
        row("trl/bnpo", plain, TOKENS, trl()),
        row("trl/dr_grpo", plain, CONSTANT, trl()),
        row("trl/dapo", plain, TOKENS, trl()),
        row("trl/cispo", Loss::Cispo { lo: 0.0, hi: 0.2 }, TOKENS, trl()),
        row("trl/sapo", sapo, SEQUENCES, trl()),
        Row { ratio: RatioLevel::SequenceMean, ..row("trl/luspo", plain, sums, trl()) },
        row("trl/vespo", Loss::Vespo { pos: (2.0, 3.0), neg: (3.0, 2.0) }, TOKENS, trl()),
        Row {
            ratio: RatioLevel::SequenceSum,
            kl: (0.05, true),
            ..row("trl/rloo", plain, SEQUENCES, loo)
        },
    ]
}

/// verl 0.9.
fn of_verl() -> Vec<Row> {
    let full = Aggregation::SequenceMeanTokenMean { count_empty: false };
    let clip = Covariance::Clip { share: 2e-4, low: 1.0, high: 5.0 };
    let sapo = Loss::Sapo { tau_pos: 1.0, tau_neg: 1.05 };
    let plain = ppo(0.2, 0.2, OFF);
    vec![
        Row { clamp: 20.0, ..row("verl/vanilla", ppo(0.2, 0.2, 3.0), TOKENS, verl()) },
        Row {
            ratio: RatioLevel::SequenceMeanToken,
            seq_max: 10.0,
            ..row("verl/gspo", plain, TOKENS, verl())
        },
        row("verl/gpg", Loss::Reinforce, TOKENS, verl()),
        row("verl/geo_mean", Loss::Gmpo { lo: 0.2, hi: 0.2 }, SEQUENCES, verl()),
        Row { clamp: 20.0, ..row("verl/cispo", Loss::Cispo { lo: 0.8, hi: 1.2 }, TOKENS, verl()) },
        Row { clamp: 20.0, ..row("verl/sapo", sapo, full, verl()) },
        Row {
            clamp: 20.0,
            ..row("verl/dppo_tv", Loss::DppoTv { lo: 0.2, hi: 0.2, cap: 3.0 }, TOKENS, verl())
        },
        Row {
            clamp: 20.0,
            ..row("verl/dppo_kl", Loss::DppoKl { lo: 0.2, hi: 0.2, cap: 3.0 }, TOKENS, verl())
        },
        row("verl/dro", Loss::Dro { beta: 0.1 }, TOKENS, verl()),
        Row { covariance: Some(clip), ..row("verl/clip_cov", plain, TOKENS, verl()) },
        Row {
            covariance: Some(Covariance::Kl { share: 2e-4 }),
            ..row("verl/kl_cov", Loss::KlCov { kappa: 1.0 }, TOKENS, verl())
        },
    ]
}

fn table() -> Vec<Row> {
    published().into_iter().chain(of_trl()).chain(of_verl()).collect()
}

/// The KL that goes with a name: DeepSeekMath's, TRL's (weighted by the ratio), verl's (clamped).
fn kl(name: &str, coef: f64) -> Kl {
    let plain = Kl {
        coef,
        estimator: KlEstimator::K3,
        gradient: KlGradient::Same,
        weight: KlWeight::One,
        clamp_in: OFF,
        clamp_out: OFF,
        mix: 1.0,
    };
    match name.split_once('/') {
        Some(("trl", loss)) if loss != "rloo" => Kl { weight: KlWeight::Ratio, ..plain },
        Some(("verl", _)) => Kl { clamp_in: 20.0, clamp_out: 10.0, ..plain },
        _ => plain,
    }
}

fn recipe(settings: &[&str]) -> Recipe {
    Recipe::of(&config(settings), LENGTH).unwrap()
}

fn refused(settings: &[&str]) -> String {
    try_config(settings)
        .and_then(|config| Recipe::of(&config, LENGTH))
        .map(|r| panic!("{settings:?}: {r:?}"))
        .unwrap_err()
        .to_string()
}

/// The table has every name that a configuration can have, and each name brings what its row says.
#[test]
fn every_preset_is_what_its_name_says() {
    let rows = table();
    let known = presets::NAMES.iter().map(|n| n.to_string());
    let known = known.chain(presets::TRL.iter().map(|n| format!("trl/{n}")));
    let mut known: Vec<String> =
        known.chain(presets::VERL.iter().map(|n| format!("verl/{n}"))).collect();
    let mut named: Vec<String> = rows.iter().map(|row| row.name.to_string()).collect();
    known.sort();
    named.sort();
    assert_eq!(known, named);
    for row in rows {
        let got = recipe(&[&format!("rl.loss={}", row.name)]);
        let (beta, in_reward) = row.kl;
        let want = PolicySettings {
            loss: row.loss,
            ratio: row.ratio,
            log_ratio_clamp: row.clamp,
            seq_log_ratio_max: row.seq_max,
            entropy_coef: row.entropy,
            denominator: if row.stale { Denominator::Sampler } else { Denominator::Old },
            center: if row.stale { ClipCenter::OldOverSampler } else { ClipCenter::One },
            kl: (beta > 0.0 && !in_reward).then(|| kl(row.name, beta)),
            class_self_ratio: std::array::from_fn(|class| {
                row.name == "prefix_rft" && class == TokenClass::Demo as usize
            }),
            ..PolicySettings::default()
        };
        assert_eq!(got.settings, want, "{}", row.name);
        assert_eq!(got.aggregation, row.aggregation, "{}", row.name);
        assert_eq!(got.estimator, row.estimator, "{}", row.name);
        assert_eq!(got.reward_beta, if in_reward { beta } else { 0.0 }, "{}", row.name);
        assert_eq!(got.value_clip, row.value_clip, "{}", row.name);
        assert_eq!(got.value_coef, row.value_coef, "{}", row.name);
        assert_eq!((got.advantage_clamp, got.weighing), (OFF, Weighing::Even), "{}", row.name);
        assert_eq!((got.importance, got.sequence), (None, None), "{}", row.name);
        assert_eq!(got.covariance, row.covariance, "{}", row.name);
    }
}

/// β, and where it is put, are a run's own on every preset; the estimator stays the preset's.
#[test]
fn a_runs_own_kl_is_the_presets_kind() {
    for row in table() {
        let loss = format!("rl.loss={}", row.name);
        let held = recipe(&[&loss, "rl.beta=0.3", "rl.kl=loss"]);
        assert_eq!(held.settings.kl, Some(kl(row.name, 0.3)), "{}", row.name);
        assert_eq!(held.reward_beta, 0.0, "{}", row.name);
        if row.estimator == Estimator::One {
            let error = refused(&[&loss, "rl.beta=0.3", "rl.kl=reward"]);
            assert!(error.contains("rl.kl") && error.contains("every advantage is 1"), "{error}");
        } else {
            let paid = recipe(&[&loss, "rl.beta=0.3", "rl.kl=reward"]);
            assert_eq!((paid.settings.kl, paid.reward_beta), (None, 0.3), "{}", row.name);
        }
        let free = recipe(&[&loss, "rl.beta=0"]);
        assert_eq!((free.settings.kl, free.reward_beta), (None, 0.0), "{}", row.name);
        assert!(!free.needs_reference(), "{}", row.name);
    }
}

/// Every baseline with every scale, on presets of both frameworks.
#[test]
fn advantages_and_scales_are_those_that_are_named() {
    for (loss, eps, on_single, own) in [
        ("grpo", 1e-4, OnSingle::Zero, GroupScale::GroupStd),
        ("relift", 1e-4, OnSingle::Zero, GroupScale::None),
        ("verl/vanilla", 1e-6, OnSingle::Raw, GroupScale::GroupStd),
    ] {
        for (advantage, baseline) in [
            ("auto", GroupBaseline::Mean),
            ("group", GroupBaseline::Mean),
            ("loo", GroupBaseline::LeaveOneOut),
        ] {
            for (scale, divided) in [
                ("auto", own),
                ("group", GroupScale::GroupStd),
                ("batch", GroupScale::BatchStd),
                ("none", GroupScale::None),
            ] {
                let keys = [
                    &*format!("rl.loss={loss}"),
                    &*format!("rl.advantage={advantage}"),
                    &*format!("rl.scale={scale}"),
                ];
                let want = group(baseline, divided, eps, on_single);
                assert_eq!(recipe(&keys).estimator, want, "{keys:?}");
            }
        }
        let critic = recipe(&[&format!("rl.loss={loss}"), "rl.advantage=gae"]);
        assert_eq!(critic.estimator, Estimator::Gae);
    }
    let error = refused(&["rl.advantage=gae", "rl.scale=batch"]);
    assert!(error.contains("rl.scale") && error.contains("batch"), "{error}");
    for (name, estimator) in [("reward", Estimator::Reward), ("one", Estimator::One)] {
        let named = format!("rl.advantage={name}");
        let own = recipe(&["rl.loss=verl/gpg", "rl.group=1", &named]);
        assert_eq!(own.estimator, estimator, "a sample needs no other");
        assert!(refused(&[&named, "rl.scale=group"]).contains("rl.scale"));
    }
    assert!(refused(&["rl.loss=ce", "rl.advantage=group"]).contains("rl.advantage"));
    assert!(refused(&["rl.advantage=gea"]).contains("auto, group, loo, gae, reward, one"));
    assert!(refused(&["rl.scale=std"]).contains("auto, group, batch, none"));
    assert!(refused(&["rl.kl=both"]).contains("auto, loss, reward"));
    assert!(refused(&["value.clip=0.2"]).contains("value.clip"));
}

/// A run's own bounds, in the terms of each loss; where there are none the key is refused by name.
#[test]
fn bounds_of_a_run_reach_the_losses_that_have_some() {
    let clipped = |name: &str| match recipe(&[
        &format!("rl.loss={name}"),
        "rl.clip_low=0.1",
        "rl.clip_high=0.5",
    ])
    .settings
    .loss
    {
        Loss::PpoClip { lo, hi, .. } | Loss::Cispo { lo, hi } => (lo, hi),
        Loss::Gmpo { lo, hi } | Loss::DppoTv { lo, hi, .. } | Loss::DppoKl { lo, hi, .. } => {
            (lo, hi)
        }
        other => panic!("{name}: {other:?}"),
    };
    for row in table() {
        let loss = format!("rl.loss={}", row.name);
        match row.name {
            "verl/geo_mean" | "verl/dppo_tv" | "verl/dppo_kl" => {
                assert_eq!(clipped(row.name), (0.1, 0.5), "{}", row.name);
            }
            "trl/cispo" => {
                let Loss::Cispo { lo, hi } = recipe(&[&loss, "rl.clip_high=5"]).settings.loss
                else {
                    panic!("another loss")
                };
                assert_eq!((lo, hi), (0.0, 5.0), "TRL's epsilon_high is the bound itself");
                let error = refused(&[&loss, "rl.clip_low=0.2"]);
                assert!(error.contains("rl.clip_low") && error.contains("trl/cispo"), "{error}");
            }
            "relift" | "ce" | "trl/sapo" | "trl/vespo" | "verl/gpg" | "verl/sapo" | "verl/dro"
            | "verl/kl_cov" => {
                for key in ["rl.clip_low", "rl.clip_high"] {
                    let error = refused(&[&loss, &format!("{key}=0.2")]);
                    assert!(error.contains(key) && error.contains(row.name), "{error}");
                    assert!(error.contains("no clip bounds"), "{error}");
                }
            }
            name => assert_eq!(clipped(name), (0.9, 1.5), "{name}"),
        }
    }
    // One bound alone leaves the other one the preset's.
    let Loss::PpoClip { lo, hi, .. } = recipe(&["rl.loss=gspo", "rl.clip_low=0.5"]).settings.loss
    else {
        panic!("another loss")
    };
    assert_eq!((lo, hi), (0.5, 1.0 + 4e-4));
    let error = refused(&["rl.loss=verl/vanilla", "rl.clip_high=5"]);
    assert!(error.contains("rl.clip_high") && error.contains("dual"), "{error}");
}

#[test]
fn groups_of_one_are_refused_where_nothing_could_be_learned() {
    for advantage in ["auto", "group", "loo"] {
        let error = refused(&["rl.group=1", &format!("rl.advantage={advantage}")]);
        assert!(error.contains("rl.group") && error.contains("2 or more"), "{error}");
        let mut config = config(&[&format!("rl.advantage={advantage}")]);
        config.rl.group = 1;
        assert!(config.validate().unwrap_err().to_string().contains("rl.group"));
    }
    assert_eq!(recipe(&["rl.group=1", "rl.advantage=gae"]).estimator, Estimator::Gae);
    // verl's single samples keep their reward.
    assert_eq!(recipe(&["rl.group=1", "rl.loss=verl/gpg"]).estimator, verl());
}

/// A run's own weight of the entropy bonus, on every preset.
#[test]
fn a_runs_own_entropy_bonus_is_a_term_of_every_token_loss() {
    for row in table() {
        let got = recipe(&[&format!("rl.loss={}", row.name), "rl.entropy_coef=0.02"]);
        assert_eq!(got.settings.entropy_coef, 0.02, "{}", row.name);
    }
}

/// A sequence objective by its name: β and what it reads.
fn sequence_table() -> Vec<(&'static str, f64, SequenceKind)> {
    let preference = |kind, reference, mean, likelihood| {
        SequenceKind::Preference(Preference { kind, reference, mean, likelihood })
    };
    let against = |kind| preference(kind, true, false, 0.0);
    let sigmoid = |label_smoothing, margin| PreferenceKind::Sigmoid { label_smoothing, margin };
    let (exo, robust) = (
        PreferenceKind::Exo { label_smoothing: 1e-3 },
        PreferenceKind::Robust { label_smoothing: 0.1 },
    );
    let kto = SequenceKind::Kto { threshold: 0.5, desirable: 1.0, undesirable: 1.0 };
    vec![
        ("copg", 0.06, SequenceKind::Copg),
        ("prdp", 0.1, SequenceKind::Prdp { clip: 0.2 }),
        ("mml", 0.25, SequenceKind::Mml { threshold: 0.5 }),
        ("kto", 0.1, kto),
        ("dpo", 0.1, against(sigmoid(0.0, 0.0))),
        ("ipo", 0.1, against(PreferenceKind::Ipo)),
        ("hinge", 0.1, against(PreferenceKind::Hinge)),
        ("robust", 0.1, against(robust)),
        ("exo", 0.1, against(exo)),
        ("nca", 0.1, against(PreferenceKind::Nca)),
        ("sppo", 0.1, against(PreferenceKind::SppoHard)),
        ("apo_zero", 0.1, against(PreferenceKind::ApoZero)),
        ("apo_down", 0.1, against(PreferenceKind::ApoDown)),
        ("discopop", 0.1, against(PreferenceKind::Discopop { temperature: 0.05 })),
        ("simpo", 2.0, preference(sigmoid(0.0, 0.5), false, true, 0.0)),
        ("cpo", 0.1, preference(sigmoid(0.0, 0.0), false, false, 1.0)),
        ("orpo", 0.1, preference(PreferenceKind::Orpo, false, true, 1.0)),
        ("info_nce", 1.0, SequenceKind::InfoNce),
    ]
}

#[test]
fn every_sequence_objective_is_what_its_name_says() {
    let rows = sequence_table();
    let names: Vec<&str> = rows.iter().map(|row| row.0).collect();
    assert_eq!(names, sequence::NAMES);
    for (name, beta, kind) in rows {
        let loss = format!("rl.loss={name}");
        let got = recipe(&[&loss]);
        assert_eq!(got.sequence, Some(SequenceLoss { kind, beta }), "{name}");
        // What carries the gradient: −Σ A·ℓ with weight 1.
        let plain = PolicySettings { loss: Loss::Reinforce, ..PolicySettings::default() };
        assert_eq!((got.settings, got.aggregation), (plain, Aggregation::TokenSum), "{name}");
        assert_eq!((got.reward_beta, got.covariance), (0.0, None), "{name}");
        if kind == SequenceKind::InfoNce {
            assert!(refused(&[&loss, "rl.beta=0.3"]).contains("has no β"));
        } else {
            let own = recipe(&[&loss, "rl.beta=0.3"]).sequence.unwrap();
            assert_eq!((own.kind, own.beta), (kind, 0.3), "{name}");
        }
        assert!(refused(&[&loss, "rl.beta=0"]).contains("rl.beta"), "{name}");
        for key in [
            "rl.advantage=group",
            "rl.scale=none",
            "rl.kl=loss",
            "rl.clip_low=0.2",
            "rl.entropy_coef=0",
            "rl.advantage_clamp=1",
            "rl.top_entropy_quantile=0.2",
            "rl.token_weight_floor=0.1",
            "rl.importance_sampling=token_mask",
            "value.clip=0.2",
            "value.coef=1",
            "value.whiten=false",
        ] {
            let error = refused(&[&loss, key]);
            assert!(error.contains(key.split('=').next().unwrap()), "{name}: {error}");
        }
        assert_eq!(got.compares_samples(), !matches!(name, "mml" | "kto" | "info_nce"), "{name}");
        let alone = try_config(&[&loss, "rl.group=1"]).and_then(|c| Recipe::of(&c, LENGTH));
        assert_eq!(alone.is_ok(), matches!(name, "mml" | "kto" | "info_nce"), "{name}");
    }
    let kto = recipe(&[
        "rl.loss=kto",
        "rl.label_threshold=1",
        "rl.desirable_weight=2",
        "rl.undesirable_weight=3",
    ]);
    let kind = SequenceKind::Kto { threshold: 1.0, desirable: 2.0, undesirable: 3.0 };
    assert_eq!(kto.sequence.unwrap().kind, kind);
    let prdp = recipe(&["rl.loss=prdp", "rl.clip_high=0.01"]).sequence.unwrap();
    assert_eq!(prdp.kind, SequenceKind::Prdp { clip: 0.01 });
}

/// A key of one objective is refused by name under every other.
#[test]
fn keys_that_an_objective_does_not_read_are_refused() {
    for (key, readers) in [
        ("rl.label_threshold=1", &["mml", "kto"][..]),
        ("rl.desirable_weight=2", &["kto"]),
        ("rl.undesirable_weight=2", &["kto"]),
        ("rl.label_smoothing=0.2", &["dpo", "robust", "exo", "cpo"]),
        ("rl.margin=1", &["simpo"]),
    ] {
        for name in sequence::NAMES.iter().chain(&["grpo", "ce"]) {
            let settings = [&*format!("rl.loss={name}"), key];
            if readers.contains(name) {
                assert_ne!(recipe(&settings), recipe(&settings[..1]), "{settings:?}");
            } else {
                let error = refused(&settings);
                assert!(error.contains(key.split('=').next().unwrap()), "{settings:?}: {error}");
            }
        }
    }
}

/// Weights of tokens, and which keys exclude each other.
#[test]
fn weights_of_tokens_are_those_that_are_named() {
    assert_eq!(recipe(&["rl.top_entropy_quantile=0.2"]).weighing, Weighing::TopEntropy(0.2));
    assert_eq!(recipe(&["rl.token_weight_floor=0.1"]).weighing, Weighing::Probability(0.1));
    let begun = recipe(&["rl.prefix_samples=1", "rl.prefix_quantile=0.3"]);
    assert_eq!(begun.weighing, Weighing::Beginnings(0.3));
    assert!(begun.settings.class_self_ratio[TokenClass::Demo as usize], "whatever the loss");
    assert_eq!(recipe(&["rl.advantage_clamp=10"]).advantage_clamp, 10.0);
    let (token, sequence) = (OffPolicyLevel::Token, OffPolicyLevel::SequenceSum);
    let (cut, mask) = (OffPolicyBound::Truncate, OffPolicyBound::Mask);
    for (name, level, bound) in [
        ("token_truncate", token, cut),
        ("token_mask", token, mask),
        ("sequence_truncate", sequence, cut),
        ("sequence_mask", sequence, mask),
    ] {
        let named = format!("rl.importance_sampling={name}");
        let want = OffPolicySettings { level, bound, max: 3.0, ..OffPolicySettings::default() };
        assert_eq!(recipe(&[&named]).importance, Some(want), "{name}");
        let own = recipe(&[&named, "rl.importance_sampling_cap=2"]).importance.unwrap();
        assert_eq!(own.max, 2.0, "{name}");
    }
    for (settings, key) in [
        (&["rl.top_entropy_quantile=0.2", "rl.token_weight_floor=0.1"][..], "token_weight_floor"),
        (&["rl.loss=verl/clip_cov", "rl.top_entropy_quantile=0.2"], "rl.top_entropy_quantile"),
        (&["rl.loss=verl/kl_cov", "rl.token_weight_floor=0.1"], "rl.token_weight_floor"),
        (&["rl.loss=ce", "rl.advantage_clamp=1"], "rl.advantage_clamp"),
        (&["rl.importance_sampling_cap=2"], "rl.importance_sampling_cap"),
        (&["rl.source=data", "rl.importance_sampling=token_mask"], "rl.importance_sampling"),
        (&["value.coef=1"], "value.coef"),
        (&["value.whiten=false"], "value.whiten"),
    ] {
        let error = refused(settings);
        assert!(error.contains(key), "{settings:?}: {error}");
    }
}

/// The weight of a critic's loss in the policy's is the preset's, a run's own, or none.
#[test]
fn a_critic_moves_the_trunk_where_it_is_told_to() {
    assert_eq!(recipe(&["rl.loss=reft", "value.coef=0"]).value_coef, 0.0);
    assert_eq!(recipe(&["rl.advantage=gae", "value.coef=0.1"]).value_coef, 0.1);
    assert_eq!(recipe(&["rl.loss=reft", "rl.advantage=group"]).value_coef, 0.0);
}
