//! AdamW on the GPU: a check and an update launch over all tensors, no wait between them.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::cpu::adamw::Coefficients;
use crate::device::{Gpu, Grid, Stage};
use crate::error::Result;
use crate::ops::adamw::{AdamW, AdamW8bit, AdamWOutcome, AdamWSettings, DecayOrder};
use crate::quant::dynamic_map;

/// Threads of a block.
const THREADS: u32 = 256;

/// Elements of a block.
const CHUNK: u64 = 4096;

/// `AdamWTensor` of `kernels/adamw.cu`.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct Tensor {
    param: u64,
    grad: u64,
    m: u64,
    v: u64,
    m_absmax: u64,
    v_absmax: u64,
    mask: u64,
    count: i64,
    first_block: i64,
}

/// `AdamWParams` of `kernels/adamw.cu`.
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
    let mut stage = Stage::new(gpu, "adamw");
    let mut tensors = Vec::with_capacity(a.tensors.len());
    for t in a.tensors {
        tensors.push(Tensor {
            count: t.grad.numel(),
            grad: stage.input(&t.grad)?,
            mask: stage.opt_input(&t.mask)?,
            param: stage.update(t.param)?,
            m: stage.update(t.m)?,
            v: stage.update(t.v)?,
            ..Tensor::default()
        });
    }
    run(stage, "adamw", tensors, &[], &a.settings, a.outcome)
}

pub(crate) fn adamw_8bit(gpu: &Arc<Gpu>, a: AdamW8bit<'_>) -> Result<()> {
    let mut stage = Stage::new(gpu, "adamw");
    let mut tensors = Vec::with_capacity(a.tensors.len());
    for t in a.tensors {
        tensors.push(Tensor {
            count: t.grad.numel(),
            grad: stage.input(&t.grad)?,
            mask: stage.opt_input(&t.mask)?,
            param: stage.update(t.param)?,
            m: stage.update(t.m)?,
            v: stage.update(t.v)?,
            m_absmax: stage.update(t.m_absmax)?,
            v_absmax: stage.update(t.v_absmax)?,
            ..Tensor::default()
        });
    }
    let maps = [*dynamic_map(true), *dynamic_map(false)].concat();
    run(stage, "adamw_8bit", tensors, &maps, &a.settings, a.outcome)
}

/// Launches the check and `kernel`, and reads the outcome. A refused step brings nothing back.
fn run(
    mut stage: Stage<'_>,
    kernel: &str,
    mut tensors: Vec<Tensor>,
    maps: &[f32],
    settings: &AdamWSettings,
    outcome: &mut AdamWOutcome,
) -> Result<()> {
    // An empty tensor has no block; the numbers of the others stay those of the caller.
    let mut blocks = 0;
    for t in &mut tensors {
        t.first_block = blocks;
        blocks += (t.count as u64).div_ceil(CHUNK) as i64;
    }
    *outcome = AdamWOutcome::default();
    if blocks == 0 {
        return stage.finish();
    }
    let c = Coefficients::new(settings);
    let params = Params {
        tensors: stage.table(&tensors)?,
        maps: if maps.is_empty() { 0 } else { stage.table(maps)? },
        outcome: stage.state(&[u64::MAX, 0, 0, 0])?,
        tensor_count: tensors.len() as i64,
        coefficients: c.as_array(),
        decay_after: (settings.decay == DecayOrder::After) as i32,
    };
    let grid = Grid::linear(blocks as u32, THREADS);
    stage.launch("adamw_check", grid, &params)?;
    stage.launch(kernel, grid, &params)?;
    let found = stage.fetch::<u64>(params.outcome, 4)?;
    if found[0] != u64::MAX {
        let (tensor, element) = (found[0] >> 40, found[0] & ((1 << 40) - 1));
        outcome.non_finite = Some((tensor as usize, element as usize));
        return Ok(());
    }
    (outcome.updated, outcome.unchanged, outcome.absorbed_bf16) = (found[1], found[2], found[3]);
    stage.finish()
}
