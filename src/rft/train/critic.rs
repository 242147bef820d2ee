//! The critic: V(h) on the policy's hidden states, fitted to returns.
//!
//! The critic reads the trunk and, unless `value.coef` gives its loss a weight in the policy's, sends no
//! gradient into it. The value_fit phase never moves the policy, and RL starts with a value function
//! that already explains the returns (VLA-RL, arXiv:2505.18719, warms its critic up for the same
//! reason).

use crate::model::ValueHead;
use gradus::device::Device;
use gradus::error::Result;
use gradus::ops::{AdamW, AdamWOutcome, AdamWSettings, AdamWTensor, ValueLoss, adamw, value_loss};
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
pub struct CriticBatch {
    /// `[N, hidden]` state before each scored token.
    pub hidden: Vec<f32>,
    /// `[N]` return from there on.
    pub returns: Vec<f32>,
    /// `[N]` value that the critic gave the state when the batch came in; empty before there was one.
    pub value: Vec<f32>,
}

/// How well a critic knows a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CriticFit {
    /// ½·mean (V − return)², clipped.
    pub loss: f64,
    /// 1 − Var(return − V) / Var(return); 0 if the returns do not vary.
    pub explained_variance: f64,
}

impl Critic {
    /// V = 0.
    pub fn new(hidden: usize) -> Critic {
        let (m, v) = (vec![0.0; hidden + 1], vec![0.0; hidden + 1]);
        Critic { head: ValueHead::new(hidden), t: 0, m, v }
    }

    /// One AdamW step on ½·mean (V − return)², V kept within `clip` of what it was when the batch
    /// came in; returns what it was like before the step, or nothing if there is nothing to learn
    /// from.
    ///
    /// # Errors
    /// What the ops say.
    pub fn update(
        &mut self,
        device: &Device,
        batch: &CriticBatch,
        rate: f64,
        clip: f64,
    ) -> Result<Option<CriticFit>> {
        if batch.returns.is_empty() {
            return Ok(None);
        }
        let value = self.head.forward(&batch.hidden)?;
        let (mut loss, mut dvalue) = (0.0, vec![0f32; value.len()]);
        let args = ValueLoss {
            value: (&value).into(),
            returns: (&batch.returns).into(),
            old_value: (!batch.value.is_empty()).then(|| (&batch.value).into()),
            mask: None,
            clip,
            weight: 1.0 / value.len().max(1) as f64,
            loss: &mut loss,
            dvalue: ViewMut::from(&mut dvalue),
        };
        value_loss(device, args)?;
        let mut gradient = vec![0f32; self.head.weight.len()];
        self.head.backward(&batch.hidden, &dvalue, &mut gradient);
        self.step(device, &gradient, rate)?;
        let explained_variance = explained_variance(&value, &batch.returns);
        Ok(Some(CriticFit { loss, explained_variance }))
    }

    /// How well the critic knew `batch` when it came in, with the loss of an update on it.
    pub(crate) fn fit(batch: &CriticBatch, loss: f64) -> CriticFit {
        CriticFit { loss, explained_variance: explained_variance(&batch.value, &batch.returns) }
    }

    /// One AdamW step of the head.
    ///
    /// # Errors
    /// What the op says. A gradient that is not finite changes nothing.
    pub fn step(&mut self, device: &Device, gradient: &[f32], rate: f64) -> Result<()> {
        let tensor = AdamWTensor {
            param: ViewMut::from(&mut self.head.weight),
            grad: View::from(gradient),
            m: ViewMut::from(&mut self.m),
            v: ViewMut::from(&mut self.v),
            mask: None,
        };
        let settings = AdamWSettings { lr: rate, step: self.t + 1, ..AdamWSettings::default() };
        let mut outcome = AdamWOutcome::default();
        adamw(device, AdamW { tensors: vec![tensor], settings, outcome: &mut outcome })?;
        self.t += outcome.non_finite.is_none() as u64;
        Ok(())
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
