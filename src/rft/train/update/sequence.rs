//! Objectives on whole sequences: what `rl.loss` may name beside the token losses. They compare the
//! summed log-probs of completions; [`SequenceLoss::of`] says which, with which settings.

use crate::train::config::{AdvantageKey, Auto, ImportanceKey, KlKey, RlConfig, ScaleKey};
use gradus::error::{Error, Result};
use gradus::ops::PreferenceKind;

/// An objective on sequences, with its β.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceLoss {
    /// Which one.
    pub kind: SequenceKind,
    /// β, above 0; 1 where the objective has none.
    pub beta: f64,
}

/// What completions are compared by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SequenceKind {
    /// All pairs of a group, by [`gradus::ops::copg_loss()`].
    Copg,
    /// All pairs of a group with different rewards, by [`gradus::ops::prdp_loss()`].
    Prdp {
        /// Largest change of a token's log-prob that counts; infinity = off.
        clip: f64,
    },
    /// The right completions of a group, by [`gradus::ops::beta_mml_loss()`].
    Mml {
        /// Reward from which a completion is right.
        threshold: f64,
    },
    /// Each completion by itself, by [`gradus::ops::kto_loss()`].
    Kto {
        /// Reward from which a completion is desirable.
        threshold: f64,
        /// Weight of the desirable ones.
        desirable: f64,
        /// Weight of the others.
        undesirable: f64,
    },
    /// Every completion of a row under every context of it, by [`gradus::ops::info_nce_loss()`].
    InfoNce,
    /// The best completion of a group against its worst, by [`gradus::ops::preference_loss()`].
    Preference(Preference),
}

/// A loss on a chosen and a rejected completion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preference {
    /// The loss.
    pub kind: PreferenceKind,
    /// Log-probs are taken against the reference's.
    pub reference: bool,
    /// Log-probs are divided by the number of tokens.
    pub mean: bool,
    /// Weight of a likelihood term on the chosen completion.
    pub likelihood: f64,
}

/// Every name of a sequence objective.
pub const NAMES: &[&str] = &[
    "copg", "prdp", "mml", "kto", "dpo", "ipo", "hinge", "robust", "exo", "nca", "sppo",
    "apo_zero", "apo_down", "discopop", "simpo", "cpo", "orpo", "info_nce",
];

/// A clip in the log-ratio, as wide as PPO's.
const PRDP_CLIP: f64 = 0.2;

/// Between a wrong completion's usual reward of 0 and a right one's of 1.
const THRESHOLD: f64 = 0.5;

impl SequenceLoss {
    /// The objective that `rl.loss` names; none for the name of a token loss.
    ///
    /// # Errors
    /// `Config` for a key that the objective does not read.
    pub fn of(rl: &RlConfig) -> Result<Option<SequenceLoss>> {
        let threshold = rl.label_threshold.or(THRESHOLD);
        let weights = (rl.desirable_weight.or(1.0), rl.undesirable_weight.or(1.0));
        let (kind, beta) = match rl.loss.as_str() {
            // 2406.19185: β 0.06 was the best of its sweep on summaries.
            "copg" => (SequenceKind::Copg, 0.06),
            // The published β and bounds are of denoising steps; these are ours.
            "prdp" => (SequenceKind::Prdp { clip: rl.clip_high.or(PRDP_CLIP) }, 0.1),
            // 2205.14318: β 0.25.
            "mml" => (SequenceKind::Mml { threshold }, 0.25),
            "kto" => {
                let (desirable, undesirable) = weights;
                (SequenceKind::Kto { threshold, desirable, undesirable }, 0.1)
            }
            "info_nce" => (SequenceKind::InfoNce, 1.0),
            name => match preference(name, rl) {
                Some((loss, beta)) => (SequenceKind::Preference(loss), beta),
                None => return Ok(None),
            },
        };
        if kind == SequenceKind::InfoNce && rl.beta != Auto::Auto {
            let reason = "`info_nce` has no β; leave it at auto";
            return Err(Error::config("rl.beta", reason));
        }
        let beta = rl.beta.or(beta);
        if !(beta > 0.0 && beta.is_finite()) {
            let reason = format!("{beta}, but `{}` needs a number above 0", rl.loss);
            return Err(Error::config("rl.beta", reason));
        }
        refuse_token_keys(rl, kind)?;
        Ok(Some(SequenceLoss { kind, beta }))
    }

    /// Whether log-probs are taken against the reference's.
    pub fn needs_reference(&self) -> bool {
        match self.kind {
            SequenceKind::Copg | SequenceKind::Prdp { .. } | SequenceKind::Kto { .. } => true,
            SequenceKind::Mml { .. } | SequenceKind::InfoNce => false,
            SequenceKind::Preference(loss) => loss.reference,
        }
    }

