//! Update statistics on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::sparsity_stats::{
    NO_KEY, ROWS, SparsityCounts, SparsityStatsParams, THREADS,
};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::optim::sparsity_stats::{SparsityStats, UpdateSparsity};

/// Blocks that fill a multiprocessor: 64 registers per thread.
const BLOCKS_PER_MULTIPROCESSOR: u64 = 4;

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
    let mut counts = SparsityCounts { bad: NO_KEY as i64, ..SparsityCounts::zeroed() };
    if blocks > 0 {
        let scratch = launch.scratch(blocks as usize * size_of::<SparsityCounts>())?;
        let params = SparsityStatsParams {
            w0: launch.input(&a.w0)?.untyped(),
            w1: launch.input(&a.w1)?.untyped(),
            row_nnz: launch.column_out(a.row_nnz)?,
            partial: scratch.ptr(),
            result: launch.values::<SparsityCounts>(1)?,
            ticket: scratch.ticket(),
            rows: rows as i64,
            columns: columns as i64,
            w0_stride: a.w0.stride(0),
            w1_stride: a.w1.stride(0),
            tol: a.tol,
        };
        let kernel = format!("sparsity_stats_{}", T::DTYPE.name());
        launch.start(&kernel, Grid::linear(blocks as u32, THREADS as u32), &params)?;
        drop(scratch);
        counts = launch.fetch(params.result, 1)?[0];
    }
    if counts.bad != NO_KEY as i64 {
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
