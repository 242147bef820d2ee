//! The critic's loss on the GPU: one launch over tiles of tokens.

use std::sync::Arc;

use crate::device::params::value_loss::{THREADS, TILE, ValueLossParams};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::value_loss::ValueLoss;

pub(crate) fn value_loss<R: Real>(gpu: &Arc<Gpu>, a: ValueLoss<'_, R>) -> Result<()> {
    let tokens = a.value.extent(0);
    if tokens == 0 {
        *a.loss = 0.0;
        return Ok(());
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::VALUE_LOSS);
    let blocks = tokens.div_ceil(TILE as usize);
    let scratch = launch.scratch(blocks * size_of::<f64>())?;
    let params = ValueLossParams {
        value: launch.column(&a.value)?,
        returns: launch.column(&a.returns)?,
        old_value: launch.opt_column(&a.old_value)?,
        mask: launch.opt_column(&a.mask)?,
        dvalue: launch.column_out(a.dvalue)?,
        partial: scratch.ptr(),
        loss: launch.values(1)?,
        ticket: scratch.ticket(),
        tokens: tokens as i64,
        clip: a.clip,
        weight: a.weight,
    };
    let kernel = format!("value_loss_{}", R::DTYPE.name());
    launch.start(&kernel, Grid::linear(blocks as u32, THREADS as u32), &params)?;
    drop(scratch);
    *a.loss = launch.fetch(params.loss, 1)?[0];
    launch.finish()
}
