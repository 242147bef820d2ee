//! SwiGLU and its gradients on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::swiglu::{BLOCK_BYTES, SwigluParams, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::{Swiglu, SwigluBwd};

pub(crate) fn swiglu<T: Float>(gpu: &Arc<Gpu>, a: Swiglu<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::SWIGLU);
    let params = SwigluParams {
        gate: launch.input(&a.gate)?,
        up: launch.input(&a.up)?,
        columns: a.gate.extent(1) as i64,
        gate_stride: a.gate.stride(0),
        up_stride: a.up.stride(0),
        y_stride: a.y.stride(0),
        y: launch.output(a.y)?,
        ..SwigluParams::zeroed()
    };
    let grid = grid::<T>(a.gate.extent(0), a.gate.extent(1));
    launch.start(&format!("swiglu_{}", T::DTYPE.name()), grid, &params)?;
    launch.finish()
}

pub(crate) fn swiglu_bwd<T: Float>(gpu: &Arc<Gpu>, a: SwigluBwd<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::SWIGLU);
    let params = SwigluParams {
        gate: launch.input(&a.gate)?,
        up: launch.input(&a.up)?,
        dy: launch.input(&a.dy)?,
        columns: a.gate.extent(1) as i64,
        gate_stride: a.gate.stride(0),
        up_stride: a.up.stride(0),
        dy_stride: a.dy.stride(0),
        dgate_stride: a.dgate.stride(0),
        dup_stride: a.dup.stride(0),
        dgate: launch.output(a.dgate)?,
        dup: launch.output(a.dup)?,
        ..SwigluParams::zeroed()
    };
    let grid = grid::<T>(a.gate.extent(0), a.gate.extent(1));
    launch.start(&format!("swiglu_bwd_{}", T::DTYPE.name()), grid, &params)?;
    launch.finish()
}

fn grid<T>(rows: usize, columns: usize) -> Grid {
    let bytes = (columns * size_of::<T>()) as u64;
    let blocks = [rows as u32, bytes.div_ceil(BLOCK_BYTES) as u32, 1];
    Grid { blocks, ..Grid::linear(1, THREADS as u32) }
}
