//! AdamW over a model's trainable parameters, with global-norm clipping and a finite check.

use crate::model::{Gradients, Parameter, Parameters};
use crate::train::update::layers::LayerRates;
use gradus::device::{Buffer, Device};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{
    AdamW, AdamWOutcome, AdamWSettings, AdamWTensor, GlobalNorm, GradNorm, PagedAdamW, PagedTensor,
    adamw, grad_norm,
};
use gradus::view::View;

/// First and second moments of every trainable parameter, in parameter order.
pub struct Optimizer {
    /// Updates made so far.
    pub t: u64,
    /// Elements of each parameter.
    counts: Vec<usize>,
    moments: Moments,
    /// Of each parameter, 1 where an element may move; empty if all may.
    masks: Vec<Buffer<u8>>,
}

/// Where the moments live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// With the parameters.
    #[default]
    Device,
    /// In pinned host memory; they come to the GPU in chunks (Dettmers et al. 2023,
    /// arXiv:2305.14314, §3, without managed memory).
    Host,
}

enum Moments {
    Resident(Vec<Resident>),
    Paged(PagedAdamW),
}

struct Resident {
    m: Buffer<f32>,
    v: Buffer<f32>,
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

/// Elements of moments that come to the GPU at a time.
const CHUNK: usize = 1 << 22;

impl Optimizer {
    /// Zero moments for the trainable ones of `params`.
    ///
    /// # Errors
    /// `OutOfMemory`; `Config` for moments that are to leave a GPU where there is none.
    pub fn new<T: Float>(
        device: &Device,
        params: &Parameters<T>,
        residence: Residence,
    ) -> Result<Optimizer> {
        let counts: Vec<usize> =
            params.iter().filter(|p| p.trainable).map(Parameter::len).collect();
        let zeros = |&count: &usize| {
            let (mut m, mut v) = (Buffer::new(device, count)?, Buffer::new(device, count)?);
            m.clear()?;
            v.clear()?;
            Ok(Resident { m, v })
        };
        let moments = match (residence, device) {
            (Residence::Device, _) => {
                Moments::Resident(counts.iter().map(zeros).collect::<Result<_>>()?)
            }
            (Residence::Host, Device::Gpu(gpu)) => {
                Moments::Paged(PagedAdamW::new(gpu, &counts, CHUNK)?)
            }
            (Residence::Host, Device::Cpu) => {
                let reason = "paged_adamw moves moments between a GPU and the host; on the CPU \
                              use adamw";
                return Err(Error::config("rl.optim", reason));
            }
        };
        Ok(Optimizer { t: 0, counts, moments, masks: Vec::new() })
    }

    /// Lets those elements alone move, with their moments, where the mask of their parameter is 1; all of them
    /// without masks. Gradients are clipped by the norm of the whole.
    pub(crate) fn restrict(&mut self, masks: Vec<Buffer<u8>>) {
        self.masks = masks;
    }

    pub(crate) fn is_restricted(&self) -> bool {
        !self.masks.is_empty()
    }

    /// Forgets everything: no update was made, and all moments are 0. Nothing is allocated on a GPU.
    ///
    /// # Errors
    /// What the driver says.
    pub fn restart(&mut self) -> Result<()> {
        self.t = 0;
        match &mut self.moments {
            Moments::Resident(all) => {
                all.iter_mut().try_for_each(|of| of.m.clear().and_then(|()| of.v.clear()))
            }
            Moments::Paged(paged) => self.counts.iter().enumerate().try_for_each(|(i, &count)| {
                let zeros = vec![0.0; count];
                paged.set_moments(i, &zeros, &zeros)
            }),
        }
    }

    /// First and second moment of trainable parameter number `index`, for a checkpoint.
    pub fn moments(&self, index: usize) -> Result<[Vec<f32>; 2]> {
        match &self.moments {
            Moments::Resident(all) => match all.get(index) {
                Some(of) => Ok([of.m.to_host()?, of.v.to_host()?]),
                None => Err(no_such(index)),
            },
            Moments::Paged(paged) => paged.moments(index).map(<[_; 2]>::from),
        }
    }

    /// Replaces the moments of trainable parameter number `index`.
    pub fn set_moments(&mut self, index: usize, [m, v]: [&[f32]; 2]) -> Result<()> {
        match &mut self.moments {
            Moments::Resident(all) => match all.get_mut(index) {
                Some(of) => of.m.upload(m).and_then(|()| of.v.upload(v)),
                None => Err(no_such(index)),
            },
            Moments::Paged(paged) => paged.set_moments(index, m, v),
        }
    }

    /// One AdamW step (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).
    ///
    /// # Errors
    /// What the device says. Gradients that are not finite are no error: nothing is changed.
    pub fn step<T: Float>(
        &mut self,
        device: &Device,
        params: &mut Parameters<T>,
        gradients: &Gradients,
        update: Update,
    ) -> Result<Updated> {
        self.step_by_layers(device, params, gradients, update, LayerRates::EVEN)
    }

