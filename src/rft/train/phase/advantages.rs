//! Advantages of a batch: against a group's other completions, or by the critic.

use crate::train::critic::{Critic, CriticBatch};
use crate::train::trainer::Trainer;
use crate::train::update::ordered::in_order;
use crate::train::update::record::{Record, ScoredTokens};
use crate::train::update::step::hidden_rows;
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{
    Advantage, Gae, GroupAdvantage, GroupSettings, GroupStats, KlReward, RewardKl, Whiten,
    WhitenSettings, gae, group_advantage, kl_reward, whiten,
};
use gradus::view::{View, ViewMut};

/// Advantages of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Advantages {
    /// One for each record.
    PerSequence(Vec<f32>),
    /// One for each scored token.
    PerToken(Vec<f32>),
}

impl Advantages {
    /// As the loss takes them.
    pub fn view(&self) -> Advantage<'_, f32> {
        match self {
            Advantages::PerSequence(a) => Advantage::PerSequence(View::from(a)),
            Advantages::PerToken(a) => Advantage::PerToken(View::from(a)),
        }
    }

    /// The advantage of each record; of advantages that differ by token the sum.
    pub fn of_records(&self, records: &[Record]) -> Vec<f32> {
        match self {
            Advantages::PerSequence(a) => a.clone(),
            Advantages::PerToken(a) => {
                let mut rest = a.iter();
                let sum = |r: &Record| rest.by_ref().take(r.scored().count()).sum();
                records.iter().map(sum).collect()
            }
        }
    }

    /// Keeps every advantage within ± `limit`.
    pub fn clamp(&mut self, limit: f64) {
        let (Advantages::PerSequence(all) | Advantages::PerToken(all)) = self;
        let limit = limit as f32;
        all.iter_mut().for_each(|a| *a = a.clamp(-limit, limit));
    }

    /// The advantage of each scored token.
    pub fn of_tokens(&self, records: &[Record]) -> Vec<f32> {
        match self {
            Advantages::PerToken(a) => a.clone(),
            Advantages::PerSequence(a) => {
                let each = |(r, &a): (&Record, &f32)| std::iter::repeat_n(a, r.scored().count());
                records.iter().zip(a).flat_map(each).collect()
            }
        }
    }
}

impl<T: Float> Trainer<T> {
    /// One advantage per record from the group's rewards, less `beta` times the sequence's KL.
    pub(super) fn group_advantages(
        &self,
        records: &[Record],
        settings: GroupSettings,
        beta: f64,
    ) -> Result<(Vec<f32>, Vec<GroupStats>)> {
        let rewards: Vec<f32> = records.iter().map(|r| reward_less_kl(r, beta)).collect();
        let offsets = group_offsets(records);
        let (mut advantage, mut groups) = (vec![0f32; rewards.len()], Vec::new());
        let args = GroupAdvantage {
            reward: View::from(&rewards),
            offsets: View::from(&offsets),
            length: None,
            settings,
            advantage: ViewMut::from(&mut advantage),
            groups: Some(&mut groups),
        };
        group_advantage(&self.model.device, args)?;
        Ok((advantage, groups))
    }

    /// GAE advantages, one per scored token, whitened over the batch unless `value.whiten` is off, and
    /// the states the critic learns from afterwards. A record without a reward has no part in either: its tokens have
    /// advantage 0.
    pub(super) fn gae_advantages(
        &mut self,
        records: &[Record],
        beta: f64,
    ) -> Result<(Vec<f32>, CriticBatch)> {
        let device = self.model.device.clone();
        let hidden = self.model.config.hidden;
        let known = &rewarded(records);
        let scored = ScoredTokens::of(known);
        let mut rewards = match beta > 0.0 {
            true => rewards_less_kl(&device, known, &scored, beta)?,
            false => token_rewards(known, &scored),
        };
        move_to_turns(known, &scored, &mut rewards);
        let rows = self.hidden_states(known)?;
        let critic = self.critic.get_or_insert_with(|| Critic::new(hidden));
        let value = critic.head.forward(&rows)?;
        let (mut advantage, mut returns) = (vec![0f32; value.len()], vec![0f32; value.len()]);
        let args = Gae {
            reward: (&rewards).into(),
            value: (&value).into(),
            mask: None,
            cu_seqlens: (&scored.cu_seqlens).into(),
            bootstrap: None,
            gamma: self.config.value.gamma,
            gae_lambda: self.config.value.lambda,
            advantage: ViewMut::from(&mut advantage),
            returns: Some(ViewMut::from(&mut returns)),
        };
        gae(&device, args)?;
        let batch = |hidden| CriticBatch { hidden, returns: returns.clone(), value: value.clone() };
        if !self.config.value.whiten {
            return Ok((of_all(records, advantage), batch(rows)));
        }
        let mut white = vec![0f32; advantage.len()];
        // One token has nothing to be compared with: its advantage is 0.
        if advantage.len() > 1 {
            let args = Whiten {
                x: (&advantage).into(),
                mask: None,
                settings: WhitenSettings::VERL,
                y: ViewMut::from(&mut white),
                stats: None,
            };
            whiten(&device, args)?;
        }
        Ok((of_all(records, white), batch(rows)))
    }

