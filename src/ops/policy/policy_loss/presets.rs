//! Published objectives and framework defaults.
//!
//! A preset is what its name stands for: the loss, how it is averaged, where advantages come from and
//! what they are divided by, the KL that goes with it, and which bounds can be moved. A run may
//! override those by its own keys; what it leaves alone is the preset's. Formulas are in
//! [`crate::ops::policy_loss()`].

use crate::error::{Error, Result};
use crate::ops::{
    Aggregation, ClipCenter, Denominator, GroupBaseline, GroupScale, GroupSettings, Kl, KlWeight,
    Loss, OnSingle, PolicySettings, RatioLevel,
};

/// An objective by its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// The token loss. It holds the KL if that is a term of the loss with a weight of its own.
    pub settings: PolicySettings,
    /// How tokens are averaged.
    pub aggregation: Aggregation,
    /// Where advantages come from.
    pub estimator: Estimator,
    /// The KL to the reference; `coef` is the weight that goes with the name, 0 for none.
    pub kl: Kl,
    /// Where the KL is put.
    pub kl_place: KlPlace,
    /// What bounds of a run's own mean to the loss.
    pub bounds: Bounds,
    /// ε of the value clip; infinity = off.
    pub value_clip: f64,
    /// Weight of the critic's loss in the policy's, whose trunk it then moves; 0 = the critic is a head
    /// of its own.
    pub value_coef: f64,
    /// Tokens that are chosen by covariance, if the loss does that.
    pub covariance: Option<Covariance>,
}

/// Where advantages come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Estimator {
    /// The samples of a prompt, compared with each other.
    Group(GroupSettings),
    /// A critic: generalized advantage estimation, whitened over the batch.
    Gae,
    /// The reward itself.
    Reward,
    /// 1 for every sequence that has a reward.
    One,
}

/// Where the KL to the reference is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KlPlace {
    /// A term of the loss, with its gradient.
    Loss,
    /// Taken off the reward, without one: −β·(log π − log π_ref) of each token.
    Reward,
}

/// What a lower and an upper bound mean to a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Nothing: the loss has none.
    None,
    /// Distances from a ratio of 1.
    AroundOne,
    /// The upper bound is the largest ratio itself; there is no lower one (TRL's CISPO).
    Largest,
    /// The loss's own measure: the log-ratio (GMPO), the probability or its KL (DPPO).
    Own,
}

/// Tokens chosen by cov = (A − mean A)·(ℓ − mean ℓ), means over the tokens of the batch (Cui et al.
/// 2025, arXiv:2505.22617). `share` is of all tokens, at least one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Covariance {
    /// Clip-Cov: of the tokens with `low` < cov < `high` that PPO does not clip, so many at random
    /// have no surrogate.
    Clip {
        /// Share of the tokens.
        share: f64,
        /// Lower bound of the covariance.
        low: f64,
        /// Upper bound of the covariance.
        high: f64,
    },
    /// KL-Cov: the penalty of [`Loss::KlCov`] applies to the tokens of the largest covariance.
    Kl {
        /// Share of the tokens.
        share: f64,
    },
}

const OFF: f64 = f64::INFINITY;

fn clip(low: f64, high: f64, dual: f64) -> PolicySettings {
    let loss = Loss::PpoClip { lo: 1.0 - low, hi: 1.0 + high, dual };
    PolicySettings { loss, ..PolicySettings::default() }
}

fn with(loss: Loss) -> PolicySettings {
    PolicySettings { loss, ..PolicySettings::default() }
}

fn constant(length: f64) -> Aggregation {
    Aggregation::Constant { length, count_empty: true }
}

const SEQUENCES: Aggregation = Aggregation::SequenceMeanTokenMean { count_empty: true };

/// Deviations from the group's mean, not divided by anything.
fn undivided() -> Estimator {
    Estimator::Group(GroupSettings { scale: GroupScale::None, ..GroupSettings::default() })
}

impl Preset {
    /// A loss with GRPO's advantages as TRL computes them, and a k3 term in the loss whose
    /// weight is 0.
    fn new(settings: PolicySettings, aggregation: Aggregation) -> Preset {
        let bounds = match settings.loss {
            Loss::PpoClip { lo, hi, .. } if (lo, hi) == (0.0, OFF) => Bounds::None,
            Loss::PpoClip { .. } | Loss::Cispo { .. } => Bounds::AroundOne,
            Loss::Gmpo { .. } | Loss::DppoTv { .. } | Loss::DppoKl { .. } | Loss::Prime { .. } => {
                Bounds::Own
            }
            Loss::CrossEntropy
            | Loss::Reinforce
            | Loss::Sapo { .. }
            | Loss::Vespo { .. }
            | Loss::Dro { .. }
            | Loss::KlCov { .. } => Bounds::None,
        };
        Preset {
            settings,
            aggregation,
            estimator: Estimator::Group(GroupSettings::default()),
            kl: settings.kl.unwrap_or(Kl::k3(0.0)),
            kl_place: KlPlace::Loss,
            bounds,
            value_clip: OFF,
            value_coef: 0.0,
            covariance: None,
        }
    }

