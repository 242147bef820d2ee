//! How uncertain the policy is at words of one's choice.

use std::collections::HashMap;

use crate::train::run::metrics::{Metric, Metrics};
use crate::train::trainer::Trainer;
use crate::train::update::record::Record;
use gradus::dtype::Float;
use gradus::error::Result;

impl<T: Float> Trainer<T> {
    /// The mean entropy of the tokens that spell one of `rl.watch`, spaces around them aside; nothing where
    /// nothing is watched. A mean over nothing is NaN, and the metrics files hold null.
    ///
    /// # Errors
    /// What the tokenizer says of a token.
    pub(super) fn watched(&self, records: &[Record]) -> Result<Metrics> {
        let (words, codec) = (&self.config.rl.watch, self.task.codec());
        let mut metrics = Metrics::default();
        if words.is_empty() {
            return Ok(metrics);
        }
        let mut known: HashMap<i32, bool> = HashMap::new();
        let (mut sum, mut count) = (0.0, 0usize);
        for record in records {
            for t in record.scored() {
                let id = record.ids[t];
                let spells = match known.get(&id) {
                    Some(&spells) => spells,
                    None => {
                        let text = codec.decode_spelled(&[id])?;
                        *known.entry(id).or_insert(words.iter().any(|word| word == text.trim()))
                    }
                };
                if spells {
                    sum += record.entropy[t] as f64;
                    count += 1;
                }
            }
        }
        metrics.push(Metric::EntropyWatched, sum / count as f64);
        Ok(metrics)
    }
}