    /// Hidden states before each scored token, in host memory. A micro-batch at a time goes through
    /// the model, which changes no bit.
    pub(super) fn hidden_states(&self, records: &[Record]) -> Result<Vec<f32>> {
        let parts: Vec<&[Record]> = records.chunks(self.config.rl.sequences()).collect();
        let mut all = Vec::new();
        let how = self.scoring();
        let one = |i: usize| {
            let scored = how.pack(parts[i])?;
            let batch = scored.packed.place(&self.model.allocator)?;
            hidden_rows(&self.model, &scored, &batch, true)?.to_host()
        };
        let mut add = |rows: Vec<T>| {
            all.extend(rows.into_iter().map(T::to_f32));
            Ok(())
        };
        match self.model.device {
            Device::Gpu(_) => (0..parts.len()).try_for_each(|i| add(one(i)?))?,
            Device::Cpu => in_order(parts.len(), one, add)?,
        }
        Ok(all)
    }
}

/// Offsets of the groups, whose records stand side by side.
pub(super) fn group_offsets(records: &[Record]) -> Vec<i64> {
    let mut offsets = vec![0i64];
    for (i, record) in records.iter().enumerate() {
        if i + 1 == records.len() || records[i + 1].group != record.group {
            offsets.push(i as i64 + 1);
        }
    }
    offsets
}

/// The rewards themselves, less `beta` times the sequence's KL; 0 where there is none.
pub(super) fn rewards_as_they_are(records: &[Record], beta: f64) -> Vec<f32> {
    let held = |r: &Record| if r.reward.is_nan() { 0.0 } else { reward_less_kl(r, beta) };
    records.iter().map(held).collect()
}

/// 1 for each record that has a reward, 0 for the others.
pub(super) fn ones(records: &[Record]) -> Vec<f32> {
    records.iter().map(|r| !r.reward.is_nan() as u8 as f32).collect()
}

/// The reward less `beta` times Σ log π − log π_ref over the scored tokens, before the step's updates.
fn reward_less_kl(record: &Record, beta: f64) -> f32 {
    if beta == 0.0 {
        return record.reward;
    }
    let old = record.old_logp();
    let kl: f64 = record.scored().map(|t| old[t] as f64 - record.ref_logp[t] as f64).sum();
    (record.reward as f64 - beta * kl) as f32
}

/// The records that have a reward.
pub(super) fn rewarded(records: &[Record]) -> Vec<Record> {
    records.iter().filter(|r| !r.reward.is_nan()).cloned().collect()
}

/// A column of the rewarded records' tokens with 0 for those of the others between them.
pub(super) fn of_all(records: &[Record], rewarded: Vec<f32>) -> Vec<f32> {
    let mut known = rewarded.into_iter();
    let mut all = Vec::new();
    for record in records {
        let tokens = record.scored().count();
        match record.reward.is_nan() {
            true => all.extend(std::iter::repeat_n(0.0, tokens)),
            false => all.extend(known.by_ref().take(tokens)),
        }
    }
    all
}

/// The sequence's reward on its last scored token, 0 before.
pub(super) fn token_rewards(records: &[Record], scored: &ScoredTokens) -> Vec<f32> {
    let mut rewards = vec![0f32; scored.len()];
    for (record, end) in records.iter().zip(&scored.cu_seqlens[1..]) {
        if record.scored().next().is_some() {
            rewards[*end as usize - 1] = record.reward;
        }
    }
    rewards
}