    /// Replaces the bounds that are given.
    ///
    /// # Errors
    /// In words, for a bound that the loss does not have.
    pub fn set_bounds(
        &mut self,
        low: Option<f64>,
        high: Option<f64>,
    ) -> std::result::Result<(), &'static str> {
        match self.bounds {
            Bounds::None if low.is_some() || high.is_some() => return Err("no clip bounds"),
            Bounds::Largest if low.is_some() => return Err("no lower bound"),
            Bounds::None | Bounds::Largest | Bounds::AroundOne | Bounds::Own => {}
        }
        let around = self.bounds == Bounds::AroundOne;
        let low = low.map(|low| if around { 1.0 - low } else { low });
        let high = high.map(|high| if around { 1.0 + high } else { high });
        match &mut self.settings.loss {
            Loss::PpoClip { lo, hi, .. }
            | Loss::Cispo { lo, hi }
            | Loss::Gmpo { lo, hi }
            | Loss::DppoTv { lo, hi, .. }
            | Loss::DppoKl { lo, hi, .. }
            | Loss::Prime { lo, hi, .. } => {
                (*lo, *hi) = (low.unwrap_or(*lo), high.unwrap_or(*hi));
            }
            Loss::CrossEntropy
            | Loss::Reinforce
            | Loss::Sapo { .. }
            | Loss::Vespo { .. }
            | Loss::Dro { .. }
            | Loss::KlCov { .. } => {}
        }
        Ok(())
    }
}

/// Masked cross-entropy, token mean, advantage 1: supervised fine-tuning, RAFT and ReLIFT's
/// demonstration steps on the rows they keep.
pub fn sft() -> Preset {
    let loss = with(Loss::CrossEntropy);
    Preset { estimator: Estimator::One, ..Preset::new(loss, Aggregation::TokenMean) }
}

/// DeepSeekMath GRPO (arXiv:2402.03300, §4.1.1): ε 0.2, β 0.04 on k3, sequence mean of token means.
pub fn deepseekmath_grpo() -> Preset {
    let settings = PolicySettings { kl: Some(Kl::k3(0.04)), ..clip(0.2, 0.2, OFF) };
    Preset::new(settings, SEQUENCES)
}

/// Dr. GRPO (arXiv:2503.20783): a constant length in the denominator, advantages that are not
/// divided by the standard deviation.
pub fn dr_grpo(length: f64) -> Preset {
    Preset { estimator: undivided(), ..Preset::new(clip(0.2, 0.2, OFF), constant(length)) }
}

/// The loss of DAPO (arXiv:2503.14476): clip-higher 0.2 / 0.28, token mean, no KL. Its dynamic
/// sampling and its penalty of long completions are no part of a loss and are not here.
pub fn dapo() -> Preset {
    Preset::new(clip(0.2, 0.28, OFF), Aggregation::TokenMean)
}

/// GSPO (arXiv:2507.18071): sequence-mean ratios, ε 3e-4 / 4e-4.
pub fn gspo() -> Preset {
    let settings = PolicySettings { ratio: RatioLevel::SequenceMean, ..clip(3e-4, 4e-4, OFF) };
    Preset::new(settings, SEQUENCES)
}

/// CISPO as ScaleRL uses it (arXiv:2510.13786): weights min(r, 5), token mean.
pub fn cispo() -> Preset {
    Preset::new(with(Loss::Cispo { lo: 0.0, hi: 5.0 }), Aggregation::TokenMean)
}

/// ReMix (arXiv:2507.06892): ratios to the sampler, clipped around the current policy, k3 to two
/// anchors with weights λ and 1 − λ. β is not stated in what was available; 0.04 is ours.
pub fn remix(lambda: f64) -> Preset {
    let settings = PolicySettings {
        denominator: Denominator::Sampler,
        center: ClipCenter::OldOverSampler,
        kl: Some(Kl { mix: lambda, ..Kl::k3(0.04) }),
        ..clip(0.2, 0.2, OFF)
    };
    Preset::new(settings, SEQUENCES)
}

/// Prefix-RFT (arXiv:2507.01679): demonstration tokens (class `demo`) ratio to themselves, dual clip
/// 3, entropy bonus 1e-3, constant length. The top-20 % entropy mask on prefix tokens is the
/// caller's `token_weight`.
pub fn prefix_rft(length: f64, demo: usize) -> Result<Preset> {
    let mut settings = PolicySettings { entropy_coef: 1e-3, ..clip(0.2, 0.2, 3.0) };
    let Some(own) = settings.class_self_ratio.get_mut(demo) else {
        return Err(Error::invalid("prefix_rft", "demo", demo, "a class below 8"));
    };
    *own = true;
    Ok(Preset { estimator: undivided(), ..Preset::new(settings, constant(length)) })
}

