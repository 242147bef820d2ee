//! The reward of an episode: what its turns were worth, with what a reward says of the last answer, or of the
//! last answers that it is continued to.

use serde_json::{Map, Value};

use super::episode::Played;
use super::rounds::LastAnswer;
use crate::reward::{Judgment, Outcome, Reward, RewardInput, RewardOutcome};

/// A reward of the episodes `played`, in order, whose answers are continued to the `last` ones; with none of
/// either the reward itself.
pub(crate) struct Judged<'a> {
    pub reward: &'a dyn Reward,
    pub played: &'a [Played],
    pub last: &'a [Vec<LastAnswer>],
}

impl Judged<'_> {
    /// What `score` says of the inputs, or on average of what each comes to, beside what turns were worth.
    fn ask(
        &self,
        inputs: &[RewardInput<'_>],
        groups: &[usize],
        score: impl Fn(&[RewardInput<'_>], &[usize]) -> Vec<Outcome>,
    ) -> Vec<Outcome> {
        let Some(each) =
            self.last.first().map(Vec::len).filter(|_| self.last.len() == inputs.len())
        else {
            return self.with_turns(score(inputs, groups));
        };
        let continued = inputs.iter().zip(self.last);
        let continued: Vec<RewardInput<'_>> = continued
            .flat_map(|(input, last)| {
                last.iter().map(|LastAnswer { text, finished }| RewardInput {
                    completion: text,
                    finished: *finished,
                    ..*input
                })
            })
            .collect();
        let groups: Vec<usize> = groups.iter().map(|size| size * each).collect();
        let outcomes = score(&continued, &groups);
        if outcomes.len() != continued.len() {
            // Whoever asked sees that the numbers differ.
            return outcomes;
        }
        self.with_turns(outcomes.chunks(each).map(mean).collect())
    }

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

/// What was said of all continuations of a sample: the means of score and parts, and the first feedback.
/// One that failed, or about which there is no opinion, decides for all.
fn mean(outcomes: &[Outcome]) -> Outcome {
    let mut judged = Vec::new();
    for outcome in outcomes {
        match outcome.clone()?.judgment() {
            Some(judgment) => judged.push(judgment),
            None => return Ok(RewardOutcome::Abstain),
        }
    }
    let of = |values: Vec<f64>| (values.iter().sum::<f64>() / values.len().max(1) as f64) as f32;
    let mut names: Vec<String> = Vec::new();
    for (name, _) in judged.iter().flat_map(|judgment| &judgment.parts) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let part = |name: String| {
        let all = judged.iter().flat_map(|judgment| &judgment.parts);
        let values = all.filter(|(known, _)| *known == name).map(|(_, value)| *value as f64);
        let mean = of(values.collect());
        (name, mean)
    };
    let parts = names.into_iter().map(part).collect();
    let score = of(judged.iter().map(|judgment| judgment.score as f64).collect());
    let feedback = judged.into_iter().next().and_then(|judgment| judgment.feedback);
    Ok(Judgment { score, parts, feedback }.into())
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
        self.ask(inputs, &[], |inputs, _| self.reward.score(inputs))
    }

    fn score_groups(&self, inputs: &[RewardInput<'_>], groups: &[usize]) -> Vec<Outcome> {
        self.ask(inputs, groups, |inputs, groups| self.reward.score_groups(inputs, groups))
    }

    fn score_at(
        &self,
        inputs: &[RewardInput<'_>],
        groups: &[usize],
        progress: f64,
    ) -> Vec<Outcome> {
        self.ask(inputs, groups, |inputs, groups| self.reward.score_at(inputs, groups, progress))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_are_judged_by_their_mean() {
        let score = |score: f32| -> Outcome { Ok(RewardOutcome::Score(score)) };
        assert_eq!(mean(&[score(0.1), score(0.1), score(0.1)]), score(0.1));
        assert_eq!(mean(&[score(1.0), score(0.0), score(0.0), score(1.0)]), score(0.5));
        let judged = |score: f32, part: f32, feedback: &str| -> Outcome {
            let parts = vec![("exact".to_string(), part)];
            Ok(Judgment { score, parts, feedback: Some(feedback.into()) }.into())
        };
        let both = mean(&[judged(1.0, 0.5, "a"), judged(0.0, 1.0, "b")]);
        assert_eq!(both, judged(0.5, 0.75, "a"));
        assert_eq!(mean(&[score(1.0), Ok(RewardOutcome::Abstain)]), Ok(RewardOutcome::Abstain));
        let failed: Outcome = Err("down".into());
        assert_eq!(mean(&[score(1.0), failed.clone()]), failed);
    }
}
