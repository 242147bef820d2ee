//! Several rewards as one.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::weight::Weight;
use super::{Judgment, Outcome, Reward, RewardInput, RewardOutcome, finite};

/// How the parts of a reward make its score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Combine {
    /// Their weighted sum.
    #[default]
    Sum,
    /// Their weighted harmonic mean, Σw / Σ(w/x), which is low as soon as one of them is: 0 if one
    /// is 0 or below. Weights are above 0.
    Harmonic,
    /// The least weighted part, so that a broken shape outweighs a right answer.
    Min,
}

/// Bounds that a value is put back into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// The least value.
    pub low: f64,
    /// The largest value; not below the least.
    pub high: f64,
}

impl Clamp {
    fn apply(clamp: Option<Clamp>, value: f64) -> f64 {
        clamp.map_or(value, |Clamp { low, high }| value.max(low).min(high))
    }
}

/// A part: a reward with its weight.
pub(super) struct Term {
    /// What its values are called; no two parts of a reward have one name.
    pub name: String,
    pub weight: Weight,
    pub reward: Arc<dyn Reward>,
}

/// Parts that make one score. A sample on which a part abstains or fails is one on which the whole
/// does.
pub(super) struct Combined {
    pub terms: Vec<Term>,
    pub combine: Combine,
    /// Bounds of each part, before its weight.
    pub clamp_parts: Option<Clamp>,
    /// Bounds of the score.
    pub clamp: Option<Clamp>,
}

impl Combined {
    /// The score of parts, which are in the order of the terms, when `progress` of a phase is done.
    fn value(&self, values: &[f64], progress: f64) -> f64 {
        let weights = self.terms.iter().map(|term| term.weight.at(progress));
        let weighted = || values.iter().zip(weights.clone()).map(|(x, w)| w * x);
        let score = match self.combine {
            Combine::Sum => weighted().fold(0.0, |sum, x| sum + x),
            Combine::Min => weighted().fold(f64::INFINITY, f64::min),
            Combine::Harmonic if values.iter().any(|&x| x <= 0.0) => 0.0,
            Combine::Harmonic => {
                weights.clone().sum::<f64>()
                    / values.iter().zip(weights.clone()).map(|(x, w)| w / x).sum::<f64>()
            }
        };
        Clamp::apply(self.clamp, score)
    }

    /// The bounds of the score before its own.
    fn unclamped(&self) -> Option<(f64, f64)> {
        let bounds = |term: &Term| {
            let own = term.reward.bounds();
            let own = match self.clamp_parts {
                None => own?,
                Some(Clamp { low, high }) => {
                    own.map_or((low, high), |(a, b)| (a.max(low).min(high), b.max(low).min(high)))
                }
            };
            let weights = [term.weight.at(0.0), term.weight.at(1.0)];
            let all = weights.iter().flat_map(|w| [w * own.0, w * own.1]);
            let weighted =
                (all.clone().fold(f64::INFINITY, f64::min), all.fold(f64::NEG_INFINITY, f64::max));
            Some((own, weighted))
        };
        let all: Vec<_> = self.terms.iter().map(bounds).collect::<Option<_>>()?;
        let weighted = all.iter().map(|(_, weighted)| *weighted);
        Some(match self.combine {
            Combine::Sum => weighted.fold((0.0, 0.0), |sum, x| (sum.0 + x.0, sum.1 + x.1)),
            Combine::Min => weighted.fold((f64::INFINITY, f64::INFINITY), |least, x| {
                (least.0.min(x.0), least.1.min(x.1))
            }),
            // A mean of parts above 0, or 0.
            Combine::Harmonic => (0.0, all.iter().map(|(own, _)| own.1).fold(0.0, f64::max)),
        })
    }

    /// What the parts' outcomes about one sample make.
    fn outcome(&self, outcomes: Vec<Outcome>, progress: f64) -> Outcome {
        let (mut values, mut parts, mut said) = (Vec::new(), Vec::new(), Vec::new());
        let mut abstains = false;
        // Failing goes before abstaining, so that no failure is hidden.
        for (term, outcome) in self.terms.iter().zip(outcomes) {
            let outcome = outcome.map_err(|reason| format!("{}: {reason}", term.name))?;
            let Some(Judgment { score, parts: inner, feedback }) = outcome.judgment() else {
                abstains = true;
                continue;
            };
            let value = Clamp::apply(self.clamp_parts, score as f64);
            values.push(value);
            parts.push((term.name.clone(), value as f32));
            parts.extend(inner.into_iter().map(|(name, x)| (format!("{}/{name}", term.name), x)));
            said.extend(feedback);
        }
        if abstains {
            return Ok(RewardOutcome::Abstain);
        }
        let feedback = (!said.is_empty()).then(|| said.join("\n"));
        let score = self.value(&values, progress) as f32;
        Ok(Judgment { score, parts, feedback }.into())
    }

