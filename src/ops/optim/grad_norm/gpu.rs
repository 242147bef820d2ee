//! The global norm on the GPU: one launch over all tensors.

use std::sync::Arc;

use crate::device::params::grad_norm::{CHUNK, GradNormParams, GradTensor, STAGE_BYTES, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::optim::grad_norm::{GlobalNorm, GradNorm};

pub(crate) fn grad_norm<T: Float>(gpu: &Arc<Gpu>, a: GradNorm<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GRAD_NORM);
    let (mut tensors, mut chunks) = (Vec::with_capacity(a.grads.len()), 0);
    for grad in a.grads.iter().filter(|grad| grad.numel() > 0) {
        let (g, length) = (launch.input(grad)?.untyped(), grad.numel());
        tensors.push(GradTensor { g, length, first_chunk: chunks as i64 });
        chunks += (length as u64).div_ceil(CHUNK);
    }
    let mut value = 0.0;
    if chunks > 0 {
        let blocks = chunks.div_ceil(STAGE_BYTES / (CHUNK * size_of::<T>() as u64));
        let scratch = launch.scratch(blocks as usize * size_of::<f64>())?;
        let params = GradNormParams {
            tensors: launch.table(&tensors)?,
            partial: scratch.ptr(),
            norm: launch.values::<f64>(1)?,
            ticket: scratch.ticket(),
            count: tensors.len() as i64,
            chunks: chunks as i64,
        };
        let kernel = format!("grad_norm_{}", T::DTYPE.name());
        launch.start(&kernel, Grid::linear(blocks as u32, THREADS as u32), &params)?;
        drop(scratch);
        value = launch.fetch::<f64>(params.norm, 1)?[0];
    }
    launch.finish()?;
    *a.norm = GlobalNorm { value, finite: value.is_finite() };
    Ok(())
}
