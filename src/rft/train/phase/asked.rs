//! Which training prompts a step asks.

use std::collections::HashSet;

use crate::train::phase::book::prompt;
use crate::train::trainer::Trainer;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

/// Orders of a buffer's prompts have this first coordinate among those of [`Purpose::Shuffle`].
const ROUND: u32 = 3;

impl<T: Float> Trainer<T> {
    /// Numbers of the training prompts of batch `batch` of step `step`: the next of all of them, or, under
    /// `rl.prompts_of`, of a buffer's, in an order that each round through them shuffles anew.
    ///
    /// # Errors
    /// `Training` for a buffer that is empty.
    pub(super) fn rows(&self, step: u64, batch: u64) -> Result<Vec<u64>> {
        let (rl, (first, _)) = (&self.config.rl, self.place(step, batch));
        let next = first..first + rl.prompts as u64;
        // A memory plan asks before anything has filled a buffer.
        if rl.prompts_of.is_empty() || self.longest {
            return Ok(next.collect());
        }
        let known = self.rows_in(&rl.prompts_of);
        let n = known.len() as u64;
        if n == 0 {
            let reason = format!(
                "rl.prompts_of: the buffer `{}` is empty, so that no prompt is left to ask; let the \
                 phase that fills it sample more, or keep more of what it samples",
                rl.prompts_of
            );
            return Err(Error::Training { reason });
        }
        let (mut round, mut order) = (u64::MAX, Vec::new());
        let mut row = |i: u64| {
            if round != i / n {
                (round, order) = (i / n, known.clone());
                let words = [ROUND, round as u32, (round >> 32) as u32];
                Rng::new(self.config.seed, Purpose::Shuffle, words).shuffle(&mut order);
            }
            order[(i % n) as usize]
        };
        Ok(next.map(&mut row).collect())
    }

    /// Numbers of the prompts of a buffer's records, each prompt once, in the order in which they came.
    fn rows_in(&self, buffer: &str) -> Vec<u64> {
        let records = self.buffers.get(buffer).into_iter().flat_map(|b| b.newest(usize::MAX));
        let mut seen = HashSet::new();
        records.filter(|record| seen.insert(prompt(record))).map(|record| record.row).collect()
    }
}