    /// The samples' outcomes of each term.
    fn each(
        &self,
        inputs: &[RewardInput<'_>],
        progress: f64,
        ask: impl Fn(&Term) -> Vec<Outcome>,
    ) -> Vec<Outcome> {
        let mut of_samples: Vec<Vec<Outcome>> = vec![Vec::new(); inputs.len()];
        for term in &self.terms {
            let outcomes = ask(term);
            if outcomes.len() != inputs.len() {
                let reason = format!("{} outcomes for {} inputs", outcomes.len(), inputs.len());
                return inputs.iter().map(|_| Err(format!("{}: {reason}", term.name))).collect();
            }
            for ((of_sample, outcome), input) in of_samples.iter_mut().zip(outcomes).zip(inputs) {
                of_sample.push(finite(outcome, input));
            }
        }
        of_samples.into_iter().map(|outcomes| self.outcome(outcomes, progress)).collect()
    }
}

impl Reward for Combined {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        self.each(inputs, 1.0, |term| term.reward.score(inputs))
    }

    fn score_groups(&self, inputs: &[RewardInput<'_>], groups: &[usize]) -> Vec<Outcome> {
        self.score_at(inputs, groups, 1.0)
    }

    fn score_at(
        &self,
        inputs: &[RewardInput<'_>],
        groups: &[usize],
        progress: f64,
    ) -> Vec<Outcome> {
        self.each(inputs, progress, |term| term.reward.score_groups(inputs, groups))
    }

    fn weights_at(&self, progress: f64) -> Vec<(String, f64)> {
        let moving = self.terms.iter().filter(|term| term.weight.moves());
        moving.map(|term| (term.name.clone(), term.weight.at(progress))).collect()
    }

    /// From the bounds of the parts, with any weight that they have.
    fn bounds(&self) -> Option<(f64, f64)> {
        let whole = self.unclamped();
        let Some(Clamp { low, high }) = self.clamp else { return whole };
        Some(whole.map_or((low, high), |(a, b)| (a.max(low).min(high), b.max(low).min(high))))
    }

    /// Answers are those of the first part.
    fn same_answers(&self, inputs: &[RewardInput<'_>]) -> Vec<Option<usize>> {
        match self.terms.first() {
            Some(term) => term.reward.same_answers(inputs),
            None => vec![None; inputs.len()],
        }
    }

    fn check_row(&self, fields: &Map<String, Value>) -> std::result::Result<(), String> {
        let named = |term: &Term| {
            term.reward.check_row(fields).map_err(|reason| format!("{}: {reason}", term.name))
        };
        self.terms.iter().try_for_each(named)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reward::no_fields;

    /// Scores every sample with this.
    fn fixed(outcome: Outcome) -> Arc<dyn Reward> {
        Arc::new(move |_: &RewardInput<'_>| outcome.clone())
    }

    fn combined(combine: Combine, terms: &[(f32, f32)]) -> Combined {
        let term = |(i, &(weight, score)): (usize, &(f32, f32))| Term {
            name: format!("p{i}"),
            weight: Weight::fixed(weight),
            reward: fixed(Ok(RewardOutcome::Score(score))),
        };
        let terms = terms.iter().enumerate().map(term).collect();
        Combined { terms, combine, clamp_parts: None, clamp: None }
    }

    fn ask(reward: &Combined) -> Outcome {
        let fields = no_fields();
        let input = RewardInput { prompt: "", completion: "", finished: true, fields };
        reward.score(&[input]).remove(0)
    }

    fn score(reward: &Combined) -> f32 {
        ask(reward).unwrap().score().unwrap()
    }

    #[test]
    fn sums_harmonic_means_and_least_parts() {
        for (combine, terms, expected) in [
            (Combine::Sum, &[(1.0, 1.0), (0.5, 0.5)][..], 1.25),
            (Combine::Harmonic, &[(1.0, 1.0), (1.0, 0.5)], 2.0 / 3.0),
            (Combine::Harmonic, &[(3.0, 1.0), (1.0, 0.5)], 0.8),
            (Combine::Harmonic, &[(1.0, 1.0), (1.0, 0.0)], 0.0),
            (Combine::Harmonic, &[(1.0, 1.0), (1.0, -0.5)], 0.0),
            (Combine::Min, &[(1.0, 1.0), (1.0, -1.0)], -1.0),
            (Combine::Min, &[(1.0, 0.0), (2.0, 1.0)], 0.0),
        ] {
            let got = score(&combined(combine, terms));
            assert!((got - expected).abs() < 1e-6, "{combine:?} {terms:?}: {got}");
        }
    }

    #[test]
    fn parts_are_bounded_before_their_weights_and_the_score_at_the_end() {
        let mut reward = combined(Combine::Sum, &[(2.0, 7.0), (1.0, -9.0)]);
        reward.clamp_parts = Some(Clamp { low: -1.0, high: 1.0 });
        assert_eq!(score(&reward), 1.0);
        reward.clamp = Some(Clamp { low: -0.5, high: 0.5 });
        let judgment = ask(&reward).unwrap().judgment().unwrap();
        assert_eq!(judgment.score, 0.5);
        assert_eq!(judgment.parts, [("p0".to_string(), 1.0), ("p1".to_string(), -1.0)]);
    }

    /// Evaluations, which have no steps, take the last weights.
    #[test]
    fn weights_move_over_a_phase() {
        let mut reward = combined(Combine::Sum, &[(1.0, 1.0), (1.0, 10.0)]);
        reward.terms[1].weight = Weight { first: 0.0, last: 0.5 };
        let input = RewardInput { prompt: "", completion: "", finished: true, fields: no_fields() };
        let at = |progress| {
            reward.score_at(&[input], &[1], progress).remove(0).unwrap().score().unwrap()
        };
        assert_eq!([at(0.0), at(0.5), at(1.0)], [1.0, 3.5, 6.0]);
        assert_eq!([score(&reward), reward.score_groups(&[input], &[1]).len() as f32], [6.0, 1.0]);
        assert_eq!(reward.weights_at(0.5), [("p1".to_string(), 0.25)]);
    }

    #[test]
    fn bounds_are_those_of_the_parts() {
        let part = |low: f32, high: f32| -> Arc<dyn Reward> {
            let scores = [low, high, 0.5 * (low + high)];
            Arc::new(crate::reward::verify::Placed { scores, ..Default::default() })
        };
        let bounds = |combine, terms: &[(Weight, f32, f32)], parts, whole| {
            let term = |(i, &(weight, low, high)): (usize, &(Weight, f32, f32))| Term {
                name: format!("p{i}"),
                weight,
                reward: part(low, high),
            };
            let terms = terms.iter().enumerate().map(term).collect();
            Combined { terms, combine, clamp_parts: parts, clamp: whole }.bounds()
        };
        let one = Weight::fixed(1.0);
        let unit = Some(Clamp { low: 0.0, high: 1.0 });
        let two = [(one, 0.0, 1.0), (Weight::fixed(-2.0), -1.0, 3.0)];
        assert_eq!(bounds(Combine::Sum, &two, None, None), Some((-6.0, 3.0)));
        assert_eq!(bounds(Combine::Sum, &two, unit, None), Some((-2.0, 1.0)));
        assert_eq!(bounds(Combine::Sum, &two, None, unit), Some((0.0, 1.0)));
        assert_eq!(bounds(Combine::Min, &two, None, None), Some((-6.0, 1.0)));
        let moving = [(Weight { first: 0.5, last: 2.0 }, 0.0, 1.0)];
        assert_eq!(bounds(Combine::Sum, &moving, None, None), Some((0.0, 2.0)));
        let mean = [(one, 0.0, 0.5), (one, 0.0, 2.0)];
        assert_eq!(bounds(Combine::Harmonic, &mean, None, None), Some((0.0, 2.0)));
        let mut unknown = combined(Combine::Sum, &[(1.0, 1.0)]);
        assert_eq!(unknown.bounds(), None, "a closure says nothing of its scores");
        unknown.clamp = unit;
        assert_eq!(unknown.bounds(), Some((0.0, 1.0)));
    }

    #[test]
    fn feedback_and_inner_parts_are_passed_on_and_failures_named() {
        let inner = Judgment {
            score: 1.0,
            parts: vec![("iou".into(), 0.5)],
            feedback: Some("near".into()),
        };
        let mut reward = combined(Combine::Sum, &[(1.0, 1.0), (1.0, 2.0)]);
        reward.terms[1].reward = fixed(Ok(inner.into()));
        let judgment = ask(&reward).unwrap().judgment().unwrap();
        let names: Vec<&str> = judgment.parts.iter().map(|part| part.0.as_str()).collect();
        assert_eq!(names, ["p0", "p1", "p1/iou"]);
        assert_eq!(judgment.feedback.as_deref(), Some("near"));
        reward.terms[0].reward = fixed(Ok(RewardOutcome::Abstain));
        assert_eq!(ask(&reward), Ok(RewardOutcome::Abstain));
        reward.terms[1].reward = fixed(Err("down".into()));
        assert_eq!(ask(&reward), Err("p1: down".into()));
        reward.terms[1].reward = fixed(Ok(RewardOutcome::Score(f32::NAN)));
        assert!(ask(&reward).unwrap_err().contains("p1: score NaN"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// The mean lies between the least and the largest part, and does not depend on their order.
        #[test]
        fn harmonic_means_are_means(terms in prop::collection::vec((0.1f32..3.0, 0.01f32..2.0), 1..5)) {
            let mean = score(&combined(Combine::Harmonic, &terms));
            let values = || terms.iter().map(|term| term.1);
            let (least, most) = (values().fold(9.0, f32::min), values().fold(0.0, f32::max));
            prop_assert!(mean >= least - 1e-5 && mean <= most + 1e-5, "{mean} {terms:?}");
            let back: Vec<(f32, f32)> = terms.iter().rev().copied().collect();
            prop_assert!((score(&combined(Combine::Harmonic, &back)) - mean).abs() < 1e-5);
        }
    }
}