    /// Completions of a prompt that it needs at least.
    pub fn fewest(&self) -> usize {
        match self.kind {
            SequenceKind::Mml { .. } | SequenceKind::Kto { .. } | SequenceKind::InfoNce => 1,
            SequenceKind::Copg | SequenceKind::Prdp { .. } | SequenceKind::Preference(_) => 2,
        }
    }
}

/// The preference loss of a name, and its β.
fn preference(name: &str, rl: &RlConfig) -> Option<(Preference, f64)> {
    let smoothing = |fitting| rl.label_smoothing.or(fitting);
    let plain = |kind| Preference { kind, reference: true, mean: false, likelihood: 0.0 };
    let sigmoid =
        |label_smoothing, margin| plain(PreferenceKind::Sigmoid { label_smoothing, margin });
    let free = |loss| Preference { reference: false, ..loss };
    Some(match name {
        "dpo" => (sigmoid(smoothing(0.0), 0.0), 0.1),
        "ipo" => (plain(PreferenceKind::Ipo), 0.1),
        "hinge" => (plain(PreferenceKind::Hinge), 0.1),
        "robust" => (plain(PreferenceKind::Robust { label_smoothing: smoothing(0.1) }), 0.1),
        "exo" => (plain(PreferenceKind::Exo { label_smoothing: smoothing(1e-3) }), 0.1),
        "nca" => (plain(PreferenceKind::Nca), 0.1),
        "sppo" => (plain(PreferenceKind::SppoHard), 0.1),
        "apo_zero" => (plain(PreferenceKind::ApoZero), 0.1),
        "apo_down" => (plain(PreferenceKind::ApoDown), 0.1),
        "discopop" => (plain(PreferenceKind::Discopop { temperature: 0.05 }), 0.1),
        "simpo" => (Preference { mean: true, ..free(sigmoid(0.0, rl.margin.or(0.5))) }, 2.0),
        "cpo" => (Preference { likelihood: 1.0, ..free(sigmoid(smoothing(0.0), 0.0)) }, 0.1),
        "orpo" => {
            let odds = free(plain(PreferenceKind::Orpo));
            (Preference { mean: true, likelihood: 1.0, ..odds }, 0.1)
        }
        _ => return None,
    })
}

/// Refuses keys that say how token losses are made, and those of other objectives.
fn refuse_token_keys(rl: &RlConfig, kind: SequenceKind) -> Result<()> {
    let prdp = matches!(kind, SequenceKind::Prdp { .. });
    for (key, set) in [
        ("rl.advantage", rl.advantage != AdvantageKey::Auto),
        ("rl.scale", rl.scale != ScaleKey::Auto),
        ("rl.kl", rl.kl != KlKey::Auto),
        ("rl.kl_share", rl.kl_share != 1.0),
        ("rl.clip_low", rl.clip_low != Auto::Auto),
        ("rl.clip_high", rl.clip_high != Auto::Auto && !prdp),
        ("rl.entropy_coef", rl.entropy_coef != Auto::Auto),
        ("rl.advantage_clamp", rl.advantage_clamp != f64::INFINITY),
        ("rl.top_entropy_quantile", rl.top_entropy_quantile != 1.0),
        ("rl.token_weight_floor", rl.token_weight_floor != 1.0),
        ("rl.importance_sampling", rl.importance_sampling != ImportanceKey::None),
    ] {
        if set {
            let reason = format!("`{}` compares whole completions and has none", rl.loss);
            return Err(Error::config(key, format!("{reason}; leave it at its default")));
        }
    }
    Ok(())
}

/// Refuses the keys of sequence objectives that `rl.loss` does not read.
///
/// # Errors
/// `Config`, naming the key.
pub(super) fn refuse_unread(rl: &RlConfig, loss: Option<SequenceLoss>) -> Result<()> {
    let kind = loss.map(|loss| loss.kind);
    let kto = matches!(kind, Some(SequenceKind::Kto { .. }));
    let labels = kto || matches!(kind, Some(SequenceKind::Mml { .. }));
    let smooths = matches!(rl.loss.as_str(), "dpo" | "robust" | "exo" | "cpo");
    for (key, value, read, by) in [
        ("rl.label_threshold", rl.label_threshold, labels, "kto and mml read"),
        ("rl.desirable_weight", rl.desirable_weight, kto, "kto reads"),
        ("rl.undesirable_weight", rl.undesirable_weight, kto, "kto reads"),
        ("rl.label_smoothing", rl.label_smoothing, smooths, "dpo, robust, exo and cpo read"),
        ("rl.margin", rl.margin, rl.loss == "simpo", "simpo reads"),
    ] {
        if value != Auto::Auto && !read {
            let reason = format!("only rl.loss = {by} it, not `{}`; leave it at auto", rl.loss);
            return Err(Error::config(key, reason));
        }
    }
    Ok(())
}
