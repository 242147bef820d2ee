//! Tokens that a loss treats by the covariance of their advantage with their log-prob.

use crate::train::phase::acts::RlBatch;
use crate::train::trainer::Trainer;
use crate::train::update::recipe::Recipe;
use crate::train::update::step::score_records;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::Loss;
use gradus::ops::presets::Covariance;
use gradus::rng::{Purpose, Rng};

/// A token as the choice sees it.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// A.
    advantage: f64,
    /// ℓ under the policy that is updated.
    logp: f64,
    /// ℓ of the sampler.
    sampler_logp: f64,
}

impl<T: Float> Trainer<T> {
    /// Marks the tokens that the loss treats by their covariance, which is the one under the policy
    /// that is about to be updated.
    pub(super) fn choose_tokens(
        &self,
        rule: Covariance,
        recipe: &Recipe,
        batch: &mut RlBatch,
    ) -> Result<()> {
        let columns = score_records(&self.model, &batch.records, true, self.scoring())?;
        let mut advantage = batch.advantages.of_tokens(&batch.records).into_iter();
        let mut tokens = Vec::new();
        for (record, column) in batch.records.iter().zip(&columns) {
            for (t, a) in record.scored().zip(advantage.by_ref()) {
                let (logp, sampler_logp) = (column[t] as f64, record.sampler_logp[t] as f64);
                tokens.push(Candidate { advantage: a as f64, logp, sampler_logp });
            }
        }
        // Updates are counted, so that each draws its own tokens, also after a resume.
        let t = self.optimizer.t;
        let words = [1 << 31, t as u32, (t >> 32) as u32];
        let mut rng = Rng::new(self.config.seed, Purpose::Control, words);
        let mut chosen = choose(rule, &recipe.settings.loss, &tokens, &mut rng).into_iter();
        for record in &mut batch.records {
            let scored: Vec<usize> = record.scored().collect();
            let marks = scored.into_iter().zip(chosen.by_ref());
            match rule {
                Covariance::Clip { .. } => {
                    record.token_weight = vec![1.0; record.ids.len()];
                    marks.for_each(|(t, chosen)| record.token_weight[t] = !chosen as u8 as f32);
                }
                Covariance::Kl { .. } => {
                    record.selected = vec![0; record.ids.len()];
                    marks.for_each(|(t, chosen)| record.selected[t] = chosen as u8);
                }
            }
        }
        Ok(())
    }
}

/// Which of the batch's tokens are chosen; `rng` draws where the rule is a random one.
fn choose(rule: Covariance, loss: &Loss, tokens: &[Candidate], rng: &mut Rng) -> Vec<bool> {
    let mean =
        |of: fn(&Candidate) -> f64| tokens.iter().map(of).sum::<f64>() / tokens.len().max(1) as f64;
    let (advantage, logp) = (mean(|t| t.advantage), mean(|t| t.logp));
    let cov: Vec<f64> =
        tokens.iter().map(|t| (t.advantage - advantage) * (t.logp - logp)).collect();
    let count = |share: f64| ((share * tokens.len() as f64) as usize).max(1);
    let mut found: Vec<usize> = (0..tokens.len()).collect();
    let most = match rule {
        Covariance::Clip { share, low, high } => {
            found.retain(|&i| cov[i] > low && cov[i] < high && !clipped(loss, &tokens[i]));
            rng.shuffle(&mut found);
            count(share)
        }
        Covariance::Kl { share } => {
            // Ties go to the token that comes first.
            found.sort_by(|&i, &j| cov[j].total_cmp(&cov[i]));
            count(share)
        }
    };
    let mut chosen = vec![false; tokens.len()];
    found.into_iter().take(most).for_each(|i| chosen[i] = true);
    chosen
}

/// Whether PPO's clip takes the token's gradient.
fn clipped(loss: &Loss, t: &Candidate) -> bool {
    let Loss::PpoClip { lo, hi, .. } = loss else { return false };
    let ratio = (t.logp - t.sampler_logp).exp();
    -t.advantage * ratio.clamp(*lo, *hi) > -t.advantage * ratio
}

#[cfg(test)]
mod tests {
    use super::*;
    /// Means are 0 but for the two that are asked for, so that cov = A·ℓ by hand.
    fn tokens() -> Vec<Candidate> {
        let of = |advantage: f64, logp: f64, sampler_logp: f64| Candidate {
            advantage,
            logp,
            sampler_logp,
        };
        vec![
            of(2.0, 1.0, 1.0),    // cov 2
            of(-2.0, -1.0, 0.0),  // cov 2, clipped from below
            of(3.0, 2.0, 2.0),    // cov 6
            of(-3.0, -2.0, -2.0), // cov 6
            of(1.0, 0.5, 0.5),    // cov 0.5
            of(-1.0, -0.5, -0.5), // cov 0.5
        ]
    }

    #[test]
    fn the_penalty_goes_to_the_largest_covariances() {
        let mut rng = Rng::new(0, Purpose::User, [0; 3]);
        let rule = |share| Covariance::Kl { share };
        let loss = Loss::KlCov { kappa: 1.0 };
        let two = choose(rule(2.0 / 6.0), &loss, &tokens(), &mut rng);
        assert_eq!(two, [false, false, true, true, false, false]);
        let one = choose(rule(2e-4), &loss, &tokens(), &mut rng);
        assert_eq!(one, [false, false, true, false, false, false], "at least one, the first");
    }

    #[test]
    fn the_clip_draws_among_covariances_within_bounds_that_ppo_leaves() {
        let rule = |share| Covariance::Clip { share, low: 0.4, high: 5.0 };
        let loss = Loss::PpoClip { lo: 0.8, hi: 1.2, dual: f64::INFINITY };
        let all = choose(rule(1.0), &loss, &tokens(), &mut Rng::new(0, Purpose::User, [0; 3]));
        assert_eq!(all, [true, false, false, false, true, true]);
        let mut drawn = [0; 6];
        for step in 0..300 {
            let mut rng = Rng::new(0, Purpose::User, [step, 0, 0]);
            let one = choose(rule(2e-4), &loss, &tokens(), &mut rng);
            assert_eq!(one.iter().filter(|&&c| c).count(), 1);
            drawn.iter_mut().zip(one).for_each(|(n, c)| *n += c as usize);
        }
        assert!([0, 4, 5].iter().all(|&i| drawn[i] > 60), "each of the three: {drawn:?}");
    }
}
