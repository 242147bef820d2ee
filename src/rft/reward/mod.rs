//! Rewards: from completions to scores, a batch at a time.
//!
//! A [`Reward`] answers every [`RewardInput`] with a score, with "no opinion", or with the reason
//! why this one call failed. A failing call never becomes a silent zero, which a policy would learn
//! from: the sample is left out of its group, counted, and the run stops when too many fail.
//!
//! A closure from one input to one outcome is a `Reward`: it is called in parallel, and a panic in
//! it fails that sample alone.
//!
//! ```
//! use gradus_rft::reward::{RewardInput, RewardOutcome, no_fields, score};
//!
//! let brevity = |input: &RewardInput<'_>| {
//!     Ok(RewardOutcome::Score(1.0 / (1.0 + input.completion.len() as f32)))
//! };
//! let input = RewardInput { prompt: "?", completion: "yes", finished: true, fields: no_fields() };
//! assert_eq!(score(&brevity, &[input])?.rewards, [0.25]);
//! # Ok::<(), gradus::Error>(())
//! ```

pub mod command;
pub mod http;
mod keeper;
mod process;
pub mod spec;
mod url;
pub mod verify;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::io::interrupt;
use gradus::error::{Error, Result};
use gradus::escape::escaped;

/// What a reward sees of one sample.
#[derive(Clone, Copy, Debug)]
pub struct RewardInput<'a> {
    /// The prompt's text.
    pub prompt: &'a str,
    /// The completion's text, without the end of sequence.
    pub completion: &'a str,
    /// Whether the completion ended by itself within the length limit.
    pub finished: bool,
    /// The data row that the prompt came from: `answer`, `tests` and whatever else it holds.
    pub fields: &'a Map<String, Value>,
}

/// The fields of a prompt that came from no data row.
pub fn no_fields() -> &'static Map<String, Value> {
    static EMPTY: OnceLock<Map<String, Value>> = OnceLock::new();
    EMPTY.get_or_init(Map::new)
}

/// What a reward says about one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RewardOutcome {
    /// A finite score.
    Score(f32),
    /// No opinion: the sample takes no part in its group.
    Abstain,
}

/// One answer of a reward; `Err` holds why the call failed.
pub type Outcome = std::result::Result<RewardOutcome, String>;

/// Scores completions.
pub trait Reward: Send + Sync {
    /// One outcome per input, in order. `Err` excludes its sample like `Abstain`, and is counted
    /// as a failure.
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome>;

    /// Whether a data row has what the reward compares with, in a form that it can read. It is
    /// asked once for every row when the data is read, so that a run does not begin with rows that
    /// nothing can be right for.
    ///
    /// # Errors
    /// What is wrong, with the field's name.
    fn check_row(&self, fields: &Map<String, Value>) -> std::result::Result<(), String> {
        let _ = fields;
        Ok(())
    }
}

impl<F> Reward for F
where
    F: Fn(&RewardInput<'_>) -> Outcome + Send + Sync,
{
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        inputs.par_iter().map(|input| guarded(self, input)).collect()
    }
}

impl<R: Reward + ?Sized> Reward for Arc<R> {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        (**self).score(inputs)
    }

    fn check_row(&self, fields: &Map<String, Value>) -> std::result::Result<(), String> {
        (**self).check_row(fields)
    }
}

/// Largest share of failing calls in one batch that a run survives.
const FAILURE_LIMIT: f64 = 0.5;

/// Scores of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// One per input; NaN where the reward abstained or failed.
    pub rewards: Vec<f32>,
    /// Calls that abstained.
    pub abstained: usize,
    /// Calls that failed or returned a value that is not finite.
    pub failed: usize,
    /// Which calls these are, and why they failed.
    pub failures: Vec<(usize, String)>,
}

