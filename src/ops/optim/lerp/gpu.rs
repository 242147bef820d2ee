//! Interpolation on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::optim::lerp::Lerp;

/// Threads of a block.
const THREADS: u64 = 256;

/// Elements of a block, 4 times 16 bytes of bf16 a thread.
const TILE: u64 = THREADS * 32;

/// `LerpParams` of `kernels/optim/lerp.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    a: u64,
    b: u64,
    y: u64,
    n: i64,
    lambda: f64,
}

pub(crate) fn lerp<T: Float>(gpu: &Arc<Gpu>, args: Lerp<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::LERP);
    let n = args.a.numel() as u64;
    let params = Params {
        a: launch.input(&args.a)?,
        b: launch.input(&args.b)?,
        y: launch.output(args.y)?,
        n: n as i64,
        lambda: args.weight,
    };
    let grid = Grid::linear(n.div_ceil(TILE) as u32, THREADS as u32);
    launch.start(&format!("lerp_{}", T::DTYPE.name()), grid, &params)?;
    launch.finish()
}
