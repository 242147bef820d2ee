//! AdamW over a model's trainable parameters, with global-norm clipping and a finite check.

use crate::device::Device;
use crate::error::Result;
use crate::model::{Gradients, Parameters};
use crate::ops::{
    AdamW, AdamWOutcome, AdamWSettings, AdamWTensor, GlobalNorm, GradNorm, adamw, grad_norm,
};
use crate::view::{View, ViewMut};

/// First and second moments of every trainable parameter, in parameter order.
#[derive(Clone, Debug, Default)]
pub struct Optimizer {
    /// Updates made so far.
    pub t: u64,
    /// First moments; empty for frozen parameters.
    pub m: Vec<Vec<f32>>,
    /// Second moments; empty for frozen parameters.
    pub v: Vec<Vec<f32>>,
}

/// Settings of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; larger gradients are scaled down to it. Infinity = off.
    pub grad_clip: f64,
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Updated {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// False if a gradient was not finite: nothing was changed.
    pub applied: bool,
}

impl Optimizer {
    /// Fresh state for `params`.
    pub fn new(params: &Parameters) -> Optimizer {
        let zeros =
            |p: &crate::model::Parameter| vec![0.0; if p.trainable { p.data.len() } else { 0 }];
        let m: Vec<Vec<f32>> = params.iter().map(zeros).collect();
        Optimizer { t: 0, v: m.clone(), m }
    }

    /// One AdamW step (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).
    pub fn step(
        &mut self,
        device: &Device,
        params: &mut Parameters,
        gradients: &Gradients,
        update: Update,
    ) -> Result<Updated> {
        let mut norm = GlobalNorm::default();
        let grads: Vec<View<'_, f32>> = gradients.iter().map(|(_, g)| View::from(g)).collect();
        grad_norm(device, GradNorm { grads: &grads, norm: &mut norm })?;
        let refused = Updated { grad_norm: norm.value, applied: false };
        if !norm.finite {
            return Ok(refused);
        }
        let settings = AdamWSettings {
            lr: update.learning_rate,
            beta1: update.beta1,
            beta2: update.beta2,
            weight_decay: update.weight_decay,
            step: self.t + 1,
            grad_scale: norm.clip_coefficient(update.grad_clip)?,
            ..AdamWSettings::default()
        };
        let mut outcome = AdamWOutcome::default();
        let grads = gradients.iter().map(|(_, g)| g);
        let states = params.iter_mut().zip(self.m.iter_mut().zip(&mut self.v));
        let tensors = states
            .filter(|(param, _)| param.trainable)
            .zip(grads)
            .map(|((param, (m, v)), grad)| AdamWTensor {
                param: ViewMut::from(&mut param.data),
                grad: View::from(grad),
                m: ViewMut::from(m),
                v: ViewMut::from(v),
                mask: None,
            })
            .collect();
        adamw(device, AdamW { tensors, settings, outcome: &mut outcome })?;
        if outcome.non_finite.is_some() {
            return Ok(refused);
        }
        self.t += 1;
        Ok(Updated { grad_norm: norm.value, applied: true })
    }
}
