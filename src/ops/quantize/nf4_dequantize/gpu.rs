//! 4-bit dequantization on the GPU.

use std::sync::Arc;

use crate::device::params::nf4::BlockMax;
use crate::device::params::nf4_dequantize::{Nf4DequantizeParams, THREADS, TILE};
use crate::device::{Gpu, Grid, LaunchArgs, Ptr, shipped};
use crate::dtype::Element;
use crate::error::Result;
use crate::ops::quantize::nf4_dequantize::Nf4Dequantize;
use crate::quant::Nf4View;

/// Blocks of threads from which on a warp takes several runs of values, up to 8: what a block reads
/// before its first value (the code book, the table of nested maxima) is then read less often, and
/// there are still four blocks for every multiprocessor of an H200.
const ENOUGH_BLOCKS: u64 = 512;

pub(crate) fn nf4_dequantize<T: Element>(gpu: &Arc<Gpu>, a: Nf4Dequantize<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::NF4_DEQUANTIZE);
    let dims = *a.y.dims();
    let y = launch.output(a.y)?;
    start(&mut launch, gpu, &a.w, y, (dims.strides()[0], dims.is_contiguous()))?;
    launch.finish()
}

/// Starts the launch that writes `w` to `y`, whose rows are `stride` apart, `contiguous` or not.
pub(in crate::ops) fn start<T: Element>(
    launch: &mut LaunchArgs<'_>,
    gpu: &Gpu,
    w: &Nf4View<'_>,
    y: Ptr<T>,
    (stride, contiguous): (i64, bool),
) -> Result<()> {
    let tiles = (w.n as u64 * w.k as u64).div_ceil(TILE);
    if tiles == 0 {
        return Ok(());
    }
    let packed = launch.input(&w.packed)?;
    let params = Nf4DequantizeParams {
        packed,
        code: launch.column(&w.code)?,
        max: BlockMax::new(launch, w)?,
        y,
        rows: w.n as i64,
        columns: w.k as i64,
        row_stride: stride,
        dtype: BlockMax::dtype_code(w.dtype),
        linear: (contiguous && y.address().is_multiple_of(16) && packed.address().is_multiple_of(4))
            as i32,
        runs: (tiles / ENOUGH_BLOCKS).clamp(1, 8) as i64,
    };
    let blocks = tiles.div_ceil(params.runs as u64) as u32;
    let kernel = format!("nf4_dequantize_{}", T::DTYPE.name());
    gpu.launch(&shipped::NF4_DEQUANTIZE, &kernel, Grid::linear(blocks, THREADS as u32), &params)
}
