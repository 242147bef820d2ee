//! The reward of an episode: what its turns were worth, with what a reward says of the last answer.

use serde_json::{Map, Value};

use super::episode::Played;
use crate::reward::{Judgment, Outcome, Reward, RewardInput, RewardOutcome};

/// A reward of the episodes `played`, in order; with none of them the reward itself.
pub(crate) struct Judged<'a> {
    pub reward: &'a dyn Reward,
    pub played: &'a [Played],
}

impl Judged<'_> {
    /// What the turns were worth beside what was said of the last answers.
    fn with_turns(&self, outcomes: Vec<Outcome>) -> Vec<Outcome> {
        if self.played.is_empty() || outcomes.len() != self.played.len() {
            return outcomes;
        }
        outcomes
            .into_iter()
            .zip(self.played)
            .map(|(outcome, played)| played.judge(outcome))
            .collect()
    }
}

impl Played {
    /// An episode that failed is not judged. Whoever has no opinion of the last answer has none of the
    /// episode.
    fn judge(&self, outcome: Outcome) -> Outcome {
        if let Some(reason) = &self.failure {
            return Err(reason.clone());
        }
        let more =
            |judgment: Judgment| Judgment { score: judgment.score + self.reward, ..judgment };
        outcome.map(|outcome| match outcome.judgment() {
            Some(judgment) => more(judgment).into(),
            None => RewardOutcome::Abstain,
        })
    }
}

impl Reward for Judged<'_> {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        self.with_turns(self.reward.score(inputs))
    }

    fn score_groups(&self, inputs: &[RewardInput<'_>], groups: &[usize]) -> Vec<Outcome> {
        self.with_turns(self.reward.score_groups(inputs, groups))
    }

    fn score_at(
        &self,
        inputs: &[RewardInput<'_>],
        groups: &[usize],
        progress: f64,
    ) -> Vec<Outcome> {
        self.with_turns(self.reward.score_at(inputs, groups, progress))
    }

    fn weights_at(&self, progress: f64) -> Vec<(String, f64)> {
        self.reward.weights_at(progress)
    }

    fn same_answers(&self, inputs: &[RewardInput<'_>]) -> Vec<Option<usize>> {
        self.reward.same_answers(inputs)
    }

    fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.reward.check_row(fields)
    }
}
