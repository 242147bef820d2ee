//! 4-bit quantization on the GPU.

use std::sync::Arc;

use crate::check::Check;
use crate::device::params::nf4_quantize::{
    GROUP, MEAN_THREADS, NESTED, Nf4AbsmaxParams, Nf4QuantizeParams, THREADS,
};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::quantize::nf4_quantize::{NESTED_BLOCKSIZE, Nf4Quantize, Nf4QuantizeAbsmax};

const _: () = assert!(NESTED == NESTED_BLOCKSIZE as u64);

/// Waits for the device, which looks for values that are not finite.
pub(crate) fn nf4_quantize<T: Float>(
    gpu: &Arc<Gpu>,
    check: Check,
    a: Nf4Quantize<'_, T>,
) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::NF4_QUANTIZE);
    let numel = a.x.numel() as u64;
    let thresholds = a.quant_type.thresholds();
    let params = Nf4QuantizeParams {
        rows: a.x.extent(0) as i64,
        columns: a.x.extent(1) as i64,
        row_stride: a.x.stride(0),
        x: launch.input(&a.x)?,
        packed: launch.output(a.packed)?,
        absmax: launch.column_out(a.absmax)?,
        bad: launch.state(&[0u64])?,
        blocksize: a.blocksize as i64,
        bounds: thresholds.bounds,
        order: thresholds.order,
        unused: [0; 4],
    };
    let grid = Grid::linear(numel.div_ceil(GROUP) as u32, THREADS as u32);
    launch.start(&format!("nf4_quantize_{}", T::DTYPE.name()), grid, &params)?;
    match launch.fetch(params.bad, 1)?[0] {
        0 => launch.finish(),
        found => Err(Error::NonFinite { op: check.0, arg: "x".into(), index: !found as usize }),
    }
}

pub(crate) fn nf4_quantize_absmax(gpu: &Arc<Gpu>, a: Nf4QuantizeAbsmax<'_>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::NF4_QUANTIZE);
    let blocks = a.absmax.numel();
    let params = Nf4AbsmaxParams {
        absmax: launch.column(&a.absmax)?,
        table: launch.column(&a.table)?,
        codes: launch.column_out(a.codes)?,
        nested: launch.column_out(a.nested)?,
        offset: launch.values::<f32>(1)?,
        blocks,
    };
    let nested = (blocks as u64).div_ceil(NESTED) as u32;
    launch.start("nf4_absmax_mean", Grid::linear(1, MEAN_THREADS as u32), &params)?;
    launch.start("nf4_quantize_absmax", Grid::linear(nested, NESTED as u32), &params)?;
    *a.offset = launch.fetch(params.offset, 1)?[0];
    launch.finish()
}
