//! Scores on held-out prompts.

use serde::{Deserialize, Serialize};

use crate::reward::{Reward, Scores, score_groups};
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
    /// What the samples of a prompt come to together, where each prompt has several.
    pub vote: Option<Vote>,
    /// The same for 1, 2, 4, ... of the samples, and for all of them; empty for one sample a prompt.
    pub at: Vec<AtK>,
    /// Evaluations on the sets of `data.suites`, by name; empty where they were not asked for.
    pub suites: Vec<(String, Evaluation)>,
    /// First completions of the first prompts.
    pub examples: Vec<SampleLine>,
}

/// What the samples of a prompt come to together. Both are means over the prompts of which a sample
/// was scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vote {
    /// Samples of each prompt.
    pub samples: usize,
    /// Score of the answer that most samples give, of several such the first. Which answers are the
    /// same, the verifier says: numbers by value, texts without case and spacing.
    pub majority: f64,
    /// Score of the best sample: the share of prompts with a right one, where the verifier gives 0
    /// or 1.
    pub best: f64,
}

/// What k samples of a prompt come to: means over the prompts all of whose samples were scored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtK {
    /// k.
    pub k: usize,
    /// Expected score of the best of k: pass@k, where the verifier gives 0 or 1. Without bias: over all choices of k
    /// of the n samples (Chen et al. 2021, arXiv:2107.03374, eq. 1).
    pub pass: f64,
    /// Score of the answer that most of the first k samples give, as [`Vote::majority`].
    pub vote: f64,
}

impl AtK {
    /// None for one sample a prompt, and where of no prompt all were scored.
    fn all(verifier: &dyn Reward, sampled: &Sampled, scores: &Scores) -> Vec<AtK> {
        let (inputs, mut first) = (sampled.inputs(), 0);
        let mut prompts = Vec::new();
        for size in sampled.groups() {
            let span = first..first + size;
            first += size;
            let rewards = &scores.rewards[span.clone()];
            if size > 1 && rewards.iter().all(|r| !r.is_nan()) {
                prompts.push((verifier.same_answers(&inputs[span]), rewards));
            }
        }
        let Some(samples) = prompts.iter().map(|(answers, _)| answers.len()).min() else {
            return Vec::new();
        };
        let powers = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k < samples);
        let n = prompts.len() as f64;
        let at = |k: usize| AtK {
            k,
            pass: prompts.iter().map(|(_, rewards)| best_of(k, rewards)).sum::<f64>() / n,
            vote: prompts
                .iter()
                .map(|(answers, rewards)| rewards[majority(&answers[..k])[0]] as f64)
                .sum::<f64>()
                / n,
        };
        powers.chain([samples]).map(at).collect()
    }
}

