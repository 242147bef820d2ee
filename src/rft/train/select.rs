//! Which completions of a batch are learned from and stored: pure functions of rewards, advantages
//! and groups.
//!
//! Ties go to the completion that comes first. A completion without a reward is never kept by a rule.

use std::collections::HashSet;

use crate::train::update::record::Record;

/// What of a batch is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// Everything.
    All,
    /// The completion of the highest reward of each prompt.
    Best,
    /// This share of all completions, those of the highest rewards; at least one.
    Top(f64),
    /// Completions with at least this reward.
    Threshold(f64),
    /// Completions with an advantage above 0.
    Positive,
}

/// The rules of a step, in the order in which they are applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// At most so many prompts, those whose rewards differ before the others; `None` keeps every
    /// prompt.
    pub prompts: Option<usize>,
    /// A completion that repeats an earlier one of its prompt is left out.
    pub distinct: bool,
    /// What is kept of the rest.
    pub keep: Keep,
}

/// What the rules look at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<'a> {
    /// Number of the prompt's group; the completions of a group stand side by side.
    pub group: u32,
    /// NaN where there is none.
    pub reward: f32,
    /// What the reward is worth beside the others.
    pub advantage: f32,
    /// Tokens, with those of the prompt.
    pub ids: &'a [i32],
}

impl<'a> Candidate<'a> {
    /// The candidates that `records` are, with their advantages.
    pub fn all(records: &'a [Record], advantages: &[f32]) -> Vec<Candidate<'a>> {
        let each = |(record, &advantage): (&'a Record, &f32)| {
            let Record { group, reward, ids, .. } = record;
            Candidate { group: *group, reward: *reward, advantage, ids }
        };
        records.iter().zip(advantages).map(each).collect()
    }
}

impl Selection {
    /// Whether everything is kept, completions without a reward among it.
    pub fn is_all(&self) -> bool {
        self.prompts.is_none() && !self.distinct && self.keep == Keep::All
    }

