//! The critic's loss on the GPU: one launch over tiles of tokens.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::value_loss::ValueLoss;

/// Threads of a block.
const THREADS: u32 = 256;

/// Tokens of a block.
const TILE: usize = 4096;

/// `ValueLossParams` of `kernels/policy/value_loss.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    value: Column,
    returns: Column,
    old_value: Column,
    mask: Column,
    dvalue: Column,
    partial: u64,
    loss: u64,
    ticket: u64,
    tokens: i64,
    clip: f64,
    weight: f64,
}

pub(crate) fn value_loss<R: Real>(gpu: &Arc<Gpu>, a: ValueLoss<'_, R>) -> Result<()> {
    let tokens = a.value.extent(0);
    if tokens == 0 {
        *a.loss = 0.0;
        return Ok(());
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::VALUE_LOSS);
    let blocks = tokens.div_ceil(TILE);
    let scratch = launch.scratch(blocks * size_of::<f64>())?;
    let params = Params {
        value: launch.column(&a.value)?,
        returns: launch.column(&a.returns)?,
        old_value: launch.opt_column(&a.old_value)?,
        mask: launch.opt_column(&a.mask)?,
        dvalue: launch.column_out(a.dvalue)?,
        partial: scratch.ptr(),
        loss: launch.values::<f64>(1)?,
        ticket: scratch.ticket(),
        tokens: tokens as i64,
        clip: a.clip,
        weight: a.weight,
    };
    let kernel = format!("value_loss_{}", R::DTYPE.name());
    launch.start(&kernel, Grid::linear(blocks as u32, THREADS), &params)?;
    drop(scratch);
    *a.loss = launch.fetch::<f64>(params.loss, 1)?[0];
    launch.finish()
}
