//! The critic: V(h) on the policy's hidden states, fitted to returns, and the advantages it gives.
//!
//! The critic reads the trunk but sends no gradient into it, so the value_fit phase cannot move the
//! policy, and RL starts with a value function that already explains the returns (VLA-RL,
//! arXiv:2505.18719, warms its critic up for the same reason).

use crate::model::ValueHead;
use crate::train::ordered::in_order;
use crate::train::phases::{Values, batch_values};
use crate::train::record::{Record, ScoredTokens};
use crate::train::step::hidden_rows;
use crate::train::trainer::Trainer;
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{
    AdamW, AdamWOutcome, AdamWSettings, AdamWTensor, DiscountedReturn, Gae, KlReward, MaskedReturn,
    RewardKl, ValueLoss, Whiten, WhitenSettings, adamw, discounted_return, gae, kl_reward,
    value_loss, whiten,
};
use gradus::view::{View, ViewMut};

/// A value head with its AdamW moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Critic {
    /// V(h).
    pub head: ValueHead,
    /// Updates made.
    pub t: u64,
    /// First moment.
    pub m: Vec<f32>,
    /// Second moment.
    pub v: Vec<f32>,
}

/// Hidden states of scored tokens with the returns they should predict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct States {
    /// `[N, hidden]` state before each scored token.
    pub hidden: Vec<f32>,
    /// `[N]` return from there on.
    pub returns: Vec<f32>,
    /// `[N]` value that the critic gave the state when the batch came in; empty before there was one.
    pub value: Vec<f32>,
}

impl Critic {
    /// V = 0.
    pub fn new(hidden: usize) -> Critic {
        let (m, v) = (vec![0.0; hidden + 1], vec![0.0; hidden + 1]);
        Critic { head: ValueHead::new(hidden), t: 0, m, v }
    }

    /// One AdamW step on ½·mean (V − return)², V kept within `clip` of what it was when the batch
    /// came in; returns the loss and the explained variance before the step, or nothing if there is
    /// nothing to learn from.
    ///
    /// # Errors
    /// What the ops say.
    pub fn update(
        &mut self,
        device: &Device,
        states: &States,
        rate: f64,
        clip: f64,
    ) -> Result<Option<(f64, f64)>> {
        if states.returns.is_empty() {
            return Ok(None);
        }
        let value = self.head.forward(&states.hidden)?;
        let (mut loss, mut dvalue) = (0.0, vec![0f32; value.len()]);
        let args = ValueLoss {
            value: (&value).into(),
            returns: (&states.returns).into(),
            old_value: (!states.value.is_empty()).then(|| (&states.value).into()),
            mask: None,
            clip,
            weight: 1.0 / value.len().max(1) as f64,
            loss: &mut loss,
            dvalue: ViewMut::from(&mut dvalue),
        };
        value_loss(device, args)?;
        let mut gradient = vec![0f32; self.head.weight.len()];
        self.head.backward(&states.hidden, &dvalue, &mut gradient);
        let tensor = AdamWTensor {
            param: ViewMut::from(&mut self.head.weight),
            grad: View::from(&gradient),
            m: ViewMut::from(&mut self.m),
            v: ViewMut::from(&mut self.v),
            mask: None,
        };
        let settings = AdamWSettings { lr: rate, step: self.t + 1, ..AdamWSettings::default() };
        let mut outcome = AdamWOutcome::default();
        adamw(device, AdamW { tensors: vec![tensor], settings, outcome: &mut outcome })?;
        self.t += outcome.non_finite.is_none() as u64;
        Ok(Some((loss, explained_variance(&value, &states.returns))))
    }
}

/// 1 − Var(return − V) / Var(return); 0 if the returns do not vary.
fn explained_variance(value: &[f32], returns: &[f32]) -> f64 {
    let variance = |x: &mut dyn Iterator<Item = f64>| {
        let x: Vec<f64> = x.collect();
        let mean = x.iter().sum::<f64>() / x.len().max(1) as f64;
        x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>()
    };
    let all = variance(&mut returns.iter().map(|&r| r as f64));
    let left = variance(&mut returns.iter().zip(value).map(|(&r, &v)| r as f64 - v as f64));
    if all == 0.0 { 0.0 } else { 1.0 - left / all }
}

/// Rollouts of the collect phase draw from steps that RL never reaches.
const COLLECT_STEPS: u64 = 1 << 40;

