//! Update statistics on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::optim::sparsity_stats::{SparsityStats, UpdateSparsity};

/// Threads of a block.
const THREADS: u32 = 256;
/// Rows that the warps of a block take at a time.
const ROWS: u64 = 8;
/// Blocks that fill a multiprocessor: 64 registers a thread.
const BLOCKS_PER_MULTIPROCESSOR: u64 = 4;

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
    let mut launch = LaunchArgs::new(gpu, &shipped::SPARSITY_STATS);
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
