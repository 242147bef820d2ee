//! RMSNorm and its gradients on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::rmsnorm::{CHAINS, DweightParams, RmsNormParams, THREADS};
use crate::device::{Column, Gpu, Grid, LaunchArgs, Ptr, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::{RmsNorm, RmsNormBwd};

/// Threads of a row: one for every two pieces of 16 bytes, as far as a block has them.
fn lanes<T>(columns: usize) -> u64 {
    let pieces = (columns * size_of::<T>()).div_ceil(16) as u64;
    pieces.div_ceil(2).next_power_of_two().clamp(CHAINS, THREADS)
}

fn grid<T>(params: &RmsNormParams<T>) -> Grid {
    let rows_of_block = THREADS / params.lanes as u64;
    Grid::linear((params.rows as u64).div_ceil(rows_of_block) as u32, THREADS as u32)
}

pub(crate) fn rmsnorm<T: Float>(gpu: &Arc<Gpu>, a: RmsNorm<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::RMSNORM);
    let (rows, columns) = (a.x.extent(0), a.x.extent(1));
    let params = RmsNormParams {
        x: launch.input(&a.x)?,
        weight: launch.column(&a.weight)?,
        rows: rows as i64,
        columns: columns as i64,
        x_stride: a.x.stride(0),
        out_stride: a.y.stride(0),
        out: launch.output(a.y)?,
        rstd: launch.column_out(a.rstd)?,
        eps: a.eps,
        lanes: lanes::<T>(columns) as i64,
        ..RmsNormParams::zeroed()
    };
    let grid = grid(&params);
    launch.start(&format!("rmsnorm_{}", T::DTYPE.name()), grid, &params)?;
    launch.finish()
}

pub(crate) fn rmsnorm_bwd<T: Float>(gpu: &Arc<Gpu>, a: RmsNormBwd<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::RMSNORM);
    let (rows, columns) = (a.x.extent(0), a.x.extent(1));
    if rows == 0 {
        return Ok(());
    }
    let scratch =
        a.dweight.as_ref().map(|_| launch.scratch(rows * size_of::<f64>())).transpose()?;
    let params = RmsNormParams {
        x: launch.input(&a.x)?,
        dy: launch.input(&a.dy)?,
        residual: launch.opt_input(&a.residual)?,
        weight: launch.column(&a.weight)?,
        scale: scratch.as_ref().map_or(Ptr::NULL, |s| s.ptr()),
        rows: rows as i64,
        columns: columns as i64,
        x_stride: a.x.stride(0),
        dy_stride: a.dy.stride(0),
        residual_stride: a.residual.as_ref().map_or(0, |r| r.stride(0)),
        out_stride: a.dx.stride(0),
        out: launch.output(a.dx)?,
        eps: a.eps,
        lanes: lanes::<T>(columns) as i64,
        ..RmsNormParams::zeroed()
    };
    let grid = grid(&params);
    launch.start(&format!("rmsnorm_bwd_{}", T::DTYPE.name()), grid, &params)?;
    if let Some(dweight) = a.dweight {
        let params = DweightParams {
            x: params.x,
            dy: params.dy,
            scale: params.scale.as_const(),
            dweight: Column { stride: dweight.stride(0), at: launch.update(dweight)? },
            rows: params.rows,
            columns: params.columns,
            x_stride: params.x_stride,
            dy_stride: params.dy_stride,
        };
        let grid = Grid::linear((columns as u64).div_ceil(THREADS) as u32, THREADS as u32);
        launch.start(&format!("rmsnorm_dweight_{}", T::DTYPE.name()), grid, &params)?;
    }
    launch.finish()
}
