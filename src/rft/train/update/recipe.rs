//! What a configuration asks of the ops: the preset or the sequence objective that `rl.loss` names,
//! with the keys that were set in its place. Nothing else decides what reaches them.

use crate::train::config::{
    AdvantageKey, ImportanceKey, KeepKey, KlKey, RlConfig, RunConfig, ScaleKey, SourceKey,
};
use crate::train::update::record::TokenClass;
use crate::train::update::sequence::{self, SequenceKind, SequenceLoss};
use gradus::error::{Error, Result};
use gradus::ops::presets;
use gradus::ops::presets::{Covariance, Estimator, KlPlace, Preset};
use gradus::ops::{
    Aggregation, Denominator, GroupBaseline, GroupScale, GroupSettings, Kl, Loss, OffPolicyBound,
    OffPolicyLevel, OffPolicySettings, OnSingle, PolicySettings,
};

/// The objective of the `rl` phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// The loss, with the KL if that is a term of it.
    pub settings: PolicySettings,
    /// How tokens are averaged.
    pub aggregation: Aggregation,
    /// Where advantages come from.
    pub estimator: Estimator,
    /// β of the KL that is taken off the reward; 0 = none.
    pub reward_beta: f64,
    /// ε of the critic's clip; infinity = off.
    pub value_clip: f64,
    /// Tokens that are chosen by covariance, if the loss does that.
    pub covariance: Option<Covariance>,
    /// Weight of the critic's loss in the policy's; 0 = it does not move the trunk.
    pub value_coef: f64,
    /// Largest size of an advantage; infinity = any.
    pub advantage_clamp: f64,
    /// What single tokens weigh.
    pub weighing: Weighing,
    /// Importance weights of what another policy sampled, if any.
    pub importance: Option<OffPolicySettings>,
    /// The objective on sequences, if it is one. `settings` and `aggregation` are then those that carry
    /// its gradient: REINFORCE, every weight 1.
    pub sequence: Option<SequenceLoss>,
}

/// What single tokens weigh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighing {
    /// All the same, but for a [`Covariance`].
    Even,
    /// 1 for this share of the batch's tokens, those of the largest entropy; 0 for the others.
    TopEntropy(f64),
    /// 1 for what is sampled, and for this share of the batch's tokens of beginnings of demonstrations, those
    /// of the largest entropy; 0 for the others.
    Beginnings(f64),
    /// Their probability, but at least this.
    Probability(f64),
}

impl Recipe {
    /// The recipe of `config`; `longest` is the longest completion.
    ///
    /// # Errors
    /// `Config` for a name that does not exist, and for a key that the others leave without a meaning.
    pub fn of(config: &RunConfig, longest: f64) -> Result<Recipe> {
        let rl = &config.rl;
        let sequence = SequenceLoss::of(rl)?;
        sequence::refuse_unread(rl, sequence)?;
        let recipe = match sequence {
            Some(loss) => Recipe::of_sequences(config, loss)?,
            None => Recipe::of_tokens(config, longest)?,
        };
        if rl.fresh_reference && !recipe.needs_reference() {
            let reason = "is about a KL or a reference, and there is none: set rl.beta";
            return Err(Error::config("rl.fresh_reference", reason));
        }
        let value = &config.value;
        for (key, set) in [
            ("value.clip", value.clip.value().is_some()),
            ("value.coef", value.coef.value().is_some()),
            ("value.whiten", !value.whiten),
        ] {
            if set && recipe.estimator != Estimator::Gae {
                let reason =
                    "is a critic's, which only rl.advantage = gae has; leave it at its default";
                return Err(Error::config(key, reason));
            }
        }
        Ok(recipe)
    }

