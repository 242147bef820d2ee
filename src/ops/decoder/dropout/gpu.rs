//! Dropout on the GPU.

use std::sync::Arc;

use crate::device::params::dropout::{DropoutParams, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::decoder::dropout::{Dropout, factor, threshold};

pub(crate) fn dropout<T: Float>(gpu: &Arc<Gpu>, a: Dropout<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::DROPOUT);
    let rows = a.x.extent(0);
    let params = DropoutParams {
        x_stride: a.x.stride(0),
        y_stride: a.y.stride(0),
        columns: a.x.extent(1) as i64,
        stream: launch.column(&a.streams)?,
        position: launch.column(&a.positions)?,
        x: launch.input(&a.x)?,
        y: match a.accumulate {
            true => launch.update(a.y)?,
            false => launch.output(a.y)?,
        },
        factor: factor(a.p, a.scale),
        key: a.key,
        threshold: threshold(a.p),
        accumulate: a.accumulate as u32,
    };
    let kernel = format!("dropout_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(rows as u32, THREADS as u32), &params)?;
    launch.finish()
}
