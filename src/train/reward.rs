//! Rewards: a closure from a completion to a score. A failing reward function never becomes a
//! silent zero: the sample is left out of its group, counted, and the run stops when too many fail.

use rayon::prelude::*;

use crate::error::{Error, Result};

/// What a reward function sees.
#[derive(Clone, Copy, Debug)]
pub struct RewardInput<'a> {
    /// The prompt's text.
    pub prompt: &'a str,
    /// The completion's text, without the end of sequence.
    pub completion: &'a str,
    /// Whether the completion ended by itself within the length limit.
    pub finished: bool,
}

/// What a reward function says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RewardOutcome {
    /// A finite score.
    Score(f32),
    /// No opinion: the sample takes no part in its group.
    Abstain,
}

/// A reward function. `Err` excludes the sample like `Abstain`, and is counted as a failure.
pub type RewardFn =
    dyn Fn(&RewardInput<'_>) -> std::result::Result<RewardOutcome, String> + Send + Sync;

/// Largest share of failing calls in one batch that a run survives.
const FAILURE_LIMIT: f64 = 0.5;

/// Scores of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// One per input; NaN where the function abstained or failed.
    pub rewards: Vec<f32>,
    /// Calls that abstained.
    pub abstained: usize,
    /// Calls that failed or returned a value that is not finite.
    pub failed: usize,
}

/// Calls `reward` once per input, in parallel, results in order.
pub fn score(reward: &RewardFn, inputs: &[RewardInput<'_>]) -> Result<Scores> {
    let outcomes: Vec<_> = inputs.par_iter().map(|input| call(reward, input)).collect();
    let (mut scores, mut last) = (Scores::default(), String::new());
    for outcome in outcomes {
        scores.rewards.push(match outcome {
            Ok(RewardOutcome::Score(score)) => score,
            Ok(RewardOutcome::Abstain) => {
                scores.abstained += 1;
                f32::NAN
            }
            Err(reason) => {
                scores.failed += 1;
                last = reason;
                f32::NAN
            }
        });
    }
    if scores.failed as f64 > FAILURE_LIMIT * inputs.len() as f64 {
        let reason =
            format!("{} of {} calls failed, the last: {last}", scores.failed, inputs.len());
        return Err(Error::Reward { reason });
    }
    Ok(scores)
}

fn call(reward: &RewardFn, input: &RewardInput<'_>) -> std::result::Result<RewardOutcome, String> {
    let guarded = std::panic::AssertUnwindSafe(|| reward(input));
    match std::panic::catch_unwind(guarded) {
        Ok(Ok(RewardOutcome::Score(score))) if !score.is_finite() => {
            Err(format!("score {score} for completion `{}`", input.completion))
        }
        Ok(outcome) => outcome,
        Err(_) => Err("the reward function panicked".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(completions: &[&'static str]) -> Vec<RewardInput<'static>> {
        completions
            .iter()
            .map(|completion| RewardInput { prompt: "p", completion, finished: true })
            .collect()
    }

    #[test]
    fn failures_are_left_out_and_counted() {
        let reward = |input: &RewardInput<'_>| match input.completion {
            "fail" => Err("broken".to_string()),
            "skip" => Ok(RewardOutcome::Abstain),
            "inf" => Ok(RewardOutcome::Score(f32::INFINITY)),
            text => Ok(RewardOutcome::Score(text.len() as f32)),
        };
        let scores = score(&reward, &inputs(&["a", "fail", "skip", "abc", "inf"])).unwrap();
        assert_eq!((scores.abstained, scores.failed), (1, 2));
        assert_eq!(scores.rewards[0], 1.0);
        assert_eq!(scores.rewards[3], 3.0);
        assert!([1, 2, 4].iter().all(|&i| scores.rewards[i].is_nan()));
    }

    #[test]
    fn too_many_failures_stop_the_run() {
        let reward = |_: &RewardInput<'_>| Err("judge is down".to_string());
        let error = score(&reward, &inputs(&["a", "b"])).unwrap_err().to_string();
        assert!(error.contains("2 of 2") && error.contains("judge is down"), "{error}");
    }

    #[test]
    fn a_panicking_reward_is_a_failure() {
        let reward = |input: &RewardInput<'_>| {
            assert!(input.completion != "boom", "boom");
            Ok(RewardOutcome::Score(1.0))
        };
        let scores = score(&reward, &inputs(&["boom", "a", "b"])).unwrap();
        assert_eq!(scores.failed, 1);
    }
}