    fn of_tokens(config: &RunConfig, longest: f64) -> Result<Recipe> {
        let rl = &config.rl;
        let mut preset = preset(config, longest)?;
        let beta = rl.beta.or(preset.kl.coef);
        let place = match rl.kl {
            KlKey::Auto => preset.kl_place,
            KlKey::Loss => KlPlace::Loss,
            KlKey::Reward => KlPlace::Reward,
        };
        let in_loss = beta > 0.0 && place == KlPlace::Loss;
        if rl.kl_share != 1.0 && !in_loss {
            let reason = format!("{}, but there is no KL in the loss; leave it at 1", rl.kl_share);
            return Err(Error::config("rl.kl_share", reason));
        }
        preset.settings.kl = in_loss.then_some(Kl { coef: beta, mix: rl.kl_share, ..preset.kl });
        preset.settings.entropy_coef = rl.entropy_coef.or(preset.settings.entropy_coef);
        // What is replayed was sampled by an older policy, and ratios are to that one, unless a weight of
        // its own makes up for it.
        if rl.replay_window > 0 && rl.importance_sampling == ImportanceKey::None {
            preset.settings.denominator = Denominator::Sampler;
        }
        let estimator = estimator(config, preset.estimator)?;
        begin_as_shown(rl, estimator, &mut preset.settings)?;
        let reward_beta = if place == KlPlace::Reward { beta } else { 0.0 };
        if estimator == Estimator::One && reward_beta > 0.0 {
            let reason = "reward, but every advantage is 1, whatever the reward; take loss";
            return Err(Error::config("rl.kl", reason));
        }
        let clamp = rl.advantage_clamp;
        if estimator == Estimator::One && clamp != f64::INFINITY {
            let reason = format!("{clamp}, but every advantage is 1; leave it at inf");
            return Err(Error::config("rl.advantage_clamp", reason));
        }
        let chosen = rl.keep == KeepKey::Positive;
        if preset.settings.loss == Loss::CrossEntropy && estimator != Estimator::One && !chosen {
            let reason = format!(
                "`{}`, but cross-entropy reads no advantages, and rl.keep is not positive; leave it at \
                 auto",
                rl.advantage.name()
            );
            return Err(Error::config("rl.advantage", reason));
        }
        Ok(Recipe {
            settings: preset.settings,
            aggregation: preset.aggregation,
            estimator,
            reward_beta,
            value_clip: config.value.clip.or(preset.value_clip),
            value_coef: match estimator {
                Estimator::Gae => config.value.coef.or(preset.value_coef),
                Estimator::Group(_) | Estimator::Reward | Estimator::One => 0.0,
            },
            advantage_clamp: clamp,
            weighing: weighing(rl, preset.covariance.is_some())?,
            importance: importance(rl)?,
            covariance: preset.covariance,
            sequence: None,
        })
    }

    fn of_sequences(config: &RunConfig, loss: SequenceLoss) -> Result<Recipe> {
        let rl = &config.rl;
        if rl.source == SourceKey::Rollout && rl.group < loss.fewest() {
            let reason = format!(
                "{} sample has no other to be compared with by `{}`; take {} or more",
                rl.group,
                rl.loss,
                loss.fewest()
            );
            return Err(Error::config("rl.group", reason));
        }
        let crosses = loss.kind == SequenceKind::InfoNce;
        if crosses && rl.mask_truncated_completions {
            let reason =
                "`info_nce` compares every completion of a row with every context; take false";
            return Err(Error::config("rl.mask_truncated_completions", reason));
        }
        let kto = matches!(loss.kind, SequenceKind::Kto { .. });
        if kto && rl.source == SourceKey::Data && rl.prompts < 2 {
            let reason =
                "1, but `kto` on data takes answers of other prompts for its zero; take 2 or more";
            return Err(Error::config("rl.prompts", reason));
        }
        Ok(Recipe {
            settings: PolicySettings { loss: Loss::Reinforce, ..PolicySettings::default() },
            aggregation: Aggregation::TokenSum,
            estimator: Estimator::Reward,
            reward_beta: 0.0,
            value_clip: f64::INFINITY,
            value_coef: 0.0,
            advantage_clamp: f64::INFINITY,
            weighing: Weighing::Even,
            importance: None,
            covariance: None,
            sequence: Some(loss),
        })
    }

    /// Whether equal rewards of a prompt's samples leave nothing to learn from them.
    pub fn compares_samples(&self) -> bool {
        match (self.sequence, self.estimator) {
            // `info_nce` compares contexts, whatever the rewards.
            (Some(loss), _) => loss.fewest() > 1,
            (None, Estimator::Reward | Estimator::One) => false,
            (None, Estimator::Group(_) | Estimator::Gae) => true,
        }
    }

    /// Whether log-probs of the reference are needed.
    pub fn needs_reference(&self) -> bool {
        let compares = self.sequence.is_some_and(|loss| loss.needs_reference());
        compares || self.settings.needs_reference() || self.reward_beta > 0.0
    }
}

/// Where completions begin as a demonstration does, nobody sampled the beginning: its ratio is to itself.
fn begin_as_shown(
    rl: &RlConfig,
    estimator: Estimator,
    settings: &mut PolicySettings,
) -> Result<()> {
    if rl.prefix_samples == 0 {
        return Ok(());
    }
    settings.class_self_ratio[TokenClass::Demo as usize] = true;
    if estimator == Estimator::Gae {
        let reason = "takes advantages of completions, and rl.advantage = gae has those of tokens";
        return Err(Error::config("rl.prefix_samples", reason));
    }
    Ok(())
}

/// What single tokens weigh. One rule is enough: two of them have no agreed order.
fn weighing(rl: &RlConfig, covariance: bool) -> Result<Weighing> {
    let (share, floor) = (rl.top_entropy_quantile, rl.token_weight_floor);
    for (key, set) in
        [("rl.top_entropy_quantile", share != 1.0), ("rl.token_weight_floor", floor != 1.0)]
    {
        if set && covariance {
            let reason = format!("`{}` chooses tokens by itself; leave it at 1", rl.loss);
            return Err(Error::config(key, reason));
        }
    }
    if rl.prefix_samples > 0 {
        if share != 1.0 || floor != 1.0 || covariance {
            let reason = "weighs tokens by rl.prefix_quantile, and rl.loss, rl.top_entropy_quantile or \
                          rl.token_weight_floor weighs them too; leave it at 0";
            return Err(Error::config("rl.prefix_samples", reason));
        }
        return Ok(Weighing::Beginnings(rl.prefix_quantile));
    }
    match (share != 1.0, floor != 1.0) {
        (false, false) => Ok(Weighing::Even),
        (true, false) => Ok(Weighing::TopEntropy(share)),
        (false, true) => Ok(Weighing::Probability(floor)),
        (true, true) => {
            let reason =
                format!("{floor}, but rl.top_entropy_quantile weighs tokens too; leave one at 1");
            Err(Error::config("rl.token_weight_floor", reason))
        }
    }
}

