//! Scores on held-out prompts.

use crate::reward::{Reward, score};
use crate::train::run::summary::SampleLine;
use crate::train::trainer::Sampled;
use gradus::error::{Error, Result};

/// Result of an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Mean score of the scored completions: the share of right ones, where the verifier gives 0 or
    /// 1. None if nothing was scored: a mean over nothing is no number.
    pub accuracy: Option<f64>,
    /// Standard error of that mean: the scores' standard deviation over √n, 0 for none.
    pub error: f64,
    /// Completions scored.
    pub completions: usize,
    /// Completions about which the reward had no opinion.
    pub abstained: usize,
    /// Completions for which the reward failed.
    pub failed: usize,
    /// Why the first of them failed.
    pub failure: Option<String>,
    /// First completions of the first prompts.
    pub examples: Vec<SampleLine>,
}

/// Completions kept as examples.
const EXAMPLES: usize = 3;

impl Evaluation {
    /// Scores the completions of every prompt. Those without an opinion, and those on which the reward
    /// failed, are not in the mean.
    pub(crate) fn of(verifier: &dyn Reward, sampled: &Sampled) -> Result<Evaluation> {
        let scores = score(verifier, &sampled.inputs())?;
        let known: Vec<f64> =
            scores.rewards.iter().filter(|s| !s.is_nan()).map(|&s| s as f64).collect();
        let n = known.len() as f64;
        let accuracy = (!known.is_empty()).then(|| known.iter().sum::<f64>() / n);
        let squares = known.iter().map(|s| (s - accuracy.unwrap_or(0.0)).powi(2)).sum::<f64>();
        let per_prompt = sampled.rollouts.first().map_or(1, Vec::len).max(1);
        let examples = sampled.lines(scores.outcomes()).into_iter().step_by(per_prompt);
        Ok(Evaluation {
            accuracy,
            error: (squares / n.max(1.0)).sqrt() / n.max(1.0).sqrt(),
            completions: known.len(),
            abstained: scores.abstained,
            failed: scores.failed,
            failure: scores.failures.into_iter().next().map(|(_, reason)| reason),
            examples: examples.take(EXAMPLES).collect(),
        })
    }

    /// The mean score, where an evaluation without one is an error.
    ///
    /// # Errors
    /// `Config` if there was no prompt; `Reward` if no completion was scored, with the reason of the
    /// first failure.
    pub fn scored(&self) -> Result<f64> {
        if let Some(accuracy) = self.accuracy {
            return Ok(accuracy);
        }
        let asked = self.abstained + self.failed;
        if asked == 0 {
            let reason = "no prompt is held out, so there is nothing to score; name a file in \
                          data.heldout or raise data.heldout_share";
            return Err(Error::config("data.heldout_share", reason));
        }
        let why = self.failure.as_ref().map_or(String::new(), |why| format!(", the first: {why}"));
        let reason = format!(
            "none of {asked} completions was scored: no opinion about {}, {} calls failed{why}",
            self.abstained, self.failed
        );
        Err(Error::Reward { reason })
    }
}
