//! The critic: V(h) on the policy's hidden states, fitted to returns, and the advantages it gives.
//!
//! The critic reads the trunk but sends no gradient into it, so the value_fit phase cannot move the
//! policy, and RL starts with a value function that already explains the returns (VLA-RL,
//! arXiv:2505.18719, warms its critic up for the same reason).

use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::model::ValueHead;
use crate::ops::{
    AdamW, AdamWOutcome, AdamWSettings, AdamWTensor, DiscountedReturn, Gae, MaskedReturn,
    ValueLoss, Whiten, WhitenSettings, adamw, discounted_return, gae, value_loss, whiten,
};
use crate::train::ordered::in_order;
use crate::train::phases::{Values, batch_values};
use crate::train::record::{Record, ScoredTokens};
use crate::train::step::hidden_rows;
use crate::train::trainer::Trainer;
use crate::view::{View, ViewMut};

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
}

impl Critic {
    /// V = 0.
    pub fn new(hidden: usize) -> Critic {
        let (m, v) = (vec![0.0; hidden + 1], vec![0.0; hidden + 1]);
        Critic { head: ValueHead::new(hidden), t: 0, m, v }
    }

    /// One AdamW step on ½·mean (V − return)²; returns the loss and the explained variance before
    /// the step.
    pub fn update(&mut self, device: &Device, states: &States, rate: f64) -> Result<(f64, f64)> {
        let value = self.head.forward(&states.hidden)?;
        let (mut loss, mut dvalue) = (0.0, vec![0f32; value.len()]);
        let args = ValueLoss {
            value: (&value).into(),
            returns: (&states.returns).into(),
            old_value: None,
            mask: None,
            clip: f64::INFINITY,
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
        Ok((loss, explained_variance(&value, &states.returns)))
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
        if step > 0 && self.states.returns.is_empty() {
            self.collect_step(step - 1)?;
        }
        let first = self.pass * self.config.value.collect_steps as u64;
        let (_, records, scores) = self.collect(COLLECT_STEPS + first + step)?;
        let states = self.states(&records)?;
        self.states.hidden.extend(states.hidden);
        self.states.returns.extend(states.returns);
        let mut values = batch_values(&records, &[]);
        values.push(("rewards_failed", scores.failed as f64));
        Ok(values)
    }

    /// One critic step on everything that was collected.
    pub(crate) fn value_fit_step(&mut self) -> Result<Values> {
        let steps = self.config.value.collect_steps as u64;
        if self.states.returns.is_empty() && steps > 0 {
            self.collect_step(steps - 1)?;
        }
        let rate = self.config.value.learning_rate;
        let device = self.model.device.clone();
        let hidden = self.model.config.hidden;
        let critic = self.critic.get_or_insert_with(|| Critic::new(hidden));
        let (loss, explained) = critic.update(&device, &self.states, rate)?;
        Ok(vec![("value_loss", loss), ("explained_variance", explained)])
    }

    fn states(&self, records: &[Record]) -> Result<States> {
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
        Ok(States { hidden: self.hidden_states(records)?, returns })
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

    /// GAE advantages (whitened over the batch, one per scored token), and the states the critic
    /// learns from afterwards.
    pub(crate) fn gae_advantages(&mut self, records: &[Record]) -> Result<(Vec<f32>, States)> {
        let device = self.model.device.clone();
        let hidden = self.model.config.hidden;
        let scored = ScoredTokens::of(records);
        let rewards = token_rewards(records, &scored);
        let rows = self.hidden_states(records)?;
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
        let args = Whiten {
            x: (&advantage).into(),
            mask: None,
            settings: WhitenSettings::VERL,
            y: ViewMut::from(&mut white),
            stats: None,
        };
        whiten(&device, args)?;
        Ok((white, States { hidden: rows, returns }))
    }
}

/// The sequence reward on the last scored token, 0 before; an abstained reward counts 0.
fn token_rewards(records: &[Record], scored: &ScoredTokens) -> Vec<f32> {
    let mut rewards = vec![0f32; scored.len()];
    for (record, end) in records.iter().zip(&scored.cu_seqlens[1..]) {
        if record.scored().next().is_some() && !record.reward.is_nan() {
            rewards[*end as usize - 1] = record.reward;
        }
    }
    rewards
}
