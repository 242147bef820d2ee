//! Which training prompts a step asks.

use std::collections::HashMap;

use crate::train::phase::book::prompt;
use crate::train::trainer::Trainer;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

/// Orders of a buffer's prompts have this first coordinate among those of [`Purpose::Shuffle`].
const ROUND: u32 = 3;

/// Draws of prompts by their success have this one.
const WORTH: u32 = 5;

/// Success that a prompt without a reward counts with.
const UNKNOWN: f64 = 0.5;

impl<T: Float> Trainer<T> {
    /// Numbers of the training prompts of batch `batch` of step `step`: the next of all of them, or, under
    /// `rl.prompts_of`, of a buffer's, in an order that each round through them shuffles anew, or drawn under
    /// `rl.prompts_tau`.
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
        if let Some(tau) = rl.prompts_tau.value() {
            return Ok(self.by_worth(&known, tau, self.place(step, batch).1));
        }
        let known: Vec<u64> = known.into_iter().map(|(row, _)| row).collect();
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

    /// Draws with P(row) in proportion to exp((0.5 − success) / τ), each by itself.
    fn by_worth(&self, known: &[(u64, f64)], tau: f64, step: u64) -> Vec<u64> {
        // Less the largest exponent: nothing overflows.
        let least = known.iter().map(|(_, success)| *success).fold(f64::INFINITY, f64::min);
        let weights = known.iter().map(|(_, success)| ((least - success) / tau).exp());
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let sums: Vec<f64> = sums.collect();
        let words = [WORTH, step as u32, (step >> 32) as u32];
        let mut rng = Rng::new(self.config.seed, Purpose::Shuffle, words);
        let mut draw = || {
            let at = rng.uniform() * sums[sums.len() - 1];
            known[sums.partition_point(|sum| *sum <= at).min(known.len() - 1)].0
        };
        (0..self.config.rl.prompts).map(|_| draw()).collect()
    }

    /// Numbers of the prompts of a buffer's records, each prompt once, in the order in which they came, with the mean
    /// reward of its records.
    fn rows_in(&self, buffer: &str) -> Vec<(u64, f64)> {
        let records = self.buffers.get(buffer).into_iter().flat_map(|b| b.newest(usize::MAX));
        let (mut places, mut found) = (HashMap::new(), Vec::<(u64, f64, usize)>::new());
        for record in records {
            let place = *places.entry(prompt(record)).or_insert_with(|| {
                found.push((record.row, 0.0, 0));
                found.len() - 1
            });
            if !record.reward.is_nan() {
                found[place].1 += record.reward as f64;
                found[place].2 += 1;
            }
        }
        let mean = |(row, sum, count)| (row, if count > 0 { sum / count as f64 } else { UNKNOWN });
        found.into_iter().map(mean).collect()
    }
}
