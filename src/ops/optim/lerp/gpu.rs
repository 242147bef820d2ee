//! Interpolation on the GPU.

use std::sync::Arc;

use crate::device::params::lerp::{LerpParams, THREADS, TILE};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::optim::lerp::Lerp;

pub(crate) fn lerp<T: Float>(gpu: &Arc<Gpu>, args: Lerp<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::LERP);
    let n = args.a.numel() as u64;
    let params = LerpParams {
        a: launch.input(&args.a)?.untyped(),
        b: launch.input(&args.b)?.untyped(),
        y: launch.output(args.y)?.untyped_mut(),
        n: n as i64,
        lambda: args.weight,
    };
    let grid = Grid::linear(n.div_ceil(TILE) as u32, THREADS as u32);
    launch.start(&format!("lerp_{}", T::DTYPE.name()), grid, &params)?;
    launch.finish()
}