/// Moves the rewards of the turns before the last from the last scored token of their record to that of their
/// answer. The sum over a record stays what it is.
pub(super) fn move_to_turns(records: &[Record], scored: &ScoredTokens, rewards: &mut [f32]) {
    for (record, ends) in records.iter().zip(scored.cu_seqlens.windows(2)) {
        let places: Vec<usize> = record.scored().collect();
        let (first, last) = (ends[0] as usize, ends[1] as usize);
        for (end, reward) in &record.turns {
            // The answer's last token stands before its end.
            let at = places.partition_point(|place| place < end);
            if at > 0 && first + at < last {
                rewards[first + at - 1] += reward;
                rewards[last - 1] -= reward;
            }
        }
    }
}

/// The sequence's reward on its last scored token, less β times the log-ratio to the reference at every
/// token.
fn rewards_less_kl(
    device: &Device,
    records: &[Record],
    scored: &ScoredTokens,
    beta: f64,
) -> Result<Vec<f32>> {
    let score: Vec<f32> = records.iter().map(|r| r.reward).collect();
    let logp = scored.gather(records, Record::old_logp);
    let reference = scored.gather(records, |r| &r.ref_logp);
    let mut reward = vec![0f32; scored.len()];
    let args = KlReward {
        score: (&score).into(),
        logp: (&logp).into(),
        reference: (&reference).into(),
        mask: None,
        cu_seqlens: (&scored.cu_seqlens).into(),
        beta,
        estimator: RewardKl::K1,
        clamp: f64::INFINITY,
        reward: ViewMut::from(&mut reward),
    };
    kl_reward(device, args)?;
    Ok(reward)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::RunConfig;
    use crate::train::update::record::TokenClass;

    /// Two answers of two and one tokens with something said in between, worth `turns` and `rest`.
    fn episode(turns: &[f32], rest: f32) -> Record {
        let mut record = Record::default();
        record.push(&[1, 2], TokenClass::Prompt, &[]);
        record.push(&[3, 4], TokenClass::Gen, &[-1.0, -1.0]);
        record.push(&[5], TokenClass::Prompt, &[]);
        record.push(&[6], TokenClass::Gen, &[-1.0]);
        record.turns = [4, 6].into_iter().zip(turns.iter().copied()).collect();
        record.reward = turns.iter().sum::<f32>() + rest;
        record
    }

    /// By hand: with V = 0 and λ = 1 an advantage is the discounted sum of the rewards from its token on. What a
    /// reward says of the last answer, here 8, stays at the end.
    #[test]
    fn rewards_of_turns_reach_the_tokens_before_their_end() {
        let mut config = RunConfig::default();
        let keys = ["rl.advantage=gae", "value.gamma=0.5", "value.lambda=1", "value.whiten=false"];
        keys.iter().for_each(|key| config.apply_set(key).unwrap());
        let advantages = |record: Record| {
            let mut trainer = Trainer::<f32>::on(config.clone(), Device::Cpu).unwrap();
            let failed = Record { reward: f32::NAN, ..record.clone() };
            let (advantages, batch) =
                trainer.gae_advantages(&[failed, record.clone()], 0.0).unwrap();
            // One that failed takes no part.
            assert_eq!(advantages[..3], [0.0; 3]);
            assert_eq!(advantages[3..], batch.returns);
            // What a critic is fitted to before it is used.
            let one = std::slice::from_ref(&record);
            let scored = ScoredTokens::of(one);
            let mut rewards = token_rewards(one, &scored);
            move_to_turns(one, &scored, &mut rewards);
            assert_eq!(rewards.iter().sum::<f32>(), record.reward);
            advantages[3..].to_vec()
        };
        // At the ends of its answers: -1 behind the second token, 4 + 8 behind the third.
        assert_eq!(advantages(episode(&[-1.0, 4.0], 8.0)), [-0.5 + 3.0, -1.0 + 6.0, 12.0]);
        // The same reward for the whole episode.
        let whole = Record { turns: Vec::new(), ..episode(&[-1.0, 4.0], 8.0) };
        assert_eq!(advantages(whole), [2.75, 5.5, 11.0]);
        // One turn alone is the episode.
        let one = episode(&[-1.0, 4.0], 8.0);
        let one = Record { turns: vec![(6, 11.0)], ..one };
        assert_eq!(advantages(one), [2.75, 5.5, 11.0]);
    }
}
