//! Completions that differ from each other.

use std::collections::{BTreeSet, HashMap};

use rayon::prelude::*;

use super::jaccard;
use crate::reward::{Outcome, Reward, RewardInput, RewardOutcome};

/// How unlike a completion is to the prompt's others: 1 minus its mean similarity to them, so that the
/// mean over a prompt is 1 minus the mean similarity of its pairs. That is the diversity reward of
/// diversity-rewarded CFG distillation (arXiv:2410.06084), whose similarity is a cosine of embeddings;
/// here it is the Jaccard index of the pieces of some characters in a row.
///
/// The whole completion counts, with its reasoning and without the white space around it. A completion
/// of fewer characters is one piece. A prompt's only sample scores 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diversity {
    /// Characters of a piece, at least 1.
    pub chars: usize,
}

impl Default for Diversity {
    fn default() -> Diversity {
        Diversity { chars: 3 }
    }
}

impl Diversity {
    /// One score for each of a prompt's completions.
    pub fn of_group(&self, completions: &[&str]) -> Vec<f32> {
        let mut numbers = HashMap::new();
        let pieces: Vec<BTreeSet<usize>> =
            completions.iter().map(|text| self.pieces(text.trim(), &mut numbers)).collect();
        let mut similar = vec![0.0; pieces.len()];
        for i in 0..pieces.len() {
            for j in 0..i {
                let both = jaccard(&pieces[i], &pieces[j]);
                similar[i] += both;
                similar[j] += both;
            }
        }
        match pieces.len() {
            0 | 1 => vec![0.0; pieces.len()],
            n => similar.into_iter().map(|sum| (1.0 - sum / (n - 1) as f64) as f32).collect(),
        }
    }

    /// The pieces of a text, each with the number under which it is known.
    fn pieces<'a>(&self, text: &'a str, known: &mut HashMap<&'a str, usize>) -> BTreeSet<usize> {
        let mut starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        starts.push(text.len());
        let size = self.chars.clamp(1, (starts.len() - 1).max(1));
        let ends = starts.get(size..).unwrap_or_default();
        let pieces = starts.iter().zip(ends).map(|(&start, &end)| &text[start..end]);
        let mut number = |piece| {
            let next = known.len();
            *known.entry(piece).or_insert(next)
        };
        pieces.map(&mut number).collect()
    }
}

/// Without groups all inputs are one prompt's.
impl Reward for Diversity {
    fn bounds(&self) -> Option<(f64, f64)> {
        Some((0.0, 1.0))
    }

    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        self.score_groups(inputs, &[inputs.len()])
    }

    fn score_groups(&self, inputs: &[RewardInput<'_>], groups: &[usize]) -> Vec<Outcome> {
        let (mut rest, mut all) = (inputs, Vec::new());
        for &size in groups {
            let (group, behind) = rest.split_at(size.min(rest.len()));
            all.push(group);
            rest = behind;
        }
        let score = |group: &&[RewardInput<'_>]| {
            self.of_group(&group.iter().map(|input| input.completion).collect::<Vec<_>>())
        };
        let scores: Vec<Vec<f32>> = all.par_iter().map(score).collect();
        scores.into_iter().flatten().map(|score| Ok(RewardOutcome::Score(score))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reward::no_fields;

    #[test]
    fn alike_scores_nothing_and_unlike_everything() {
        let diversity = Diversity::default();
        assert_eq!(diversity.of_group(&["abcd", " abcd", "abcd"]), [0.0; 3]);
        assert_eq!(diversity.of_group(&["abcd", "efgh"]), [1.0; 2]);
        // abc, bcd and bcd, cde share one of three pieces.
        assert_eq!(diversity.of_group(&["abcd", "bcde"]), [2.0f32 / 3.0; 2]);
        assert_eq!(diversity.of_group(&["abcd", "abcd", "efgh"]), [0.5, 0.5, 1.0]);
        assert_eq!(diversity.of_group(&["a", "a", "é"]), [0.5, 0.5, 1.0]);
        assert_eq!(diversity.of_group(&["", ""]), [0.0; 2]);
        assert_eq!(diversity.of_group(&["only"]), [0.0]);
        assert_eq!(Diversity { chars: 1 }.of_group(&["ab", "ba"]), [0.0; 2]);
    }

    #[test]
    fn prompts_are_not_compared() {
        let input = |completion| RewardInput {
            prompt: "",
            completion,
            finished: true,
            fields: no_fields(),
        };
        let all = ["abcd", "efgh", "abcd", "abcd"].map(input);
        let scores = |groups: &[usize]| -> Vec<f32> {
            let outcomes = Diversity::default().score_groups(&all, groups);
            outcomes.into_iter().map(|outcome| outcome.unwrap().score().unwrap()).collect()
        };
        assert_eq!(scores(&[2, 2]), [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(scores(&[1, 2, 1]), [0.0, 1.0, 1.0, 0.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn order_does_not_count(texts in prop::collection::vec("[ab]{0,5}", 0..6)) {
            let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let mut forward = Diversity { chars: 2 }.of_group(&texts);
            texts.reverse();
            forward.reverse();
            let back = Diversity { chars: 2 }.of_group(&texts);
            for (a, b) in forward.iter().zip(&back) {
                prop_assert!((a - b).abs() < 1e-6 && (-1e-6..=1.0 + 1e-6).contains(a));
            }
        }
    }
}
