//! The policy that the KL is measured to: the one that the first RL step found. With adapters that
//! nobody has moved that is the model without them, and costs nothing; everything else is kept, a
//! copy of what trains.

use crate::model::Snapshot;
use crate::train::trainer::Trainer;
use crate::train::update::record::Record;
use crate::train::update::step::score_records;
use gradus::dtype::Float;
use gradus::error::Result;

/// What the KL is measured to.
#[derive(Debug, Default)]
pub enum Reference<T = f32> {
    /// No step has asked for it yet.
    #[default]
    NotTaken,
    /// The model without its adapters.
    Base,
    /// These values of what trains.
    Held(Snapshot<T>),
}

impl<T: Float> Trainer<T> {
    /// Takes the policy as it is for the reference, unless there is one.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn hold_reference(&mut self) -> Result<()> {
        if !matches!(self.reference, Reference::NotTaken) {
            return Ok(());
        }
        // Quantization starts an optimizer for fresh adapters, whose product is exactly 0.
        let fresh = self.config.model.adapter.is_empty() && self.optimizer.t == 0;
        self.reference = match self.model.has_adapters() && fresh {
            true => Reference::Base,
            false => Reference::Held(self.model.params.snapshot()?),
        };
        Ok(())
    }

    /// Puts the reference's log-probs of all scored tokens into the records.
    pub(crate) fn score_reference(&mut self, records: &mut [Record]) -> Result<()> {
        let columns = self.reference_logp(records)?;
        records.iter_mut().zip(columns).for_each(|(record, column)| record.ref_logp = column);
        Ok(())
    }

    /// The reference's log-probs of all scored tokens, one column over all tokens of each record.
    fn reference_logp(&mut self, records: &[Record]) -> Result<Vec<Vec<f32>>> {
        self.hold_reference()?;
        let how = self.scoring();
        match &mut self.reference {
            Reference::NotTaken | Reference::Base => {
                score_records(&self.model, records, false, how)
            }
            Reference::Held(held) => {
                self.model.params.swap(held);
                let columns = score_records(&self.model, records, true, how);
                self.model.params.swap(held);
                columns
            }
        }
    }
}