impl<T: Float> Trainer<T> {
    /// Collect step `step`: rollouts of the policy as it is. What earlier steps gathered is not in
    /// a checkpoint; after a resume it is drawn again, as the policy has not moved and every draw
    /// is a function of the seed.
    pub(crate) fn collect_step(&mut self, step: u64) -> Result<Values> {
        match step {
            // What an earlier phase gathered was another policy's.
            0 => self.states = None,
            _ if self.states.is_none() => drop(self.collect_step(step - 1)?),
            _ => {}
        }
        let first = self.pass * self.config.value.collect_steps as u64;
        let (_, records, scores) = self.collect(COLLECT_STEPS + first + step)?;
        let states = self.states(&records)?;
        let all = self.states.get_or_insert_default();
        all.hidden.extend(states.hidden);
        all.returns.extend(states.returns);
        let mut values = batch_values(&records, &[]);
        values.push(("rewards_failed", scores.failed as f64));
        Ok(values)
    }

    /// One critic step on everything that was collected.
    pub(crate) fn value_fit_step(&mut self) -> Result<Values> {
        let steps = self.config.value.collect_steps as u64;
        if self.states.is_none() && steps > 0 {
            self.collect_step(steps - 1)?;
        }
        let rate = self.config.value.learning_rate;
        let device = self.model.device.clone();
        let hidden = self.model.config.hidden;
        let critic = self.critic.get_or_insert_with(|| Critic::new(hidden));
        let states = self.states.get_or_insert_default();
        match critic.update(&device, states, rate, f64::INFINITY)? {
            Some((loss, explained)) => {
                Ok(vec![("value_loss", loss), ("explained_variance", explained)])
            }
            None => {
                let reason = "the critic has nothing to learn from: no completion that `collect` \
                              gathered has a reward";
                Err(Error::Training { reason: reason.into() })
            }
        }
    }

    /// States and returns of the records that have a reward. A policy that has not moved is its own
    /// reference, so that a KL in the reward is 0 here.
    fn states(&self, records: &[Record]) -> Result<States> {
        let records = &rewarded(records);
        let scored = ScoredTokens::of(records);
        let rewards = token_rewards(records, &scored);
        let mut returns = vec![0f32; scored.len()];
        let args = DiscountedReturn {
            reward: (&rewards).into(),
            mask: None,
            cu_seqlens: (&scored.cu_seqlens).into(),
            gamma: self.config.value.gamma,
            masked: MaskedReturn::Skip,
            baseline: None,
            returns: ViewMut::from(&mut returns),
        };
        discounted_return(&self.model.device, args)?;
        Ok(States { hidden: self.hidden_states(records)?, returns, value: Vec::new() })
    }

    /// Hidden states before each scored token, in host memory. A micro-batch at a time goes through
    /// the model, which changes no bit.
    fn hidden_states(&self, records: &[Record]) -> Result<Vec<f32>> {
        let parts: Vec<&[Record]> = records.chunks(self.config.rl.micro_batch.max(1)).collect();
        let mut all = Vec::new();
        let one = |i: usize| hidden_rows(&self.model, &ScoredTokens::of(parts[i]), true)?.to_host();
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

    /// GAE advantages, one per scored token, whitened over the batch, and the states the critic
    /// learns from afterwards. A record without a reward has no part in either: its tokens have
    /// advantage 0.
    pub(crate) fn gae_advantages(
        &mut self,
        records: &[Record],
        beta: f64,
    ) -> Result<(Vec<f32>, States)> {
        let device = self.model.device.clone();
        let hidden = self.model.config.hidden;
        let known = &rewarded(records);
        let scored = ScoredTokens::of(known);
        let rewards = match beta > 0.0 {
            true => held_rewards(&device, known, &scored, beta)?,
            false => token_rewards(known, &scored),
        };
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
            lambda: self.config.value.lambda,
            advantage: ViewMut::from(&mut advantage),
            returns: Some(ViewMut::from(&mut returns)),
        };
        gae(&device, args)?;
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
        let states = States { hidden: rows, returns, value };
        Ok((of_all(records, white), states))
    }
}

/// The records that have a reward.
fn rewarded(records: &[Record]) -> Vec<Record> {
    records.iter().filter(|r| !r.reward.is_nan()).cloned().collect()
}

/// Advantages of the rewarded records' tokens with 0 for those of the others between them.
fn of_all(records: &[Record], rewarded: Vec<f32>) -> Vec<f32> {
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
fn token_rewards(records: &[Record], scored: &ScoredTokens) -> Vec<f32> {
    let mut rewards = vec![0f32; scored.len()];
    for (record, end) in records.iter().zip(&scored.cu_seqlens[1..]) {
        if record.scored().next().is_some() {
            rewards[*end as usize - 1] = record.reward;
        }
    }
    rewards
}

/// The same, less β times the log-ratio to the reference at every token.
fn held_rewards(
    device: &Device,
    records: &[Record],
    scored: &ScoredTokens,
    beta: f64,
) -> Result<Vec<f32>> {
    let score: Vec<f32> = records.iter().map(|r| r.reward).collect();
    let logp = scored.gather(records, |r| &r.old_logp);
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
