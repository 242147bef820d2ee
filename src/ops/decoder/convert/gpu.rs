//! Conversion between dtypes on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::Convert;

/// Threads of a block.
const THREADS: u64 = 256;

/// Elements of a block, 16 a thread.
const TILE: u64 = THREADS * 16;

/// `ConvertParams` of `kernels/decoder/convert.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    x: u64,
    y: u64,
    n: i64,
}

pub(crate) fn convert<S: Float, T: Float>(gpu: &Arc<Gpu>, a: Convert<'_, S, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::CONVERT);
    let n = a.x.numel();
    let params = Params { x: launch.input(&a.x)?, y: launch.output(a.y)?, n };
    let grid = Grid::linear((n as u64).div_ceil(TILE) as u32, THREADS as u32);
    launch.start(&format!("convert_{}_{}", S::DTYPE.name(), T::DTYPE.name()), grid, &params)?;
    launch.finish()
}