/// Asks `reward` about `inputs`.
///
/// # Errors
/// `Reward` if more than half of the calls failed, or if the number of outcomes is not the number
/// of inputs; `Interrupted` if a signal asked for a stop meanwhile, whatever the outcomes are.
pub fn score(reward: &dyn Reward, inputs: &[RewardInput<'_>]) -> Result<Scores> {
    let outcomes = reward.score(inputs);
    interrupt::check()?;
    if outcomes.len() != inputs.len() {
        let reason = format!("{} outcomes for {} completions", outcomes.len(), inputs.len());
        return Err(Error::Reward { reason });
    }
    let mut scores = Scores::default();
    for (outcome, input) in outcomes.into_iter().zip(inputs) {
        scores.push(finite(outcome, input));
    }
    if scores.failed as f64 > FAILURE_LIMIT * inputs.len() as f64 {
        let first = scores.failures.first().map_or("", |(_, reason)| reason);
        let reason =
            format!("{} of {} calls failed, the first: {first}", scores.failed, inputs.len());
        return Err(Error::Reward { reason });
    }
    Ok(scores)
}

impl Scores {
    /// What was said of each call.
    pub fn outcomes(&self) -> Vec<Outcome> {
        let known = |&reward: &f32| match reward.is_nan() {
            true => Ok(RewardOutcome::Abstain),
            false => Ok(RewardOutcome::Score(reward)),
        };
        let mut outcomes: Vec<Outcome> = self.rewards.iter().map(known).collect();
        for (i, reason) in &self.failures {
            outcomes[*i] = Err(reason.clone());
        }
        outcomes
    }

    fn push(&mut self, outcome: Outcome) {
        let reward = match outcome {
            Ok(RewardOutcome::Score(score)) => score,
            Ok(RewardOutcome::Abstain) => {
                self.abstained += 1;
                f32::NAN
            }
            Err(reason) => {
                self.failed += 1;
                self.failures.push((self.rewards.len(), reason));
                f32::NAN
            }
        };
        self.rewards.push(reward);
    }
}

/// A score that is not finite is a failure.
pub(crate) fn finite(outcome: Outcome, input: &RewardInput<'_>) -> Outcome {
    match outcome {
        Ok(RewardOutcome::Score(score)) if !score.is_finite() => {
            Err(format!("score {score} for completion `{}`", excerpt(input.completion)))
        }
        outcome => outcome,
    }
}

/// What is said of a sample that a signal kept from being judged.
const STOPPED: &str = "a signal asked for a stop";

fn guarded(reward: impl Fn(&RewardInput<'_>) -> Outcome, input: &RewardInput<'_>) -> Outcome {
    let stopped = |_| STOPPED.to_string();
    interrupt::check().map_err(stopped)?;
    let outcome = catch_unwind(AssertUnwindSafe(|| reward(input)))
        .unwrap_or_else(|_| Err("the reward function panicked".into()));
    interrupt::check().map_err(stopped)?;
    outcome
}

/// The start of `text` on one line, short enough for a message.
pub(crate) fn excerpt(text: &str) -> String {
    const CHARS: usize = 120;
    let short: String = text.chars().take(CHARS).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    printable(&short) + more
}

/// `text` on one line, its control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    escaped(text).to_string().replace('\n', "\\n").replace('\t', "\\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(completions: &[&'static str]) -> Vec<RewardInput<'static>> {
        completions
            .iter()
            .map(|completion| RewardInput {
                prompt: "p",
                completion,
                finished: true,
                fields: no_fields(),
            })
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
        assert_eq!(scores.failures[0], (1, "broken".into()));
        assert_eq!(scores.failures[1].0, 4);
        let outcomes = scores.outcomes();
        assert_eq!(outcomes[..2], [Ok(RewardOutcome::Score(1.0)), Err("broken".into())]);
        assert_eq!(outcomes[2], Ok(RewardOutcome::Abstain));
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

    #[test]
    fn excerpts_are_short_and_print_on_one_line() {
        assert_eq!(excerpt("a\u{1b}[2J\nb\u{9b}é"), "a\\u{1b}[2J\\nb\\u{9b}é");
        assert_eq!(excerpt(&"x".repeat(121)), "x".repeat(120) + "…");
    }

    /// Says nothing, whatever it is asked.
    struct Mute;

    impl Reward for Mute {
        fn score(&self, _: &[RewardInput<'_>]) -> Vec<Outcome> {
            Vec::new()
        }
    }

    #[test]
    fn a_wrong_number_of_outcomes_is_an_error() {
        let error = score(&Mute, &inputs(&["a", "b"])).unwrap_err().to_string();
        assert!(error.contains("0 outcomes for 2 completions"), "{error}");
        assert_eq!(score(&Mute, &[]).unwrap(), Scores::default());
    }
}
