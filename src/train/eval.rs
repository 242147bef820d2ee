//! Accuracy on held-out prompts.

use crate::dtype::Float;
use crate::error::Result;
use crate::model::Decoder;
use crate::rng::Purpose;
use crate::train::rollout::{RolloutKey, Sampling, rollout};
use crate::train::task::{Prompt, Task};

/// Result of an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Share of correct completions.
    pub accuracy: f64,
    /// Completions scored.
    pub completions: usize,
    /// (prompt, first completion, correct) of the first prompts.
    pub examples: Vec<(String, String, bool)>,
}

/// Completions kept as examples.
const EXAMPLES: usize = 3;

/// Samples `samples` completions of every prompt with the same draws at every call (step 0 of the
/// evaluation stream), so that two evaluations differ by the policy alone.
pub fn evaluate<T: Float>(
    model: &Decoder<T>,
    task: &dyn Task,
    prompts: &[Prompt],
    samples: usize,
    sampling: &Sampling,
    seed: u64,
) -> Result<Evaluation> {
    let ids = prompts.iter().map(|p| task.vocab().encode(&p.text)).collect::<Result<Vec<_>>>()?;
    let key = RolloutKey { seed, purpose: Purpose::Eval, step: 0 };
    let rollouts = rollout(model, &ids, samples, sampling, key)?;
    let mut result = Evaluation::default();
    let mut correct = 0;
    for (prompt, rollouts) in prompts.iter().zip(&rollouts) {
        for (s, rollout) in rollouts.iter().enumerate() {
            let text = task.vocab().decode(&rollout.tokens);
            let right = rollout.finished && task.is_correct(prompt, &text);
            correct += right as usize;
            result.completions += 1;
            if s == 0 && result.examples.len() < EXAMPLES {
                result.examples.push((prompt.text.clone(), text, right));
            }
        }
    }
    result.accuracy = correct as f64 / result.completions.max(1) as f64;
    Ok(result)
}
