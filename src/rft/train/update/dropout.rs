//! Which updates drop inputs of adapters, and by which masks.

use crate::model::AdapterDropout;
use crate::train::config::RunConfig;
use crate::train::phase::Phase;
use crate::train::trainer::Trainer;
use crate::train::update::recipe::Recipe;
use crate::train::update::sequence::SequenceKind;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng, fold};

impl<T: Float> Trainer<T> {
    /// The masks of the next update of step `step` of a phase of `kind`: a function of the seed and of
    /// what a checkpoint holds, so that a resumed run finds them again. None without `lora.dropout`.
    pub(crate) fn dropout(&self, kind: Phase, step: u64) -> Option<AdapterDropout> {
        let p = self.config.lora.dropout;
        let before = self.before;
        let words = [kind as u64, before.steps, before.epochs, step, self.optimizer.t];
        let key = fold(Rng::key(self.config.seed, Purpose::Dropout), &words);
        (p > 0.0).then_some(AdapterDropout { p, key })
    }
}

/// Refuses dropout in updates that take a ratio: the policy that sampled dropped nothing, so that the
/// first ratio would not be 1.
///
/// # Errors
/// `Config`.
pub(crate) fn check_dropout(config: &RunConfig, recipe: &Recipe) -> Result<()> {
    let takes_ratio = match recipe.sequence.map(|loss| loss.kind) {
        None | Some(SequenceKind::Prdp { .. }) => true,
        Some(
            SequenceKind::Copg
            | SequenceKind::Mml { .. }
            | SequenceKind::Kto { .. }
            | SequenceKind::InfoNce
            | SequenceKind::Preference(_),
        ) => false,
    };
    if config.lora.dropout == 0.0 || !takes_ratio {
        return Ok(());
    }
    let reason = format!(
        "{}, but `{}` takes ratios to the policy that sampled, which dropped nothing: the first one \
         would not be 1; take 0, for example as dropout in a table [phase.NAME.lora]",
        config.lora.dropout, config.rl.loss
    );
    Err(Error::config("lora.dropout", reason))
}
