//! The global norm on the GPU: one launch over all tensors.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::optim::grad_norm::{GlobalNorm, GradNorm};

/// Threads of a block.
const THREADS: u32 = 256;
/// Elements of a chunk.
const CHUNK: u64 = 4096;
/// Chunks of a block.
const CHUNKS: u64 = 16;

/// `GradTensor` of `kernels/optim/grad_norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Tensor {
    g: u64,
    length: i64,
    first_chunk: i64,
}

/// `GradNormParams` of `kernels/optim/grad_norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    tensors: u64,
    partial: u64,
    norm: u64,
    ticket: u64,
    count: i64,
    chunks: i64,
}

pub(crate) fn grad_norm<T: Float>(gpu: &Arc<Gpu>, a: GradNorm<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GRAD_NORM);
    let (mut tensors, mut chunks) = (Vec::with_capacity(a.grads.len()), 0);
    for grad in a.grads.iter().filter(|grad| grad.numel() > 0) {
        let (g, length) = (launch.input(grad)?, grad.numel());
        tensors.push(Tensor { g, length, first_chunk: chunks as i64 });
        chunks += (length as u64).div_ceil(CHUNK);
    }
    let mut value = 0.0;
    if chunks > 0 {
        let blocks = chunks.div_ceil(CHUNKS);
        let scratch = launch.scratch(blocks as usize * size_of::<f64>())?;
        let params = Params {
            tensors: launch.table(&tensors)?,
            partial: scratch.ptr(),
            norm: launch.values::<f64>(1)?,
            ticket: scratch.ticket(),
            count: tensors.len() as i64,
            chunks: chunks as i64,
        };
        let kernel = format!("grad_norm_{}", T::DTYPE.name());
        launch.start(&kernel, Grid::linear(blocks as u32, THREADS), &params)?;
        drop(scratch);
        value = launch.fetch::<f64>(params.norm, 1)?[0];
    }
    launch.finish()?;
    *a.norm = GlobalNorm { value, finite: value.is_finite() };
    Ok(())
}
