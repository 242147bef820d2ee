//! Accuracy on held-out prompts.

use crate::train::rollout::Rollout;
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

impl Evaluation {
    /// Scores the completions of every prompt.
    pub fn of(task: &dyn Task, prompts: &[Prompt], rollouts: &[Vec<Rollout>]) -> Evaluation {
        let mut result = Evaluation::default();
        let mut correct = 0;
        for (prompt, rollouts) in prompts.iter().zip(rollouts) {
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
        result
    }
}
