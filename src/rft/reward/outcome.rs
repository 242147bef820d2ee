//! What a reward says about a sample.

use super::{RewardInput, excerpt};

/// What a reward says about one sample.
#[derive(Clone, Debug, PartialEq)]
pub enum RewardOutcome {
    /// A finite score.
    Score(f32),
    /// A finite score with more about it.
    Judged(Judgment),
    /// No opinion: the sample takes no part in its group.
    Abstain,
}

/// A score with what it is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgment {
    /// The score; finite.
    pub score: f32,
    /// Named values that the score is made of, each finite. A run writes their means.
    pub parts: Vec<(String, f32)>,
    /// A text about the completion, such as the error of a program.
    pub feedback: Option<String>,
}

/// One answer of a reward; `Err` holds why the call failed.
pub type Outcome = std::result::Result<RewardOutcome, String>;

impl RewardOutcome {
    /// The score, if there is one.
    pub fn score(&self) -> Option<f32> {
        match self {
            RewardOutcome::Score(score) => Some(*score),
            RewardOutcome::Judged(judgment) => Some(judgment.score),
            RewardOutcome::Abstain => None,
        }
    }

    /// The score with what there is about it, if there is one.
    pub fn judgment(self) -> Option<Judgment> {
        match self {
            RewardOutcome::Score(score) => Some(Judgment { score, ..Judgment::default() }),
            RewardOutcome::Judged(judgment) => Some(judgment),
            RewardOutcome::Abstain => None,
        }
    }
}

/// A judgment of nothing but a score is a [`RewardOutcome::Score`].
impl From<Judgment> for RewardOutcome {
    fn from(judgment: Judgment) -> RewardOutcome {
        match judgment.parts.is_empty() && judgment.feedback.is_none() {
            true => RewardOutcome::Score(judgment.score),
            false => RewardOutcome::Judged(judgment),
        }
    }
}

/// A score or a part that is not finite is a failure.
pub(crate) fn finite(outcome: Outcome, input: &RewardInput<'_>) -> Outcome {
    let about = || format!("for completion `{}`", excerpt(input.completion));
    match &outcome {
        Ok(RewardOutcome::Score(score)) if !score.is_finite() => {
            Err(format!("score {score} {}", about()))
        }
        Ok(RewardOutcome::Judged(Judgment { score, parts, .. })) => {
            let wrong = parts.iter().find(|(_, value)| !value.is_finite());
            match (score.is_finite(), wrong) {
                (false, _) => Err(format!("score {score} {}", about())),
                (true, Some((name, value))) => Err(format!("part `{name}` is {value} {}", about())),
                (true, None) => outcome,
            }
        }
        Ok(RewardOutcome::Score(_) | RewardOutcome::Abstain) | Err(_) => outcome,
    }
}