/// ReFT (arXiv:2401.08967): PPO, ε 0.2, sequence mean of token means, advantages of a critic whose
/// own clip is 0.2, and 0.05 (the paper's weight for answers in words; 0.01 for programs) of the KL to
/// the SFT policy taken off the reward. The value loss moves the trunk with weight 5.
pub fn reft() -> Preset {
    Preset {
        estimator: Estimator::Gae,
        kl: Kl::k3(0.05),
        kl_place: KlPlace::Reward,
        value_clip: 0.2,
        value_coef: 5.0,
        ..Preset::new(clip(0.2, 0.2, OFF), SEQUENCES)
    }
}

/// ReLIFT's RL steps (arXiv:2506.07527): no clip, advantages that are not divided, constant length,
/// entropy bonus 1e-3.
pub fn relift(length: f64) -> Preset {
    let loss = Loss::PpoClip { lo: 0.0, hi: OFF, dual: OFF };
    let settings = PolicySettings { entropy_coef: 1e-3, ..with(loss) };
    Preset { estimator: undivided(), ..Preset::new(settings, constant(length)) }
}

/// TRL 1.16's `GRPOConfig(loss_type=...)` with its defaults (ε 0.2, β 0): grpo, bnpo, dr_grpo,
/// dapo, cispo, sapo, luspo, vespo; and `rloo` for `RLOOTrainer` (each sample against the others, β
/// 0.05 in the reward).
///
/// `length` is `max_completion_length`, which only dr_grpo reads. TRL's CISPO takes `epsilon_high`
/// as the absolute bound of the weight. `loss_type` does not choose what TRL divides advantages by:
/// that is `scale_rewards`, by default the group's standard deviation.
pub fn trl(loss_type: &str, length: f64) -> Result<Preset> {
    let plain = clip(0.2, 0.2, OFF);
    let (settings, aggregation) = match loss_type {
        "grpo" => (plain, SEQUENCES),
        "bnpo" | "dapo" => (plain, Aggregation::TokenMean),
        "dr_grpo" => (plain, constant(length)),
        "cispo" => (with(Loss::Cispo { lo: 0.0, hi: 0.2 }), Aggregation::TokenMean),
        // TRL builds the temperatures as an f32 tensor.
        "sapo" => (with(Loss::Sapo { tau_pos: 1.0, tau_neg: 1.05f32 as f64 }), SEQUENCES),
        "luspo" => {
            let settings = PolicySettings { ratio: RatioLevel::SequenceMean, ..plain };
            (settings, Aggregation::SequenceMeanTokenSum { count_empty: true })
        }
        "vespo" => (with(Loss::Vespo { pos: (2.0, 3.0), neg: (3.0, 2.0) }), Aggregation::TokenMean),
        "rloo" => return Ok(trl_rloo()),
        other => return Err(unknown("trl", other, TRL)),
    };
    let mut preset = Preset { kl: trl_kl(0.0, true), ..Preset::new(settings, aggregation) };
    if loss_type == "cispo" {
        preset.bounds = Bounds::Largest;
    }
    Ok(preset)
}

fn trl_rloo() -> Preset {
    let settings = PolicySettings { ratio: RatioLevel::SequenceSum, ..clip(0.2, 0.2, OFF) };
    let group = GroupSettings {
        baseline: GroupBaseline::LeaveOneOut,
        scale: GroupScale::None,
        ..GroupSettings::default()
    };
    Preset {
        estimator: Estimator::Group(group),
        kl: Kl::k3(0.05),
        kl_place: KlPlace::Reward,
        ..Preset::new(settings, SEQUENCES)
    }
}

/// TRL's KL term: k3, by default multiplied by the differentiated ratio
/// (`use_bias_correction_kl`).
pub fn trl_kl(beta: f64, bias_correction: bool) -> Kl {
    let weight = if bias_correction { KlWeight::Ratio } else { KlWeight::One };
    Kl { weight, ..Kl::k3(beta) }
}

