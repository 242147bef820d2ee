//! 4-bit dequantization on the GPU.

use std::sync::Arc;

use crate::device::params::nf4::BlockMax;
use crate::device::params::nf4_dequantize::{Nf4DequantizeParams, THREADS, TILE};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Element;
use crate::error::Result;
use crate::ops::quantize::nf4_dequantize::Nf4Dequantize;

/// Blocks of threads from which on a warp takes several runs of values, up to 8: what a block reads
/// before its first value (the code book, the table of nested maxima) is then read less often, and
/// there are still four blocks for every multiprocessor of an H200.
const ENOUGH_BLOCKS: u64 = 512;

pub(crate) fn nf4_dequantize<T: Element>(gpu: &Arc<Gpu>, a: Nf4Dequantize<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::NF4_DEQUANTIZE);
    let (w, dims) = (&a.w, *a.y.dims());
    let (y, packed) = (launch.output(a.y)?, launch.input(&w.packed)?);
    let tiles = (w.n as u64 * w.k as u64).div_ceil(TILE);
    let params = Nf4DequantizeParams {
        packed,
        code: launch.column(&w.code)?,
        max: BlockMax::new(&mut launch, w)?,
        y,
        rows: w.n as i64,
        columns: w.k as i64,
        row_stride: dims.strides()[0],
        dtype: BlockMax::dtype_code(w.dtype),
        linear: (dims.is_contiguous()
            && y.address().is_multiple_of(16)
            && packed.address().is_multiple_of(4)) as i32,
        runs: (tiles / ENOUGH_BLOCKS).clamp(1, 8) as i64,
    };
    let blocks = tiles.div_ceil(params.runs as u64) as u32;
    let kernel = format!("nf4_dequantize_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(blocks, THREADS as u32), &params)?;
    launch.finish()
}