impl AtK {
    /// All of them in words.
    pub fn line(all: &[AtK]) -> String {
        let one = |AtK { k, pass, vote }: &AtK| format!("pass@{k} {pass:.4}, vote@{k} {vote:.4}");
        all.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}

/// The mean over all choices of k of the scores of the largest among them. In falling order the score with i before it
/// is the largest of C(n − 1 − i, k − 1) choices out of C(n, k).
fn best_of(k: usize, scores: &[f32]) -> f64 {
    let mut falling: Vec<f64> = scores.iter().map(|&score| score as f64).collect();
    falling.sort_by(|a, b| b.total_cmp(a));
    let n = falling.len();
    let (mut share, mut mean) = (k as f64 / n as f64, 0.0);
    for (i, score) in falling.iter().enumerate().take(n + 1 - k) {
        mean += share * score;
        share *= (n - i - k) as f64 / (n - 1 - i).max(1) as f64;
    }
    mean
}

impl Vote {
    /// None for one sample a prompt, and where nothing was scored.
    fn of(verifier: &dyn Reward, sampled: &Sampled, scores: &Scores) -> Option<Vote> {
        let samples = sampled.rollouts.iter().map(Vec::len).max().filter(|&n| n > 1)?;
        let (inputs, mut first) = (sampled.inputs(), 0);
        let mut prompts = Vec::new();
        for size in sampled.groups() {
            let (inputs, rewards) =
                (&inputs[first..first + size], &scores.rewards[first..first + size]);
            first += size;
            let best = rewards.iter().copied().filter(|r| !r.is_nan()).reduce(f32::max);
            // An answer whose samples all failed has votes and no score.
            let elected = majority(&verifier.same_answers(inputs));
            let scored = |i: &usize| !rewards[*i].is_nan();
            let majority = elected.into_iter().find(scored).map(|i| rewards[i]);
            prompts.extend(majority.zip(best));
        }
        let n = prompts.len() as f64;
        (n > 0.0).then(|| Vote {
            samples,
            majority: prompts.iter().map(|(majority, _)| *majority as f64).sum::<f64>() / n,
            best: prompts.iter().map(|(_, best)| *best as f64).sum::<f64>() / n,
        })
    }
}

/// The samples that give the answer with the most votes; all of them if none gives an answer.
fn majority(answers: &[Option<usize>]) -> Vec<usize> {
    let votes = |answer: usize| answers.iter().filter(|a| **a == Some(answer)).count();
    // Of answers with equally many votes the first.
    let elected = answers
        .iter()
        .flatten()
        .copied()
        .reduce(|best, next| if votes(next) > votes(best) { next } else { best });
    (0..answers.len()).filter(|&i| answers[i] == elected || elected.is_none()).collect()
}

/// Completions kept as examples.
const EXAMPLES: usize = 3;

impl Evaluation {
    /// Scores the completions of every prompt. Those without an opinion, and those on which the reward
    /// failed, are not in the mean.
    pub(crate) fn of(verifier: &dyn Reward, sampled: &Sampled) -> Result<Evaluation> {
        let judged = sampled.judged(verifier);
        let scores = score_groups(&judged, &sampled.inputs(), &sampled.groups())?;
        let vote = Vote::of(verifier, sampled, &scores);
        let at = AtK::all(verifier, sampled, &scores);
        let known: Vec<f64> =
            scores.rewards.iter().filter(|s| !s.is_nan()).map(|&s| s as f64).collect();
        let n = known.len() as f64;
        let accuracy = (!known.is_empty()).then(|| known.iter().sum::<f64>() / n);
        let squares = known.iter().map(|s| (s - accuracy.unwrap_or(0.0)).powi(2)).sum::<f64>();
        let per_prompt = sampled.rollouts.first().map_or(1, Vec::len).max(1);
        let examples = sampled.lines(scores.outcomes(), Some(verifier));
        let examples = examples.into_iter().step_by(per_prompt);
        Ok(Evaluation {
            accuracy,
            error: (squares / n.max(1.0)).sqrt() / n.max(1.0).sqrt(),
            completions: known.len(),
            abstained: scores.abstained,
            failed: scores.failed,
            failure: scores.failures.into_iter().next().map(|(_, reason)| reason),
            at,
            suites: Vec::new(),
            vote,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::reward::spec::parse;
    use crate::train::rollout::Rollout;
    use crate::train::task::Prompt;

    /// Completions of prompts whose right answer is 4, all finished.
    fn sampled(prompts: &[&[&str]]) -> Sampled {
        let fields = Arc::new(json!({"answer": 4}).as_object().unwrap().clone());
        let prompt = || Prompt { fields: fields.clone(), ..Prompt::plain("2+2") };
        let rollout = || Rollout { finished: true, ..Rollout::default() };
        Sampled {
            prompts: prompts.iter().map(|_| prompt()).collect(),
            prompt_ids: vec![Vec::new(); prompts.len()],
            rollouts: prompts.iter().map(|p| p.iter().map(|_| rollout()).collect()).collect(),
            texts: prompts.concat().iter().map(|text| text.to_string()).collect(),
            ..Sampled::default()
        }
    }

    fn evaluate(reward: &str, prompts: &[&[&str]]) -> Evaluation {
        Evaluation::of(&*parse(reward).unwrap(), &sampled(prompts)).unwrap()
    }

    #[test]
    fn votes_are_counted_by_what_the_verifier_reads() {
        let prompts: &[&[&str]] = &[
            &["it is 4", "8/2", "5"], // two spellings of 4 outvote 5
            &["5", "4", "5"],         // one right of three
            &["none", "4", "what"],   // one vote wins against no answer
            &["none", "what", "no"],
        ];
        let numeric = evaluate("numeric", prompts);
        assert_eq!(numeric.vote, Some(Vote { samples: 3, majority: 0.5, best: 0.75 }));
        assert!((numeric.accuracy.unwrap() - 4.0 / 12.0).abs() < 1e-9);
        // As texts "it is 4" and "8/2" are two answers, and all three have one vote: the first wins.
        let exact = evaluate("exact", &prompts[..2]);
        assert_eq!(exact.vote, Some(Vote { samples: 3, majority: 0.0, best: 0.5 }));
    }

    /// 1 − C(n − c, k)/C(n, k) for c right ones of n, and by hand where scores are between.
    #[test]
    fn pass_at_k_has_no_bias() {
        let choose =
            |n: u64, k: u64| (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product::<f64>();
        for (n, c) in [(8, 0), (8, 1), (8, 3), (5, 5), (2, 1)] {
            let scores: Vec<f32> = (0..n).map(|i| (i < c) as u8 as f32).collect();
            for k in 1..=n {
                let missed = if n - c < k { 0.0 } else { choose(n - c, k) / choose(n, k) };
                let got = best_of(k as usize, &scores);
                assert!((got - (1.0 - missed)).abs() < 1e-12, "{n} {c} {k}: {got}");
            }
        }
        // Pairs of 3, 1, 2: 3, 3, 2.
        assert!((best_of(2, &[3.0, 1.0, 2.0]) - 8.0 / 3.0).abs() < 1e-12);
        let prompts: &[&[&str]] = &[&["5", "4", "4", "4"], &["5", "5", "4", "4"]];
        let at = evaluate("numeric", prompts).at;
        let found: Vec<(usize, f64, f64)> = at.iter().map(|at| (at.k, at.pass, at.vote)).collect();
        // The first sample is wrong in both; of all four the first prompt's majority is right.
        let pairs = (1.0 + (1.0 - 1.0 / 6.0)) / 2.0;
        assert_eq!(
            found.iter().map(|f| (f.0, f.2)).collect::<Vec<_>>(),
            [(1, 0.0), (2, 0.0), (4, 0.5)]
        );
        for (got, want) in found.iter().map(|f| f.1).zip([(0.75 + 0.5) / 2.0, pairs, 1.0]) {
            assert!((got - want).abs() < 1e-12, "{found:?}");
        }
        assert_eq!(evaluate("numeric", &[&["4"]]).at, []);
    }

    #[test]
    fn one_sample_is_no_vote_and_failures_do_not_count() {
        assert_eq!(evaluate("numeric", &[&["4"], &["5"]]).vote, None);
        let picky = |input: &crate::reward::RewardInput<'_>| match input.completion {
            "fail" => Err("down".to_string()),
            text => Ok(crate::reward::RewardOutcome::Score(text.len() as f32)),
        };
        let all = sampled(&[&["fail", "fail", "ab"], &["a", "a", "abc"]]);
        let evaluation = Evaluation::of(&picky, &all).unwrap();
        // The first prompt's majority has no score, so that it is left out of both means.
        assert_eq!(evaluation.vote, Some(Vote { samples: 3, majority: 1.0, best: 3.0 }));
    }
}
