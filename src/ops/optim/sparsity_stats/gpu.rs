//! Update statistics and deltas on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs};
use crate::dtype::{Element, Float};
use crate::error::Result;
use crate::ops::optim::sparsity_stats::{DeltaApply, DeltaEncode, SparsityStats, UpdateSparsity};
use crate::view::View;

/// Threads of a block.
const THREADS: u32 = 256;
/// Rows that the warps of a block take at a time.
const ROWS: u64 = 8;
/// Blocks that fill a multiprocessor: 64 registers a thread.
const BLOCKS_PER_MULTIPROCESSOR: u64 = 4;
/// Elements whose changes one block counts.
const CHUNK: usize = 16384;

/// `SparsityStatsParams` of `kernels/optim/sparsity_stats.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    w0: u64,
    w1: u64,
    row_nnz: Column,
    partial: u64,
    result: u64,
    ticket: u64,
    rows: i64,
    columns: i64,
    w0_stride: i64,
    w1_stride: i64,
    tol: f64,
}

/// `SparsityCounts` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Counts {
    equal: i64,
    within: i64,
    absorbed: i64,
    bad: i64,
    max_delta: f64,
}

/// The key that says every value is finite.
const NO_KEY: i64 = i64::MAX;

/// Argument and flat index of a value that is not finite.
type NotFinite = (&'static str, usize);

/// Counts, or the first value that is not finite; then nothing in host memory was written.
pub(crate) fn sparsity_stats<T: Float>(
    gpu: &Arc<Gpu>,
    a: SparsityStats<'_, T>,
) -> Result<std::result::Result<(), NotFinite>> {
    let mut launch = LaunchArgs::new(gpu, "sparsity_stats");
    let (rows, columns) = (a.w0.extent(0) as u64, a.w0.extent(1));
    let filled = BLOCKS_PER_MULTIPROCESSOR * gpu.info().multiprocessors as u64;
    let blocks = rows.div_ceil(ROWS).min(filled.max(1));
    let mut counts = Counts { bad: NO_KEY, ..Counts::zeroed() };
    if blocks > 0 {
        let scratch = launch.scratch(blocks as usize * size_of::<Counts>())?;
        let params = Params {
            w0: launch.input(&a.w0)?,
            w1: launch.input(&a.w1)?,
            row_nnz: launch.column_out(a.row_nnz)?,
            partial: scratch.ptr(),
            result: launch.values::<Counts>(1)?,
            ticket: scratch.ticket(),
            rows: rows as i64,
            columns: columns as i64,
            w0_stride: a.w0.stride(0),
            w1_stride: a.w1.stride(0),
            tol: a.tol,
        };
        let kernel = format!("sparsity_stats_{}", T::DTYPE.name());
        launch.start(&kernel, Grid::linear(blocks as u32, THREADS), &params)?;
        drop(scratch);
        counts = launch.fetch::<Counts>(params.result, 1)?[0];
    }
    if counts.bad != NO_KEY {
        return Ok(Err(locate(counts.bad as usize, columns)));
    }
    launch.finish()?;
    *a.stats = UpdateSparsity {
        n: rows * columns as u64,
        equal_exact: counts.equal as u64,
        within_tol: counts.within as u64,
        absorbed_bf16: counts.absorbed as u64,
        max_delta: counts.max_delta,
    };
    Ok(Ok(()))
}

/// What a key `row·3K + operand·K + column` says. A difference that overflows has no column.
fn locate(key: usize, columns: usize) -> NotFinite {
    let (row, rest) = (key / (3 * columns), key % (3 * columns));
    match rest / columns {
        0 => ("w0", row * columns + rest),
        1 => ("w1", row * columns + rest % columns),
        _ => ("w1", row * columns),
    }
}

/// `DeltaParams` of `kernels/optim/delta.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DeltaParams {
    old: u64,
    new: u64,
    before: u64,
    ticket: u64,
    index: u64,
    value: u64,
    n: i64,
    capacity: i64,
}

/// Number of elements whose bits differ.
pub(crate) fn delta_count<T: Element>(
    gpu: &Arc<Gpu>,
    old: View<'_, T>,
    new: View<'_, T>,
) -> Result<usize> {
    let mut launch = LaunchArgs::new(gpu, "delta");
    let mut params = operands(&mut launch, &old, &new)?;
    count(&mut launch, &mut params, bits::<T>())
}

/// Encodes, or returns the number of changes if there is no room for them.
pub(crate) fn delta_encode<T: Element>(
    gpu: &Arc<Gpu>,
    a: DeltaEncode<'_, T>,
) -> Result<std::result::Result<(), usize>> {
    let mut launch = LaunchArgs::new(gpu, "delta");
    let capacity = a.index.extent(0);
    let mut params = operands(&mut launch, &a.old, &a.new)?;
    let changes = count(&mut launch, &mut params, bits::<T>())?;
    if changes > capacity {
        return Ok(Err(changes));
    }
    // What lies behind the changes keeps its content.
    params.index = launch.update(a.index)?;
    params.value = launch.update(a.value)?;
    params.capacity = capacity as i64;
    if changes > 0 {
        let kernel = format!("delta_encode_b{}", bits::<T>());
        launch.start(&kernel, chunks(params.n), &params)?;
    }
    launch.finish()?;
    *a.count = changes;
    Ok(Ok(()))
}

fn bits<T>() -> usize {
    8 * size_of::<T>()
}

fn chunks(n: i64) -> Grid {
    Grid::linear((n as usize).div_ceil(CHUNK) as u32, THREADS)
}

fn operands<T: Element>(
    launch: &mut LaunchArgs<'_>,
    old: &View<'_, T>,
    new: &View<'_, T>,
) -> Result<DeltaParams> {
    let (old, new, n) = (launch.input(old)?, launch.input(new)?, old.numel());
    Ok(DeltaParams { old, new, n, ..DeltaParams::zeroed() })
}

/// Counts the changes before each chunk and all of them.
fn count(launch: &mut LaunchArgs<'_>, params: &mut DeltaParams, bits: usize) -> Result<usize> {
    let grid = chunks(params.n);
    if params.n == 0 {
        return Ok(0);
    }
    let count = grid.blocks[0] as usize;
    params.before = launch.values::<i64>(count + 1)?;
    let scratch = launch.scratch(1)?;
    params.ticket = scratch.ticket();
    launch.start(&format!("delta_count_b{bits}"), grid, params)?;
    drop(scratch);
    let total = params.before + (count * size_of::<i64>()) as u64;
    Ok(launch.fetch::<i64>(total, 1)?[0] as usize)
}

/// `DeltaApplyParams` of `kernels/optim/delta.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DeltaApplyParams {
    index: u64,
    value: u64,
    target: u64,
    count: i64,
    n: i64,
}

pub(crate) fn delta_apply<T: Element>(gpu: &Arc<Gpu>, a: DeltaApply<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "delta");
    let params = DeltaApplyParams {
        index: launch.input(&a.index)?,
        value: launch.input(&a.value)?,
        n: a.target.numel(),
        target: launch.update(a.target)?,
        count: a.index.numel(),
    };
    let blocks = (params.count as u64).div_ceil(THREADS as u64) as u32;
    launch.start(
        &format!("delta_apply_b{}", bits::<T>()),
        Grid::linear(blocks, THREADS),
        &params,
    )?;
    launch.finish()
}
