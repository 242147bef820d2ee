//! AdamW on the GPU: a check and an update launch over all tensors, no wait between them.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::adamw::{AdamWParams, AdamWTensor, CHUNK, Outcome, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, Ptr, shipped};
use crate::error::Result;
use crate::ops::optim::adamw::cpu::Coefficients;
use crate::ops::optim::adamw::{AdamW, AdamW8bit, AdamWOutcome, AdamWSettings, DecayOrder};
use crate::quant::dynamic_map;

pub(crate) fn adamw(gpu: &Arc<Gpu>, a: AdamW<'_>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::ADAMW);
    let mut tensors = Vec::with_capacity(a.tensors.len());
    for t in a.tensors {
        tensors.push(AdamWTensor {
            count: t.grad.numel(),
            grad: launch.input(&t.grad)?,
            mask: launch.opt_input(&t.mask)?,
            param: launch.update(t.param)?,
            m: launch.update(t.m)?.untyped_mut(),
            v: launch.update(t.v)?.untyped_mut(),
            ..AdamWTensor::zeroed()
        });
    }
    run(launch, "adamw", tensors, &[], &a.settings, a.outcome)
}

pub(crate) fn adamw_8bit(gpu: &Arc<Gpu>, a: AdamW8bit<'_>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::ADAMW);
    let mut tensors = Vec::with_capacity(a.tensors.len());
    for t in a.tensors {
        tensors.push(AdamWTensor {
            count: t.grad.numel(),
            grad: launch.input(&t.grad)?,
            mask: launch.opt_input(&t.mask)?,
            param: launch.update(t.param)?,
            m: launch.update(t.m)?.untyped_mut(),
            v: launch.update(t.v)?.untyped_mut(),
            m_absmax: launch.update(t.m_absmax)?,
            v_absmax: launch.update(t.v_absmax)?,
            ..AdamWTensor::zeroed()
        });
    }
    let maps = [*dynamic_map(true), *dynamic_map(false)].concat();
    run(launch, "adamw_8bit", tensors, &maps, &a.settings, a.outcome)
}

/// Launches the check and `kernel`, and reads the outcome. A refused step brings nothing back.
fn run(
    mut launch: LaunchArgs<'_>,
    kernel: &str,
    mut tensors: Vec<AdamWTensor>,
    maps: &[f32],
    settings: &AdamWSettings,
    outcome: &mut AdamWOutcome,
) -> Result<()> {
    *outcome = AdamWOutcome::default();
    if tensors.iter().all(|t| t.count == 0) {
        return launch.finish();
    }
    let step = Step::new(&mut launch, maps, settings)?;
    step.launch(&mut launch, &["adamw_check", kernel], &mut tensors)?;
    *outcome = step.outcome(&launch)?;
    if outcome.non_finite.is_some() {
        return Ok(());
    }
    launch.finish()
}

/// One step: launches over lists of tensors that share coefficients and an outcome.
pub(crate) struct Step(AdamWParams);

impl Step {
    pub fn new(
        launch: &mut LaunchArgs<'_>,
        maps: &[f32],
        settings: &AdamWSettings,
    ) -> Result<Step> {
        let c = Coefficients::new(settings);
        Ok(Step(AdamWParams {
            tensors: Ptr::NULL,
            maps: if maps.is_empty() { Ptr::NULL } else { launch.table(maps)? },
            outcome: launch.state(&[u64::MAX, 0, 0, 0])?,
            tensor_count: 0,
            beta1: c.beta1,
            one_minus_beta1: c.one_minus_beta1,
            beta2: c.beta2,
            one_minus_beta2: c.one_minus_beta2,
            eps: c.eps,
            grad_scale: c.grad_scale,
            inverse_root: c.inverse_root,
            step: c.step,
            decay: c.decay,
            decay_after: (settings.decay == DecayOrder::After) as i32,
        }))
    }

    /// Starts the kernels one after another, each over all tensors.
    pub fn launch(
        &self,
        launch: &mut LaunchArgs<'_>,
        kernels: &[&str],
        tensors: &mut [AdamWTensor],
    ) -> Result<()> {
        // An empty tensor has no block; the numbers of the others stay those of the caller.
        let mut blocks = 0;
        for t in &mut *tensors {
            t.first_block = blocks;
            blocks += (t.count as u64).div_ceil(CHUNK) as i64;
        }
        if blocks == 0 {
            return Ok(());
        }
        let (tensors, tensor_count) = (launch.table(tensors)?, tensors.len() as i64);
        let params = AdamWParams { tensors, tensor_count, ..self.0 };
        let grid = Grid::linear(blocks as u32, THREADS as u32);
        kernels.iter().try_for_each(|kernel| launch.start(kernel, grid, &params))
    }

    /// What the launches did; waits for them.
    pub fn outcome(&self, launch: &LaunchArgs<'_>) -> Result<AdamWOutcome> {
        let found = launch.fetch(self.0.outcome, 4)?;
        let of = |what: Outcome| found[what as usize];
        let bad = of(Outcome::Bad);
        if bad != u64::MAX {
            let (tensor, element) = (bad >> 40, bad & ((1 << 40) - 1));
            let non_finite = Some((tensor as usize, element as usize));
            return Ok(AdamWOutcome { non_finite, ..AdamWOutcome::default() });
        }
        Ok(AdamWOutcome {
            non_finite: None,
            updated: of(Outcome::Updated),
            unchanged: of(Outcome::Unchanged),
            absorbed_bf16: of(Outcome::Absorbed),
        })
    }
}
