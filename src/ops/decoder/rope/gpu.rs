//! Rotary embedding on the GPU.

use std::sync::Arc;

use crate::device::params::rope::{RopeParams, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::Rope;

pub(crate) fn rope<T: Float>(gpu: &Arc<Gpu>, a: Rope<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::ROPE);
    let tokens = a.x.extent(0);
    let params = RopeParams {
        token_stride: a.x.stride(0),
        head_stride: a.x.stride(1),
        heads: a.x.extent(1) as i64,
        half: a.x.extent(2) as i64 / 2,
        x: launch.update(a.x)?,
        positions: a.cos.extent(0) as i64,
        position: launch.column(&a.positions)?,
        cos: launch.input(&a.cos)?,
        sin: launch.input(&a.sin)?,
        cos_stride: a.cos.stride(0),
        sin_stride: a.sin.stride(0),
        sign: if a.inverse { -1.0 } else { 1.0 },
    };
    let kernel = format!("rope_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(tokens as u32, THREADS as u32), &params)?;
    launch.finish()
}