/// Importance weights, if there are any.
fn importance(rl: &RlConfig) -> Result<Option<OffPolicySettings>> {
    let (level, bound) = match rl.importance_sampling {
        ImportanceKey::None => {
            if rl.importance_sampling_cap != OffPolicySettings::default().max {
                let reason = "bounds rl.importance_sampling, which is none; leave it at 3";
                return Err(Error::config("rl.importance_sampling_cap", reason));
            }
            return Ok(None);
        }
        ImportanceKey::TokenTruncate => (OffPolicyLevel::Token, OffPolicyBound::Truncate),
        ImportanceKey::TokenMask => (OffPolicyLevel::Token, OffPolicyBound::Mask),
        ImportanceKey::SequenceTruncate => (OffPolicyLevel::SequenceSum, OffPolicyBound::Truncate),
        ImportanceKey::SequenceMask => (OffPolicyLevel::SequenceSum, OffPolicyBound::Mask),
    };
    if rl.source == SourceKey::Data {
        let reason = "divides by who sampled, and nobody sampled the answers of a file; take none";
        return Err(Error::config("rl.importance_sampling", reason));
    }
    let max = rl.importance_sampling_cap;
    Ok(Some(OffPolicySettings { level, bound, max, ..OffPolicySettings::default() }))
}

/// The preset with the bounds of `config`.
fn preset(config: &RunConfig, longest: f64) -> Result<Preset> {
    let rl = &config.rl;
    let mut preset = presets::by_name(&rl.loss, longest).map_err(|error| match error {
        Error::InvalidArgument { got, expected, .. } => {
            Error::config("rl.loss", format!("{got} in `{}` is not one of {expected}", rl.loss))
        }
        Error::Config { key, reason } => {
            Error::Config { key, reason: format!("{reason}, {}", sequence::NAMES.join(", ")) }
        }
        other => other,
    })?;
    for (key, low, high) in
        [("rl.clip_low", rl.clip_low.value(), None), ("rl.clip_high", None, rl.clip_high.value())]
    {
        let Some(bound) = low.or(high) else { continue };
        preset.set_bounds(low, high).map_err(|lacks| {
            Error::config(key, format!("{bound}, but `{}` has {lacks}; leave it at auto", rl.loss))
        })?;
        preset.settings.validate().map_err(|error| {
            Error::config(key, format!("{bound} is no bound of `{}`: {error}", rl.loss))
        })?;
    }
    Ok(preset)
}

/// Where advantages come from: the preset's way, but for what `rl.advantage` and `rl.scale` say.
fn estimator(config: &RunConfig, preset: Estimator) -> Result<Estimator> {
    let rl = &config.rl;
    let own = match preset {
        Estimator::Group(group) => group,
        Estimator::Gae | Estimator::Reward | Estimator::One => GroupSettings::default(),
    };
    let compared = |baseline| Estimator::Group(GroupSettings { baseline, ..own });
    let named = match rl.advantage {
        AdvantageKey::Auto => preset,
        AdvantageKey::Group => compared(GroupBaseline::Mean),
        AdvantageKey::Loo => compared(GroupBaseline::LeaveOneOut),
        AdvantageKey::Gae => Estimator::Gae,
        AdvantageKey::Reward => Estimator::Reward,
        AdvantageKey::One => Estimator::One,
    };
    let scale = match rl.scale {
        ScaleKey::Auto => None,
        ScaleKey::Group => Some(GroupScale::GroupStd),
        ScaleKey::Batch => Some(GroupScale::BatchStd),
        ScaleKey::None => Some(GroupScale::None),
    };
    let Estimator::Group(group) = named else {
        if scale.is_some() {
            let reason = format!(
                "`{}` divides group advantages, and only rl.advantage = group or loo has some; leave it \
                 at auto",
                rl.scale.name()
            );
            return Err(Error::config("rl.scale", reason));
        }
        return Ok(named);
    };
    let samples = rl.source == SourceKey::Rollout;
    if samples && rl.group < 2 && own.on_single == OnSingle::Zero {
        let reason = format!(
            "{} sample has no other to be compared with, so every advantage would be 0; take 2 or \
             more, or rl.advantage = gae",
            rl.group
        );
        return Err(Error::config("rl.group", reason));
    }
    Ok(Estimator::Group(GroupSettings { scale: scale.unwrap_or(group.scale), ..group }))
}