    /// A flag for each candidate.
    pub fn flags(&self, candidates: &[Candidate<'_>]) -> Vec<bool> {
        if self.is_all() {
            return vec![true; candidates.len()];
        }
        let mut flags: Vec<bool> = candidates.iter().map(|c| !c.reward.is_nan()).collect();
        if let Some(most) = self.prompts {
            prompts_that_differ(candidates, most, &mut flags);
        }
        if self.distinct {
            let mut seen = HashSet::new();
            for (flag, c) in flags.iter_mut().zip(candidates) {
                *flag &= !c.reward.is_nan() && seen.insert((c.group, c.ids));
            }
        }
        match self.keep {
            Keep::All => {}
            Keep::Best => best(candidates, &mut flags),
            Keep::Top(share) => top(candidates, share, &mut flags),
            Keep::Threshold(least) => only(&mut flags, |i| candidates[i].reward as f64 >= least),
            Keep::Positive => only(&mut flags, |i| candidates[i].advantage > 0.0),
        }
        flags
    }
}

/// Clears the flags of which `fits` says no.
fn only(flags: &mut [bool], fits: impl Fn(usize) -> bool) {
    flags.iter_mut().enumerate().for_each(|(i, flag)| *flag &= fits(i));
}

/// The groups of the candidates, in order.
fn groups(candidates: &[Candidate<'_>]) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let mut first = 0;
    for part in candidates.chunk_by(|a, b| a.group == b.group) {
        groups.push(first..first + part.len());
        first += part.len();
    }
    groups
}

/// Whether the rewards that there are differ.
fn differ(group: &[Candidate<'_>]) -> bool {
    let mut known = group.iter().map(|c| c.reward).filter(|reward| !reward.is_nan());
    known.next().is_some_and(|first| known.any(|reward| reward != first))
}

/// How many groups have rewards that differ.
pub(crate) fn spread(candidates: &[Candidate<'_>]) -> usize {
    groups(candidates).into_iter().filter(|group| differ(&candidates[group.clone()])).count()
}

/// Keeps the first `most` groups whose rewards differ. If there is none at all, the first `most`
/// groups stay: a batch that teaches nothing is still one.
fn prompts_that_differ(candidates: &[Candidate<'_>], most: usize, flags: &mut [bool]) {
    let none = spread(candidates) == 0;
    let mut left = most;
    for group in groups(candidates) {
        let stays = left > 0 && (none || differ(&candidates[group.clone()]));
        left -= stays as usize;
        flags[group].iter_mut().for_each(|flag| *flag &= stays);
    }
}

fn best(candidates: &[Candidate<'_>], flags: &mut [bool]) {
    for group in groups(candidates) {
        let mut best: Option<usize> = None;
        for i in group.clone().filter(|&i| flags[i]) {
            if best.is_none_or(|b| candidates[i].reward > candidates[b].reward) {
                best = Some(i);
            }
        }
        group.for_each(|i| flags[i] = best == Some(i));
    }
}

fn top(candidates: &[Candidate<'_>], share: f64, flags: &mut [bool]) {
    let mut order: Vec<usize> = (0..flags.len()).filter(|&i| flags[i]).collect();
    // The sort is stable, so that ties keep their order.
    order.sort_by(|&a, &b| candidates[b].reward.total_cmp(&candidates[a].reward));
    let count = ((share * order.len() as f64).ceil() as usize).max(1).min(order.len());
    flags.fill(false);
    order[..count].iter().for_each(|&i| flags[i] = true);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAN: f32 = f32::NAN;

    /// Groups of three; what a completion says is its number.
    fn kept(keep: Keep, rewards: &[f32]) -> Vec<usize> {
        let ids: Vec<[i32; 1]> = (0..rewards.len()).map(|i| [i as i32]).collect();
        let of = |(i, &reward): (usize, &f32)| {
            let advantage = if reward.is_nan() { 0.0 } else { reward - 0.5 };
            Candidate { group: i as u32 / 3, reward, advantage, ids: &ids[i] }
        };
        let candidates: Vec<_> = rewards.iter().enumerate().map(of).collect();
        let flags = Selection { prompts: None, distinct: false, keep }.flags(&candidates);
        (0..flags.len()).filter(|&i| flags[i]).collect()
    }

    #[test]
    fn each_rule_keeps_what_it_is_called() {
        let rewards = [0.5, 1.0, 1.0, NAN, NAN, NAN, 0.0, NAN, -1.0];
        assert_eq!(kept(Keep::All, &rewards).len(), 9);
        assert_eq!(kept(Keep::Best, &rewards), [1, 6], "the first of two, none of three unknown");
        assert_eq!(kept(Keep::Top(0.2), &rewards), [1], "1 of the 5 that have a reward");
        assert_eq!(kept(Keep::Top(0.21), &rewards), [1, 2]);
        assert_eq!(kept(Keep::Top(1e-9), &rewards), [1], "at least one");
        assert_eq!(kept(Keep::Top(1.0), &rewards), [0, 1, 2, 6, 8]);
        assert_eq!(kept(Keep::Threshold(0.5), &rewards), [0, 1, 2]);
        assert_eq!(kept(Keep::Threshold(2.0), &rewards), [] as [usize; 0]);
        assert_eq!(kept(Keep::Positive, &rewards), [1, 2]);
        assert_eq!(kept(Keep::Top(0.5), &[NAN, NAN, NAN]), [] as [usize; 0]);
        assert_eq!(kept(Keep::Best, &[-1.0, -2.0, -1.0]), [0], "the best may be bad");
    }

    fn candidates<'a>(of: &'a [(u32, f32, Vec<i32>)]) -> Vec<Candidate<'a>> {
        let each = |(group, reward, ids): &'a (u32, f32, Vec<i32>)| Candidate {
            group: *group,
            reward: *reward,
            advantage: *reward,
            ids,
        };
        of.iter().map(each).collect()
    }

    #[test]
    fn repetitions_are_left_out_within_a_prompt() {
        let all = [
            (0, NAN, vec![1, 2]),
            (0, 1.0, vec![1, 2]),
            (0, 1.0, vec![1, 2]),
            (0, 1.0, vec![1]),
            (1, 1.0, vec![1, 2]),
        ];
        let selection = Selection { prompts: None, distinct: true, keep: Keep::All };
        assert_eq!(selection.flags(&candidates(&all)), [false, true, false, true, true]);
    }

    #[test]
    fn prompts_whose_rewards_differ_come_first() {
        let one = |group, reward| (group, reward, vec![group as i32]);
        let all = [
            one(0, 1.0),
            one(0, 1.0),
            one(1, 0.0),
            one(1, 1.0),
            one(2, 1.0),
            one(2, NAN),
            one(3, 0.5),
            one(3, 0.0),
            one(4, 0.0),
            one(4, 1.0),
        ];
        let flags = |prompts, of: &[_]| {
            Selection { prompts: Some(prompts), distinct: false, keep: Keep::All }
                .flags(&candidates(of))
        };
        let kept = |flags: Vec<bool>| (0..flags.len()).filter(|&i| flags[i]).collect::<Vec<_>>();
        assert_eq!(kept(flags(2, &all)), [2, 3, 6, 7]);
        assert_eq!(kept(flags(9, &all)), [2, 3, 6, 7, 8, 9]);
        assert_eq!(spread(&candidates(&all)), 3);
        let flat = [one(0, 1.0), one(0, 1.0), one(1, 0.0), one(1, 0.0), one(2, 0.0)];
        assert_eq!(kept(flags(2, &flat)), [0, 1, 2, 3], "none differs");
    }

    fn batches() -> impl Strategy<Value = Vec<(u32, f32, Vec<i32>)>> {
        let reward = prop_oneof![Just(NAN), (-4i32..4).prop_map(|r| r as f32 / 2.0)];
        let one = (0u32..5, reward, prop::collection::vec(0i32..3, 0..3));
        prop::collection::vec(one, 0..40).prop_map(|mut all| {
            all.sort_by_key(|one| one.0);
            all
        })
    }

    fn rules() -> impl Strategy<Value = Selection> {
        let keep = prop_oneof![
            Just(Keep::All),
            Just(Keep::Best),
            (0.01f64..=1.0).prop_map(Keep::Top),
            (-2.0f64..2.0).prop_map(Keep::Threshold),
            Just(Keep::Positive),
        ];
        (prop::option::of(1usize..6), any::<bool>(), keep)
            .prop_map(|(prompts, distinct, keep)| Selection { prompts, distinct, keep })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// A rule keeps no completion without a reward, and none that is worse than one it drops for
        /// its reward; what is kept once is kept again.
        #[test]
        fn rules_are_sound(batch in batches(), rule in rules()) {
            let all = candidates(&batch);
            let flags = rule.flags(&all);
            prop_assert_eq!(flags.len(), all.len());
            let kept: Vec<Candidate<'_>> =
                all.iter().zip(&flags).filter(|(_, flag)| **flag).map(|(c, _)| *c).collect();
            if !rule.is_all() {
                prop_assert!(kept.iter().all(|c| !c.reward.is_nan()));
            }
            if let Some(most) = rule.prompts {
                prop_assert!(groups(&kept).len() <= most);
            }
            if rule.distinct {
                let distinct: HashSet<_> = kept.iter().map(|c| (c.group, c.ids)).collect();
                prop_assert_eq!(distinct.len(), kept.len());
            }
            let scored = all.iter().filter(|c| !c.reward.is_nan());
            match rule.keep {
                Keep::All => {}
                Keep::Best => prop_assert_eq!(groups(&kept).len(), kept.len()),
                Keep::Top(share) => {
                    prop_assert!(kept.len() as f64 <= share * scored.count() as f64 + 1.0);
                }
                Keep::Threshold(least) => {
                    prop_assert!(kept.iter().all(|c| c.reward as f64 >= least));
                }
                Keep::Positive => prop_assert!(kept.iter().all(|c| c.advantage > 0.0)),
            }
            // A share of a share is less, and what is left of a prompt may no longer differ.
            let shrinks = matches!(rule.keep, Keep::Top(_)) || rule.prompts.is_some();
            let again = rule.flags(&kept);
            prop_assert!(shrinks || again.iter().all(|&flag| flag));
        }

        /// Without repetitions and limits, what is left out of a group or a batch is not better.
        #[test]
        fn what_is_left_out_is_not_better(batch in batches(), share in 0.01f64..=1.0) {
            let all = candidates(&batch);
            for keep in [Keep::Best, Keep::Top(share)] {
                let flags = Selection { prompts: None, distinct: false, keep }.flags(&all);
                for (i, a) in all.iter().enumerate().filter(|(i, a)| !flags[*i] && !a.reward.is_nan()) {
                    for (j, b) in all.iter().enumerate().filter(|(j, _)| flags[*j]) {
                        let compared = keep != Keep::Best || a.group == b.group;
                        prop_assert!(!compared || a.reward < b.reward || (a.reward == b.reward && i > j));
                    }
                }
            }
        }
    }
}
