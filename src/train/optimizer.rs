//! AdamW over a model's trainable parameters, with global-norm clipping and a finite check.

use crate::device::{Device, Memory};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::model::{Gradients, Parameter, Parameters};
use crate::ops::{
    AdamW, AdamWOutcome, AdamWSettings, AdamWTensor, GlobalNorm, GradNorm, adamw, grad_norm,
};
use crate::view::View;

/// First and second moments of every trainable parameter, in parameter order.
#[derive(Debug)]
pub struct Optimizer {
    /// Updates made so far.
    pub t: u64,
    /// First moments; empty for frozen parameters.
    pub m: Vec<Memory<f32>>,
    /// Second moments; empty for frozen parameters.
    pub v: Vec<Memory<f32>>,
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
    /// Fresh state for `params` on `device`.
    pub fn new<T: Float>(device: &Device, params: &Parameters<T>) -> Result<Optimizer> {
        let zeros = |p: &Parameter<T>| {
            let mut state = Memory::new(device, if p.trainable { p.len() } else { 0 })?;
            state.clear()?;
            Ok(state)
        };
        let all = || params.iter().map(zeros).collect::<Result<Vec<_>>>();
        Ok(Optimizer { t: 0, m: all()?, v: all()? })
    }

    /// One AdamW step (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).
    pub fn step<T: Float>(
        &mut self,
        device: &Device,
        params: &mut Parameters<T>,
        gradients: &Gradients,
        update: Update,
    ) -> Result<Updated> {
        let mut norm = GlobalNorm::default();
        let grads: Vec<View<'_, f32>> = gradients.iter().map(|(_, g)| g.all()).collect();
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
            grad_scale: match update.grad_clip {
                f64::INFINITY => 1.0,
                clip => norm.clip_coefficient(clip)?,
            },
            ..AdamWSettings::default()
        };
        let mut outcome = AdamWOutcome::default();
        let states = params.iter_mut().zip(self.m.iter_mut().zip(&mut self.v));
        let tensors = states
            .filter(|(param, _)| param.trainable)
            .zip(gradients.iter())
            .map(|((param, (m, v)), (_, grad))| {
                let (param, grad, mask) = (master(param)?.all_mut(), grad.all(), None);
                Ok(AdamWTensor { param, grad, m: m.all_mut(), v: v.all_mut(), mask })
            })
            .collect::<Result<Vec<_>>>()?;
        adamw(device, AdamW { tensors, settings, outcome: &mut outcome })?;
        if outcome.non_finite.is_some() {
            return Ok(refused);
        }
        params.refresh()?;
        self.t += 1;
        Ok(Updated { grad_norm: norm.value, applied: true })
    }
}

fn master<T: Float>(param: &mut Parameter<T>) -> Result<&mut Memory<f32>> {
    let name = param.name.clone();
    param.master_mut().ok_or_else(|| {
        Error::invalid("optimizer", name, "a frozen parameter", "one that keeps f32 values")
    })
}