/// verl's policy losses with its defaults (ε 0.2, dual clip 3, log-ratios clamped to ± 20):
/// vanilla, gspo, gpg, geo_mean, cispo, sapo, dppo_tv, dppo_kl, dro, clip_cov, kl_cov. Token mean
/// (`loss_agg_mode`), except where verl fixes another; advantages and KL as verl's `grpo` and
/// `low_var_kl` have them.
///
/// clip_cov zeroes the tokens it picks (`token_weight`), kl_cov marks them (`selected`):
/// [`Preset::covariance`] says which.
pub fn verl(loss: &str) -> Result<Preset> {
    let clamped = |settings| PolicySettings { log_ratio_clamp: 20.0, ..settings };
    let mut aggregation = Aggregation::TokenMean;
    let mut covariance = None;
    let settings = match loss {
        "vanilla" => clamped(clip(0.2, 0.2, 3.0)),
        "clip_cov" => {
            covariance = Some(Covariance::Clip { share: 2e-4, low: 1.0, high: 5.0 });
            clip(0.2, 0.2, OFF)
        }
        "gspo" => PolicySettings {
            ratio: RatioLevel::SequenceMeanToken,
            seq_log_ratio_max: 10.0,
            ..clip(0.2, 0.2, OFF)
        },
        "gpg" => with(Loss::Reinforce),
        "geo_mean" => {
            aggregation = SEQUENCES;
            with(Loss::Gmpo { lo: 0.2, hi: 0.2 })
        }
        "cispo" => clamped(with(Loss::Cispo { lo: 0.8, hi: 1.2 })),
        "sapo" => {
            aggregation = Aggregation::SequenceMeanTokenMean { count_empty: false };
            clamped(with(Loss::Sapo { tau_pos: 1.0, tau_neg: 1.05 }))
        }
        "dppo_tv" => clamped(with(Loss::DppoTv { lo: 0.2, hi: 0.2, cap: 3.0 })),
        "dppo_kl" => clamped(with(Loss::DppoKl { lo: 0.2, hi: 0.2, cap: 3.0 })),
        "dro" => with(Loss::Dro { beta: 0.1 }),
        "kl_cov" => {
            covariance = Some(Covariance::Kl { share: 2e-4 });
            with(Loss::KlCov { kappa: 1.0 })
        }
        other => return Err(unknown("verl", other, VERL)),
    };
    let group = GroupSettings { eps: 1e-6, on_single: OnSingle::Raw, ..GroupSettings::default() };
    Ok(Preset {
        estimator: Estimator::Group(group),
        kl: Kl { clamp_in: 20.0, clamp_out: 10.0, ..Kl::k3(0.0) },
        covariance,
        ..Preset::new(settings, aggregation)
    })
}

/// The class of demonstration tokens in runs of configurations.
const DEMO: usize = 2;

/// Names without a framework.
pub const NAMES: &[&str] = &[
    "grpo",
    "deepseekmath_grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "reft",
    "relift",
    "remix",
    "prefix_rft",
    "ce",
];
/// Names after `trl/`.
pub const TRL: &[&str] =
    &["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "rloo"];
/// Names after `verl/`.
pub const VERL: &[&str] = &[
    "vanilla", "gspo", "gpg", "geo_mean", "cispo", "sapo", "dppo_tv", "dppo_kl", "dro", "clip_cov",
    "kl_cov",
];

/// A preset by the name configurations use: one of [`NAMES`], or a framework's as `trl/dapo`,
/// `verl/gpg`. `length` is the longest completion.
///
/// # Example
/// ```
/// use gradus::ops::{Loss, presets};
/// let dapo = presets::by_name("dapo", 1024.0)?;
/// assert_eq!(dapo.settings.loss, Loss::PpoClip { lo: 0.8, hi: 1.28, dual: f64::INFINITY });
/// assert!(presets::by_name("trl/nothing", 1024.0).is_err());
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn by_name(name: &str, length: f64) -> Result<Preset> {
    match name {
        // GRPO as TRL and verl default to it: no KL unless asked for, and then DeepSeekMath's.
        "grpo" => Ok(Preset::new(clip(0.2, 0.2, OFF), SEQUENCES)),
        "deepseekmath_grpo" => Ok(deepseekmath_grpo()),
        "dr_grpo" => Ok(dr_grpo(length)),
        "dapo" => Ok(dapo()),
        "gspo" => Ok(gspo()),
        "cispo" => Ok(cispo()),
        "reft" => Ok(reft()),
        "relift" => Ok(relift(length)),
        // One anchor: λ = 1, with which the paper begins.
        "remix" => Ok(remix(1.0)),
        "prefix_rft" => prefix_rft(length, DEMO),
        "ce" => Ok(sft()),
        other => match other.split_once('/') {
            Some(("trl", loss)) => trl(loss, length),
            Some(("verl", loss)) => verl(loss),
            Some(_) | None => {
                let known = format!("{}, trl/... or verl/...", NAMES.join(", "));
                Err(Error::config("rl.loss", format!("`{name}` is not one of {known}")))
            }
        },
    }
}

fn unknown(framework: &'static str, got: &str, known: &[&str]) -> Error {
    Error::invalid(framework, "loss", format!("`{got}`"), known.join(", "))
}
