//! Published objectives and framework defaults.
//!
//! A preset pins the loss and how it is averaged; what a run still chooses (β, clip bounds) is on
//! the returned struct. Formulas are in [`crate::ops::policy_loss()`].

use crate::error::{Error, Result};
use crate::ops::{
    Aggregation, ClipCenter, Denominator, Kl, KlWeight, Loss, PolicySettings, RatioLevel,
};

/// A loss with its aggregation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// The token loss.
    pub settings: PolicySettings,
    /// How tokens are averaged.
    pub aggregation: Aggregation,
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

/// Masked cross-entropy, token mean: supervised fine-tuning, RAFT and ReLIFT's demonstration
/// steps on the rows they keep.
pub fn sft() -> Preset {
    Preset { settings: with(Loss::CrossEntropy), aggregation: Aggregation::TokenMean }
}

/// DeepSeekMath GRPO (arXiv:2402.03300, §4.1.1): ε 0.2, β 0.04 on k3, sequence mean of token means.
pub fn deepseekmath_grpo() -> Preset {
    let settings = PolicySettings { kl: Some(Kl::k3(0.04)), ..clip(0.2, 0.2, OFF) };
    Preset { settings, aggregation: SEQUENCES }
}

/// Dr. GRPO (arXiv:2503.20783): a constant length in the denominator; pair it with advantages that
/// are not divided by the standard deviation.
pub fn dr_grpo(length: f64) -> Preset {
    Preset { settings: clip(0.2, 0.2, OFF), aggregation: constant(length) }
}

/// DAPO (arXiv:2503.14476): clip-higher 0.2 / 0.28, token mean, no KL.
pub fn dapo() -> Preset {
    Preset { settings: clip(0.2, 0.28, OFF), aggregation: Aggregation::TokenMean }
}

/// GSPO (arXiv:2507.18071): sequence-mean ratios, ε 3e-4 / 4e-4.
pub fn gspo() -> Preset {
    let settings = PolicySettings { ratio: RatioLevel::SequenceMean, ..clip(3e-4, 4e-4, OFF) };
    Preset { settings, aggregation: SEQUENCES }
}

/// CISPO as ScaleRL uses it (arXiv:2510.13786): weights min(r, 5), token mean.
pub fn cispo() -> Preset {
    Preset { settings: with(Loss::Cispo { lo: 0.0, hi: 5.0 }), aggregation: Aggregation::TokenMean }
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
    Preset { settings, aggregation: SEQUENCES }
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
    Ok(Preset { settings, aggregation: constant(length) })
}

/// ReFT (arXiv:2401.08967): PPO, ε 0.2, sequence mean of token means; the KL is in the reward.
pub fn reft() -> Preset {
    Preset { settings: clip(0.2, 0.2, OFF), aggregation: SEQUENCES }
}

/// ReLIFT's RL steps (arXiv:2506.07527): no clip, constant length, entropy bonus 1e-3.
pub fn relift(length: f64) -> Preset {
    let loss = Loss::PpoClip { lo: 0.0, hi: OFF, dual: OFF };
    let settings = PolicySettings { entropy_coef: 1e-3, ..with(loss) };
    Preset { settings, aggregation: constant(length) }
}

/// TRL 1.16's `GRPOConfig(loss_type=...)` with its defaults (ε 0.2, β 0): grpo, bnpo, dr_grpo,
/// dapo, cispo, sapo, luspo, vespo; and `rloo` for `RLOOTrainer`.
///
/// `length` is `max_completion_length`, which only dr_grpo reads. TRL's CISPO takes `epsilon_high`
/// as the absolute bound of the weight.
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
        "rloo" => (PolicySettings { ratio: RatioLevel::SequenceSum, ..plain }, SEQUENCES),
        other => {
            return Err(unknown(
                "trl",
                other,
                "grpo, bnpo, dr_grpo, dapo, cispo, sapo, luspo, vespo or rloo",
            ));
        }
    };
    Ok(Preset { settings, aggregation })
}

/// TRL's KL term: k3, by default multiplied by the differentiated ratio
/// (`use_bias_correction_kl`).
pub fn trl_kl(beta: f64, bias_correction: bool) -> Kl {
    let weight = if bias_correction { KlWeight::Ratio } else { KlWeight::One };
    Kl { weight, ..Kl::k3(beta) }
}

/// verl's policy losses with its defaults (ε 0.2, dual clip 3, log-ratios clamped to ± 20):
/// vanilla, gspo, gpg, geo_mean, cispo, sapo, dppo_tv, dppo_kl, dro, clip_cov, kl_cov. Token mean
/// (`loss_agg_mode`), except where verl fixes another.
///
/// clip_cov zeroes the tokens it picks (`token_weight`), kl_cov marks them (`selected`).
pub fn verl(loss: &str) -> Result<Preset> {
    let clamped = |settings| PolicySettings { log_ratio_clamp: 20.0, ..settings };
    let mut aggregation = Aggregation::TokenMean;
    let settings = match loss {
        "vanilla" => clamped(clip(0.2, 0.2, 3.0)),
        "clip_cov" => clip(0.2, 0.2, OFF),
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
        "kl_cov" => with(Loss::KlCov { kappa: 1.0 }),
        other => {
            let known = "vanilla, gspo, gpg, geo_mean, cispo, sapo, dppo_tv, dppo_kl, dro, clip_cov or kl_cov";
            return Err(unknown("verl", other, known));
        }
    };
    Ok(Preset { settings, aggregation })
}

/// A preset by the name configurations use: grpo, dr_grpo, dapo, gspo, cispo, reft, relift, or a
/// framework's as `trl/dapo`, `verl/gpg`. `length` is the longest completion.
pub fn by_name(name: &str, length: f64) -> Result<Preset> {
    match name {
        // GRPO as TRL and verl default to it: no KL unless asked for.
        "grpo" => trl("grpo", length),
        "dr_grpo" => Ok(dr_grpo(length)),
        "dapo" => Ok(dapo()),
        "gspo" => Ok(gspo()),
        "cispo" => Ok(cispo()),
        "reft" => Ok(reft()),
        "relift" => Ok(relift(length)),
        _ => match name.split_once('/') {
            Some(("trl", loss)) => trl(loss, length),
            Some(("verl", loss)) => verl(loss),
            _ => {
                let known = "grpo, dr_grpo, dapo, gspo, cispo, reft, relift, trl/... or verl/...";
                Err(Error::config("rl.loss", format!("`{name}` is not one of {known}")))
            }
        },
    }
}

fn unknown(framework: &'static str, got: &str, known: &'static str) -> Error {
    Error::invalid(framework, "loss", format!("`{got}`"), known)
}
