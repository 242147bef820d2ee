//! AdamW on the GPU: a check and an update launch over all tensors, no wait between them.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::error::Result;
use crate::ops::optim::adamw::cpu::Coefficients;
use crate::ops::optim::adamw::{AdamW, AdamW8bit, AdamWOutcome, AdamWSettings, DecayOrder};
use crate::quant::dynamic_map;

/// Threads of a block.
const THREADS: u32 = 256;

/// Elements of a block.
const CHUNK: u64 = 4096;

/// `AdamWTensor` of `kernels/optim/adamw.cu`.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Tensor {
    pub param: u64,
    pub grad: u64,
    pub m: u64,
    pub v: u64,
    pub m_absmax: u64,
    pub v_absmax: u64,
    pub mask: u64,
    pub count: i64,
    pub first_block: i64,
}

/// `AdamWParams` of `kernels/optim/adamw.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    tensors: u64,
    maps: u64,
    outcome: u64,
    tensor_count: i64,
    coefficients: [f32; 9],
    decay_after: i32,
}

pub(crate) fn adamw(gpu: &Arc<Gpu>, a: AdamW<'_>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::ADAMW);
    let mut tensors = Vec::with_capacity(a.tensors.len());
    for t in a.tensors {
        tensors.push(Tensor {
            count: t.grad.numel(),
            grad: launch.input(&t.grad)?,
            mask: launch.opt_input(&t.mask)?,
            param: launch.update(t.param)?,
            m: launch.update(t.m)?,
            v: launch.update(t.v)?,
            ..Tensor::default()
        });
    }
    run(launch, "adamw", tensors, &[], &a.settings, a.outcome)
}

pub(crate) fn adamw_8bit(gpu: &Arc<Gpu>, a: AdamW8bit<'_>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::ADAMW);
    let mut tensors = Vec::with_capacity(a.tensors.len());
    for t in a.tensors {
        tensors.push(Tensor {
            count: t.grad.numel(),
            grad: launch.input(&t.grad)?,
            mask: launch.opt_input(&t.mask)?,
            param: launch.update(t.param)?,
            m: launch.update(t.m)?,
            v: launch.update(t.v)?,
            m_absmax: launch.update(t.m_absmax)?,
            v_absmax: launch.update(t.v_absmax)?,
            ..Tensor::default()
        });
    }
    let maps = [*dynamic_map(true), *dynamic_map(false)].concat();
    run(launch, "adamw_8bit", tensors, &maps, &a.settings, a.outcome)
}

/// Launches the check and `kernel`, and reads the outcome. A refused step brings nothing back.
fn run(
    mut launch: LaunchArgs<'_>,
    kernel: &str,
    mut tensors: Vec<Tensor>,
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
pub(crate) struct Step(Params);

impl Step {
    pub fn new(
        launch: &mut LaunchArgs<'_>,
        maps: &[f32],
        settings: &AdamWSettings,
    ) -> Result<Step> {
        Ok(Step(Params {
            tensors: 0,
            maps: if maps.is_empty() { 0 } else { launch.table(maps)? },
            outcome: launch.state(&[u64::MAX, 0, 0, 0])?,
            tensor_count: 0,
            coefficients: Coefficients::new(settings).as_array(),
            decay_after: (settings.decay == DecayOrder::After) as i32,
        }))
    }

    /// Starts the kernels one after another, each over all tensors.
    pub fn launch(
        &self,
        launch: &mut LaunchArgs<'_>,
        kernels: &[&str],
        tensors: &mut [Tensor],
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
        let params = Params { tensors, tensor_count, ..self.0 };
        let grid = Grid::linear(blocks as u32, THREADS);
        kernels.iter().try_for_each(|kernel| launch.start(kernel, grid, &params))
    }

    /// What the launches did; waits for them.
    pub fn outcome(&self, launch: &LaunchArgs<'_>) -> Result<AdamWOutcome> {
        let found = launch.fetch::<u64>(self.0.outcome, 4)?;
        if found[0] != u64::MAX {
            let (tensor, element) = (found[0] >> 40, found[0] & ((1 << 40) - 1));
            let non_finite = Some((tensor as usize, element as usize));
            return Ok(AdamWOutcome { non_finite, ..AdamWOutcome::default() });
        }
        let [_, updated, unchanged, absorbed_bf16] = found[..] else {
            return Ok(AdamWOutcome::default());
        };
        Ok(AdamWOutcome { non_finite: None, updated, unchanged, absorbed_bf16 })
    }
}