    /// As [`Optimizer::step`], at rates that differ by block. What does not move has no part in the norm,
    /// and its moments stay.
    ///
    /// # Errors
    /// `Config` where nothing moves, and for rates that differ where moments are in host memory.
    pub fn step_by_layers<T: Float>(
        &mut self,
        device: &Device,
        params: &mut Parameters<T>,
        gradients: &Gradients,
        update: Update,
        rates: LayerRates,
    ) -> Result<Updated> {
        let factors = rates.factors(params);
        let mut norm = GlobalNorm::default();
        let grads: Vec<View<'_, f32>> = gradients.iter().map(|(_, g)| g.all()).collect();
        let moves = grads.iter().zip(&factors).filter(|(_, factor)| factor.is_some());
        let moving: Vec<View<'_, f32>> = moves.map(|(grad, _)| *grad).collect();
        if moving.is_empty() && !grads.is_empty() {
            let reason = format!("{}, but then nothing that trains moves", rates.frozen);
            return Err(Error::config("sft.freeze_share", reason));
        }
        grad_norm(device, GradNorm { grads: &moving, norm: &mut norm })?;
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
        let outcome = match (&mut self.moments, rates == LayerRates::EVEN) {
            (Moments::Resident(all), _) => {
                move_resident(device, params, &grads, (all, &self.masks), &factors, settings)?
            }
            (Moments::Paged(paged), true) => {
                move_paged(params, &grads, (paged, &self.masks), &settings)?
            }
            (Moments::Paged(_), false) => {
                let reason = "paged_adamw, but rates differ by block, which adamw alone takes";
                return Err(Error::config("rl.optim", reason));
            }
        };
        if outcome.non_finite.is_some() {
            return Ok(refused);
        }
        params.refresh()?;
        self.t += 1;
        Ok(Updated { grad_norm: norm.value, applied: true })
    }
}

/// Moves the parameters of each factor in turn, at its rate.
fn move_resident<T: Float>(
    device: &Device,
    params: &mut Parameters<T>,
    grads: &[View<'_, f32>],
    (moments, masks): (&mut [Resident], &[Buffer<u8>]),
    factors: &[Option<f64>],
    settings: AdamWSettings,
) -> Result<AdamWOutcome> {
    let mut outcome = AdamWOutcome::default();
    for (i, rate) in distinct(factors).into_iter().enumerate() {
        let settings = AdamWSettings { lr: settings.lr * rate, ..settings };
        let trained = params.iter_mut().filter(|p| p.trainable).zip(grads);
        let tensors = trained
            .zip(moments.iter_mut())
            .zip(factors)
            .enumerate()
            .filter(|(_, (_, factor))| **factor == Some(rate))
            .map(|(i, (((param, grad), Resident { m, v }), _))| {
                let mask = masks.get(i).map(Buffer::all);
                let (param, grad) = (master(param)?.all_mut(), *grad);
                Ok(AdamWTensor { param, grad, m: m.all_mut(), v: v.all_mut(), mask })
            })
            .collect::<Result<Vec<_>>>()?;
        adamw(device, AdamW { tensors, settings, outcome: &mut outcome })?;
        if outcome.non_finite.is_some() && i > 0 {
            let reason = "the square of a gradient is beyond f32, and blocks of another rate have moved; \
                          lower the learning rate";
            return Err(Error::Training { reason: reason.into() });
        }
        if outcome.non_finite.is_some() {
            break;
        }
    }
    Ok(outcome)
}

/// Moves the parameters chunk by chunk.
fn move_paged<T: Float>(
    params: &mut Parameters<T>,
    grads: &[View<'_, f32>],
    (paged, masks): (&mut PagedAdamW, &[Buffer<u8>]),
    settings: &AdamWSettings,
) -> Result<AdamWOutcome> {
    let mut outcome = AdamWOutcome::default();
    let tensors = params
        .iter_mut()
        .filter(|p| p.trainable)
        .zip(grads)
        .enumerate()
        .map(|(i, (param, grad))| {
            let (param, mask) = (master(param)?.all_mut(), masks.get(i).map(Buffer::all));
            Ok(PagedTensor { param, grad: *grad, mask })
        })
        .collect::<Result<Vec<_>>>()?;
    paged.step(tensors, settings, &mut outcome)?;
    Ok(outcome)
}

/// The factors that there are, each once.
fn distinct(factors: &[Option<f64>]) -> Vec<f64> {
    let mut found: Vec<f64> = Vec::new();
    for factor in factors.iter().flatten() {
        if !found.contains(factor) {
            found.push(*factor);
        }
    }
    found
}

fn master<T: Float>(param: &mut Parameter<T>) -> Result<&mut Buffer<f32>> {
    let name = param.name.clone();
    param.master_mut().ok_or_else(|| {
        Error::invalid("optimizer", name, "a frozen parameter", "one that keeps f32 values")
    })
}

fn no_such(index: usize) -> Error {
    Error::invalid("optimizer", "index", index, "the number of a trainable parameter")
}
