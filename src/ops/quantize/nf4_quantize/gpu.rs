//! 4-bit quantisation and dequantisation on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::check::Check;
use crate::device::{Column, Gpu, Grid, LaunchArgs};
use crate::dtype::{DType, Element, Float};
use crate::error::{Error, Result};
use crate::ops::quantize::nf4_dequantize::Nf4Dequantize;
use crate::ops::quantize::nf4_quantize::{NESTED_BLOCKSIZE, Nf4Quantize, Nf4QuantizeAbsmax};
use crate::quant::{Absmax, Nf4View};

/// Values of a block of threads.
const GROUP: u64 = 4096;

/// `Nf4QuantizeParams` of `kernels/quantize/nf4_quantize.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct QuantizeParams {
    x: u64,
    rows: i64,
    columns: i64,
    row_stride: i64,
    packed: u64,
    absmax: Column,
    bad: u64,
    blocksize: i64,
    bounds: [f32; 15],
    order: [u8; 16],
    unused: [u8; 4],
}

/// Waits for the device, which looks for values that are not finite.
pub(crate) fn nf4_quantize<T: Float>(
    gpu: &Arc<Gpu>,
    check: Check,
    a: Nf4Quantize<'_, T>,
) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "nf4_quantize");
    let numel = a.x.numel() as u64;
    let thresholds = a.quant_type.thresholds();
    let params = QuantizeParams {
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
    let grid = Grid::linear(numel.div_ceil(GROUP) as u32, GROUP as u32 / 8);
    launch.start(&format!("nf4_quantize_{}", T::DTYPE.name()), grid, &params)?;
    match launch.fetch::<u64>(params.bad, 1)?[0] {
        0 => launch.finish(),
        found => Err(Error::NonFinite { op: check.0, arg: "x".into(), index: !found as usize }),
    }
}

/// `Nf4AbsmaxParams` of `kernels/quantize/nf4_quantize.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AbsmaxParams {
    absmax: Column,
    table: Column,
    codes: Column,
    nested: Column,
    offset: u64,
    blocks: i64,
}

pub(crate) fn nf4_quantize_absmax(gpu: &Arc<Gpu>, a: Nf4QuantizeAbsmax<'_>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "nf4_quantize");
    let blocks = a.absmax.numel();
    let params = AbsmaxParams {
        absmax: launch.column(&a.absmax)?,
        table: launch.column(&a.table)?,
        codes: launch.column_out(a.codes)?,
        nested: launch.column_out(a.nested)?,
        offset: launch.values::<f32>(1)?,
        blocks,
    };
    let nested = (blocks as u64).div_ceil(NESTED_BLOCKSIZE as u64) as u32;
    launch.start("nf4_absmax_mean", Grid::linear(1, 32), &params)?;
    launch.start("nf4_quantize_absmax", Grid::linear(nested, NESTED_BLOCKSIZE as u32), &params)?;
    *a.offset = launch.fetch::<f32>(params.offset, 1)?[0];
    launch.finish()
}

/// Threads of a block in `kernels/quantize/nf4_dequantize.cu`, and the values they take at a time.
const THREADS: u32 = 256;
const TILE: u64 = 8 * 1024;

/// Blocks of threads from which on a warp takes several runs of values, up to 8: what a block reads
/// before its first value (the code book, the table of nested maxima) is then read less often, and
/// there are still four blocks for every multiprocessor of an H200.
const ENOUGH_BLOCKS: u64 = 512;

/// `BlockMax` of `kernels/quantize/nf4.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockMax {
    absmax: Column,
    codes: Column,
    nested: Column,
    table: Column,
    nested_blocksize: i64,
    offset: f32,
    block_shift: i32,
}

impl BlockMax {
    pub fn new(launch: &mut LaunchArgs<'_>, w: &Nf4View<'_>) -> Result<BlockMax> {
        let mut max = BlockMax {
            nested_blocksize: 1,
            block_shift: w.blocksize.trailing_zeros() as i32,
            ..BlockMax::zeroed()
        };
        match &w.absmax {
            Absmax::F32(absmax) => max.absmax = launch.column(absmax)?,
            Absmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                max.codes = launch.column(codes)?;
                max.nested = launch.column(nested)?;
                max.table = launch.column(table)?;
                (max.offset, max.nested_blocksize) = (*offset, *nested_blocksize as i64);
            }
        }
        Ok(max)
    }

    /// Whether a maximum spans whole blocks of 64 values, and nested ones a power of two of maxima.
    pub fn is_regular(&self) -> bool {
        self.block_shift >= 6 && (self.nested_blocksize as u64).is_power_of_two()
    }

    /// Whether four 8-bit maxima of 64 values each can be read at once and share a nested maximum.
    pub fn in_quads(&self) -> bool {
        let Column { at, stride } = self.codes;
        let aligned = at != 0 && at.is_multiple_of(4) && stride == 1;
        aligned && self.block_shift == 6 && self.nested_blocksize % 4 == 0
    }

    /// Logarithm of the nested block size, if it is a power of two.
    pub fn nested_shift(&self) -> i32 {
        self.nested_blocksize.trailing_zeros() as i32
    }

    /// The dtype that was quantised in the kernels' numbers.
    pub fn dtype_code(dtype: DType) -> i32 {
        match dtype {
            DType::Bf16 => 1,
            DType::F16 => 2,
            _ => 0,
        }
    }
}

/// `Nf4DequantizeParams` of `kernels/quantize/nf4_dequantize.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DequantizeParams {
    packed: u64,
    code: Column,
    max: BlockMax,
    y: u64,
    rows: i64,
    columns: i64,
    row_stride: i64,
    dtype: i32,
    linear: i32,
    runs: i64,
}

pub(crate) fn nf4_dequantize<T: Element>(gpu: &Arc<Gpu>, a: Nf4Dequantize<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "nf4_dequantize");
    let (w, dims) = (&a.w, *a.y.dims());
    let (y, packed) = (launch.output(a.y)?, launch.input(&w.packed)?);
    let tiles = (w.n as u64 * w.k as u64).div_ceil(TILE);
    let params = DequantizeParams {
        packed,
        code: launch.column(&w.code)?,
        max: BlockMax::new(&mut launch, w)?,
        y,
        rows: w.n as i64,
        columns: w.k as i64,
        row_stride: dims.strides()[0],
        dtype: BlockMax::dtype_code(w.dtype),
        linear: (dims.is_contiguous() && y.is_multiple_of(16) && packed.is_multiple_of(4)) as i32,
        runs: (tiles / ENOUGH_BLOCKS).clamp(1, 8) as i64,
    };
    let blocks = tiles.div_ceil(params.runs as u64) as u32;
    let kernel = format!("nf4_dequantize_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(blocks, THREADS), &params)?;
    launch.finish()
}
