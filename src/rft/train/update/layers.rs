//! Learning rates that differ by block.

use crate::model::Parameters;
use crate::train::trainer::Trainer;
use crate::train::update::optimizer::{Update, Updated};
use crate::train::update::step::Backward;
use gradus::dtype::Float;
use gradus::error::Result;

/// What the learning rates of a model's parameters are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerRates {
    /// Factor from a block to the one below it. Below the lowest is the embedding; above the highest are
    /// the last norm and the head, whose factor is 1.
    pub decay: f64,
    /// Share of the blocks, the lowest ones, that do not move, nor does the embedding then; 0 = all move.
    pub frozen: f64,
}

impl LayerRates {
    /// The same rate everywhere.
    pub const EVEN: LayerRates = LayerRates { decay: 1.0, frozen: 0.0 };

    /// The factors of the parameters that train, in order; none for one that does not move.
    pub(crate) fn factors<T: Float>(self, params: &Parameters<T>) -> Vec<Option<f64>> {
        let blocks = params.iter().filter_map(|p| block(&p.name)).max().map_or(0, |last| last + 1);
        let trained = params.iter().filter(|p| p.trainable);
        trained.map(|p| self.factor(&p.name, blocks)).collect()
    }

    /// The factor of a parameter of a model of so many blocks.
    fn factor(self, name: &str, blocks: usize) -> Option<f64> {
        let below = |count: usize| self.decay.powi(count as i32);
        let frozen = (self.frozen * blocks as f64) as usize;
        match block(name) {
            Some(index) => (index >= frozen).then(|| below(blocks.saturating_sub(index))),
            None if name.starts_with(EMBEDDING) => (self.frozen == 0.0).then(|| below(blocks + 1)),
            None => Some(1.0),
        }
    }
}

const EMBEDDING: &str = "model.embed_tokens.";

/// The number of the block that a parameter is in.
fn block(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok()
}

impl<T: Float> Trainer<T> {
    /// One AdamW update at rates that differ by block.
    ///
    /// # Errors
    /// As [`step_by_layers`](crate::train::optimizer::Optimizer::step_by_layers).
    pub fn optim_step_by_layers(
        &mut self,
        backward: &Backward,
        update: Update,
        rates: LayerRates,
    ) -> Result<Updated> {
        let device = self.model.device.clone();
        let (params, gradients) = (&mut self.model.params, &backward.gradients);
        let updated = self.optimizer.step_by_layers(&device, params, gradients, update, rates)?;
        self.version += (updated.applied && self.keeps_records) as u64;
        Ok(updated)
    }
}
