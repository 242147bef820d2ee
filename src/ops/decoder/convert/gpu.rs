//! Conversion between dtypes on the GPU.

use std::sync::Arc;

use crate::device::params::convert::{ConvertParams, THREADS, TILE};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::Convert;

pub(crate) fn convert<S: Float, T: Float>(gpu: &Arc<Gpu>, a: Convert<'_, S, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::CONVERT);
    let n = a.x.numel();
    let (x, y) = (launch.input(&a.x)?.untyped(), launch.output(a.y)?.untyped_mut());
    let params = ConvertParams { x, y, n };
    let grid = Grid::linear((n as u64).div_ceil(TILE) as u32, THREADS as u32);
    launch.start(&format!("convert_{}_{}", S::DTYPE.name(), T::DTYPE.name()), grid, &params)?;
    launch.finish()
}
