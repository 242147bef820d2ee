//! Weights of single tokens: which of them carry the surrogate, and how much.

use crate::train::phase::acts::RlBatch;
use crate::train::trainer::Trainer;
use crate::train::update::recipe::{Recipe, Weighing};
use crate::train::update::record::{Record, ScoredTokens, TokenClass};
use crate::train::update::step::score_records;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{
    OffPolicySettings, OffPolicyWeight, QuantileScope, RankedClass, TopFraction, offpolicy_weight,
    top_fraction,
};

impl<T: Float> Trainer<T> {
    /// Weights that stay the same for all updates of a batch: the tokens, or those of beginnings, of the
    /// largest entropy before the first of them, and importance weights of what another policy sampled. Quantiles are those of
    /// the whole batch, so that micro-batches change nothing.
    pub(super) fn weigh_batch(&self, recipe: &Recipe, records: &mut [Record]) -> Result<()> {
        match recipe.weighing {
            Weighing::TopEntropy(share) => self.keep_top_entropy(share, None, records)?,
            Weighing::Beginnings(share) => {
                self.keep_top_entropy(share, Some(TokenClass::Demo), records)?;
            }
            Weighing::Even | Weighing::Probability(_) => {}
        }
        match recipe.importance {
            Some(settings) => self.set_importance(settings, records),
            None => Ok(()),
        }
    }

    /// Of all tokens, or of a class alone; those of the others are then kept.
    fn keep_top_entropy(
        &self,
        fraction: f64,
        class: Option<TokenClass>,
        records: &mut [Record],
    ) -> Result<()> {
        let scored = ScoredTokens::of(records);
        let entropy = scored.gather(records, |r| &r.entropy);
        let classes = scored.gather(records, |r| &r.class);
        let classes: Vec<u8> = classes.into_iter().map(|class| class as u8).collect();
        let ranked =
            |class| RankedClass { class_ids: (&classes).into(), ranked: class as u8, others: true };
        let mut keep = vec![0u8; entropy.len()];
        let args = TopFraction {
            x: (&entropy).into(),
            class: class.map(ranked),
            scope: QuantileScope::All,
            fraction,
            keep: (&mut keep).into(),
            threshold: None,
        };
        top_fraction(&self.model.device, args)?;
        let mut keep = keep.into_iter().map(f32::from);
        set(records, |record| &mut record.token_weight, || keep.next());
        Ok(())
    }

    /// ρ of every token; exactly 1 where the policy before the updates is the one that sampled.
    fn set_importance(&self, settings: OffPolicySettings, records: &mut [Record]) -> Result<()> {
        let scored = ScoredTokens::of(records);
        let old = scored.gather(records, Record::old_logp);
        let sampler = scored.gather(records, |r| &r.sampler_logp);
        let mut weight = vec![0f32; old.len()];
        let args = OffPolicyWeight {
            old_logp: (&old).into(),
            sampler_logp: (&sampler).into(),
            mask: None,
            cu_seqlens: (&scored.cu_seqlens).into(),
            settings,
            weight: (&mut weight).into(),
            stats: None,
        };
        offpolicy_weight(&self.model.device, args)?;
        let mut weight = weight.into_iter();
        set(records, |record| &mut record.is_weight, || weight.next());
        Ok(())
    }

    /// Weights under the policy that is about to be updated: max(π, floor) of each token. Before the
    /// `first` update of a step the log-probs are known.
    pub(super) fn weigh_update(
        &self,
        recipe: &Recipe,
        batch: &mut RlBatch,
        first: bool,
    ) -> Result<()> {
        let Weighing::Probability(floor) = recipe.weighing else { return Ok(()) };
        let columns = match first {
            true => batch.records.iter().map(|r| r.old_logp().to_vec()).collect(),
            false => score_records(&self.model, &batch.records, true, self.scoring())?,
        };
        for (record, logp) in batch.records.iter_mut().zip(columns) {
            let weight = |l: f32| (l as f64).exp().max(floor) as f32;
            record.token_weight = logp.into_iter().map(weight).collect();
        }
        Ok(())
    }
}

/// Fills a column of the records at the scored tokens, in order; elsewhere it is 0.
fn set(
    records: &mut [Record],
    column: impl Fn(&mut Record) -> &mut Vec<f32>,
    mut next: impl FnMut() -> Option<f32>,
) {
    for record in records {
        let mut values = vec![0f32; record.ids.len()];
        record.scored().for_each(|t| values[t] = next().unwrap_or(0.0));
        *column(record) = values;
    }
}
