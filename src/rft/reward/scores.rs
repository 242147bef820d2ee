//! The scores of a batch.

use crate::io::interrupt;
use crate::reward::{Judgment, Outcome, Reward, RewardInput, RewardOutcome, finite};
use gradus::error::{Error, Result};

/// Largest share of failing calls in one batch that a run survives.
pub(crate) const FAILURE_LIMIT: f64 = 0.5;

/// Scores of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// One per input; NaN where the reward abstained or failed.
    pub rewards: Vec<f32>,
    /// The parts of each score; none where the reward names none, abstained or failed.
    pub parts: Vec<Vec<(String, f32)>>,
    /// The parts whose weights move over the phase, with their weights in this step.
    pub weights: Vec<(String, f64)>,
    /// What was said about each completion, if anything.
    pub feedback: Vec<Option<String>>,
    /// Calls that abstained.
    pub abstained: usize,
    /// Calls that failed or returned a value that is not finite.
    pub failed: usize,
    /// Which calls these are, and why they failed.
    pub failures: Vec<(usize, String)>,
}

/// Asks `reward` about `inputs`, which are samples of one prompt or of prompts that it does not
/// compare.
///
/// # Errors
/// `Reward` if more than half of the calls failed, or if the number of outcomes is not the number
/// of inputs; `Interrupted` if a signal asked for a stop meanwhile, whatever the outcomes are.
pub fn score(reward: &dyn Reward, inputs: &[RewardInput<'_>]) -> Result<Scores> {
    collect(reward.score(inputs), inputs)
}

/// Asks `reward` about `inputs`, the samples of one prompt after another; `groups` says how many
/// each prompt has.
///
/// # Errors
/// `Reward` if more than half of the calls failed, if the number of outcomes is not the number of
/// inputs, or if the groups are of other samples; `Interrupted` if a signal asked for a stop
/// meanwhile, whatever the outcomes are.
pub fn score_groups(
    reward: &dyn Reward,
    inputs: &[RewardInput<'_>],
    groups: &[usize],
) -> Result<Scores> {
    check_groups(inputs, groups)?;
    collect(reward.score_groups(inputs, groups), inputs)
}

/// As [`score_groups`] in a step of a phase, of which `progress` is done: 0 in its first step, 1 in its last.
///
/// # Errors
/// As [`score_groups`].
pub fn score_at(
    reward: &dyn Reward,
    inputs: &[RewardInput<'_>],
    groups: &[usize],
    progress: f64,
) -> Result<Scores> {
    check_groups(inputs, groups)?;
    let scores = collect(reward.score_at(inputs, groups, progress), inputs)?;
    Ok(Scores { weights: reward.weights_at(progress), ..scores })
}

fn check_groups(inputs: &[RewardInput<'_>], groups: &[usize]) -> Result<()> {
    let grouped: usize = groups.iter().sum();
    if grouped != inputs.len() {
        let reason = format!("groups of {grouped} samples for {} completions", inputs.len());
        return Err(Error::Reward { reason });
    }
    Ok(())
}

fn collect(outcomes: Vec<Outcome>, inputs: &[RewardInput<'_>]) -> Result<Scores> {
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
        let about = self.parts.iter().zip(&self.feedback);
        let known = |(&score, (parts, feedback)): (&f32, (&Vec<_>, &Option<_>))| {
            let judgment = Judgment { score, parts: parts.clone(), feedback: feedback.clone() };
            Ok(if score.is_nan() { RewardOutcome::Abstain } else { judgment.into() })
        };
        let mut outcomes: Vec<Outcome> = self.rewards.iter().zip(about).map(known).collect();
        for (i, reason) in &self.failures {
            outcomes[*i] = Err(reason.clone());
        }
        outcomes
    }

    /// The mean of each part over the samples that have it, in the order in which they are met.
    pub fn part_means(&self) -> Vec<(String, f64)> {
        let mut sums: Vec<(&String, f64, f64)> = Vec::new();
        for (name, value) in self.parts.iter().flatten() {
            match sums.iter_mut().find(|(known, ..)| *known == name) {
                Some((_, sum, count)) => (*sum, *count) = (*sum + *value as f64, *count + 1.0),
                None => sums.push((name, *value as f64, 1.0)),
            }
        }
        sums.into_iter().map(|(name, sum, count)| (name.clone(), sum / count)).collect()
    }

    /// Appends the scores of calls that were made later.
    pub(crate) fn append(&mut self, later: Scores) {
        let first = self.rewards.len();
        self.rewards.extend(later.rewards);
        self.parts.extend(later.parts);
        self.weights = later.weights;
        self.feedback.extend(later.feedback);
        self.abstained += later.abstained;
        self.failed += later.failed;
        self.failures.extend(later.failures.into_iter().map(|(i, reason)| (first + i, reason)));
    }

    fn push(&mut self, outcome: Outcome) {
        let Judgment { score, parts, feedback } = match outcome.map(RewardOutcome::judgment) {
            Ok(Some(judgment)) => judgment,
            Ok(None) => {
                self.abstained += 1;
                Judgment { score: f32::NAN, ..Judgment::default() }
            }
            Err(reason) => {
                self.failed += 1;
                self.failures.push((self.rewards.len(), reason));
                Judgment { score: f32::NAN, ..Judgment::default() }
            }
        };
        self.rewards.push(score);
        self.parts.push(parts);
        self.feedback.push(feedback);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::no_fields;

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
    fn parts_and_feedback_are_kept_and_parts_are_averaged() {
        let reward = |input: &RewardInput<'_>| {
            let n = input.completion.len() as f32;
            let mut parts = vec![("length".to_string(), n)];
            parts.extend(input.finished.then(|| ("odd".to_string(), n % 2.0)));
            match input.completion {
                "skip" => Ok(RewardOutcome::Abstain),
                "nan" => Ok(Judgment { parts: vec![("x".into(), f32::NAN)], ..of(1.0) }.into()),
                "plain" => Ok(RewardOutcome::Score(5.0)),
                text => Ok(Judgment { parts, feedback: Some(format!("{text}!")), ..of(n) }.into()),
            }
        };
        let inputs = inputs(&["a", "skip", "abcd", "plain", "nan"]);
        let scores = score(&reward, &inputs).unwrap();
        assert_eq!(scores.rewards[..1], [1.0]);
        assert_eq!(scores.part_means(), [("length".to_string(), 2.5), ("odd".to_string(), 0.5)]);
        let feedback = [Some("a!".to_string()), None, Some("abcd!".into()), None, None];
        assert_eq!(scores.feedback, feedback);
        assert!(scores.failures[0].1.contains("part `x` is NaN"), "{:?}", scores.failures);
        let outcomes = scores.outcomes();
        assert_eq!(outcomes[2], reward(&inputs[2]));
        assert_eq!(outcomes[3], Ok(RewardOutcome::Score(5.0)));
    }

    fn of(score: f32) -> Judgment {
        Judgment { score, ..Judgment::default() }
    }

    /// Scores a sample by how many others its group has.
    struct Company;

    impl Reward for Company {
        fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
            self.score_groups(inputs, &[inputs.len()])
        }

        fn score_groups(&self, _: &[RewardInput<'_>], groups: &[usize]) -> Vec<Outcome> {
            let each =
                |&n: &usize| std::iter::repeat_n(Ok(RewardOutcome::Score(n as f32 - 1.0)), n);
            groups.iter().flat_map(each).collect()
        }
    }

    #[test]
    fn groups_reach_the_reward_also_through_a_pointer() {
        let (shared, all) = (std::sync::Arc::new(Company), inputs(&["a", "b", "c"]));
        assert_eq!(score_groups(&shared, &all, &[2, 1]).unwrap().rewards, [1.0, 1.0, 0.0]);
        assert_eq!(score(&Company, &all).unwrap().rewards, [2.0; 3]);
    }

    #[test]
    fn groups_that_are_not_the_inputs_are_refused() {
        let error = score_groups(&Company, &inputs(&["a", "b"]), &[1]).unwrap_err().to_string();
        assert!(error.contains("groups of 1 samples for 2 completions"), "{error}");
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
