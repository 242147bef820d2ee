//! Scores on held-out prompts.

use crate::error::Result;
use crate::reward::{Reward, score};
use crate::train::summary::SampleLine;
use crate::train::trainer::Sampled;

/// Result of an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Mean score of the completions: the share of right ones, where the verifier gives 0 or 1.
    pub accuracy: f64,
    /// Completions scored.
    pub completions: usize,
    /// First completions of the first prompts.
    pub examples: Vec<SampleLine>,
}

/// Completions kept as examples.
const EXAMPLES: usize = 3;

impl Evaluation {
    /// Scores the completions of every prompt. Samples without an opinion are not counted.
    pub(crate) fn of(verifier: &dyn Reward, sampled: &Sampled) -> Result<Evaluation> {
        let scores = score(verifier, &sampled.inputs())?.rewards;
        let known: Vec<f64> = scores.iter().filter(|s| !s.is_nan()).map(|&s| s as f64).collect();
        let accuracy = known.iter().sum::<f64>() / known.len().max(1) as f64;
        let per_prompt = sampled.rollouts.first().map_or(1, Vec::len).max(1);
        let examples = sampled.lines(&scores).into_iter().step_by(per_prompt);
        let examples = examples.take(EXAMPLES).collect();
        Ok(Evaluation { accuracy, completions: known.len(), examples })
    }
}
