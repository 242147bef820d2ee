//! Rewards: from completions to scores, a batch at a time.
//!
//! A [`Reward`] answers every [`RewardInput`] with a score, with "no opinion", or with the reason
//! why this one call failed. A failing call never becomes a silent zero, which a policy would learn
//! from: the sample is left out of its group, counted, and the run stops when too many fail.
//!
//! A closure from one input to one outcome is a `Reward`: it is called in parallel, and a panic in
//! it fails that sample alone. Beside the score an outcome may hold the parts that the score is
//! made of, and feedback: a text about the completion, such as the error of a program.
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

mod combine;
pub mod command;
pub mod http;
mod keeper;
mod kinds;
mod outcome;
mod process;
mod scores;
pub mod spec;
mod tail;
mod url;
pub mod verify;
mod weight;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::io::interrupt;
use gradus::escape::escaped;

pub(crate) use outcome::finite;
pub use outcome::{Judgment, Outcome, RewardOutcome};
pub(crate) use process::find_program;
pub(crate) use scores::FAILURE_LIMIT;
pub use scores::{Scores, score, score_at, score_groups};

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

/// Scores completions.
pub trait Reward: Send + Sync {
    /// One outcome per input, in order. `Err` excludes its sample like `Abstain`, and is counted
    /// as a failure.
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome>;

    /// One outcome per input, in order, where the inputs are the samples of one prompt after
    /// another and `groups` says how many each prompt has. A reward that compares the samples of a
    /// prompt with each other has this method; for all others it is [`Reward::score`].
    fn score_groups(&self, inputs: &[RewardInput<'_>], groups: &[usize]) -> Vec<Outcome> {
        let _ = groups;
        self.score(inputs)
    }

    /// As [`Reward::score_groups`] in a step of a phase: `progress` is 0 in its first step and 1 in its
    /// last. A reward whose parts have weights that move has this method.
    fn score_at(
        &self,
        inputs: &[RewardInput<'_>],
        groups: &[usize],
        progress: f64,
    ) -> Vec<Outcome> {
        let _ = progress;
        self.score_groups(inputs, groups)
    }

    /// The parts whose weights move over a phase, with their weights at `progress`.
    fn weights_at(&self, progress: f64) -> Vec<(String, f64)> {
        let _ = progress;
        Vec::new()
    }

    /// The least and the largest score, if it cannot give others.
    fn bounds(&self) -> Option<(f64, f64)> {
        None
    }

    /// Which samples of a prompt give the same answer, for a vote: equal answers have equal
    /// numbers, and a sample without an answer has none. Unless a reward reads answers in a way of
    /// its own, they are texts, case and spacing aside.
    fn same_answers(&self, inputs: &[RewardInput<'_>]) -> Vec<Option<usize>> {
        verify::same_texts(inputs)
    }

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

    fn score_groups(&self, inputs: &[RewardInput<'_>], groups: &[usize]) -> Vec<Outcome> {
        (**self).score_groups(inputs, groups)
    }

    fn score_at(
        &self,
        inputs: &[RewardInput<'_>],
        groups: &[usize],
        progress: f64,
    ) -> Vec<Outcome> {
        (**self).score_at(inputs, groups, progress)
    }

    fn weights_at(&self, progress: f64) -> Vec<(String, f64)> {
        (**self).weights_at(progress)
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        (**self).bounds()
    }

    fn same_answers(&self, inputs: &[RewardInput<'_>]) -> Vec<Option<usize>> {
        (**self).same_answers(inputs)
    }

    fn check_row(&self, fields: &Map<String, Value>) -> std::result::Result<(), String> {
        (**self).check_row(fields)
    }
}

/// A reward that says 1 for a right completion and 0 for any other.
pub(crate) struct Right<F>(pub F);

impl<F> Reward for Right<F>
where
    F: Fn(&RewardInput<'_>) -> bool + Send + Sync,
{
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        let one = |input: &RewardInput<'_>| Ok(RewardOutcome::Score((self.0)(input) as u8 as f32));
        one.score(inputs)
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        Some((0.0, 1.0))
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

    #[test]
    fn excerpts_are_short_and_print_on_one_line() {
        assert_eq!(excerpt("a\u{1b}[2J\nb\u{9b}é"), "a\\u{1b}[2J\\nb\\u{9b}é");
        assert_eq!(excerpt(&"x".repeat(121)), "x".repeat(120) + "…");
    }
}
