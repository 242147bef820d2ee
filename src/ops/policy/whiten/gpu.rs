//! Whitening on the GPU, in two launches: moments, then the result.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::whiten::{Whiten, WhitenStats};

/// Threads of a block.
const THREADS: u32 = 256;

/// Tokens whose moments one block takes.
const CHUNK: usize = 4096;

/// `WhitenParams` of `kernels/policy/gae.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WhitenParams {
    x: Column,
    mask: Column,
    y: Column,
    chunks: u64,
    totals: u64,
    ticket: u64,
    tokens: i64,
    eps: f64,
    count_eps: f64,
    ddof: i64,
    eps_form: i64,
    shift_mean: i64,
}

/// Moments of a chunk of tokens: `Chunk` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Chunk {
    count: i64,
    moments: [f64; 4],
}

/// `WhitenTotals` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Totals {
    count: i64,
    low: f64,
    rise: f64,
    variance: f64,
    inverse: f64,
}

pub(crate) fn whiten<R: Real>(gpu: &Arc<Gpu>, a: Whiten<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GAE);
    let tokens = a.x.extent(0);
    let blocks = tokens.div_ceil(CHUNK);
    let s = a.settings;
    let scratch = launch.scratch(blocks * size_of::<Chunk>() + size_of::<Totals>())?;
    let totals = scratch.ptr();
    let params = WhitenParams {
        x: launch.column(&a.x)?,
        mask: launch.opt_column(&a.mask)?,
        y: launch.column_out(a.y)?,
        chunks: totals + size_of::<Totals>() as u64,
        totals,
        ticket: scratch.ticket(),
        tokens: tokens as i64,
        eps: s.eps,
        count_eps: s.count_eps,
        ddof: s.ddof as i64,
        eps_form: s.eps_form as i64,
        shift_mean: s.shift_mean as i64,
    };
    let grid = Grid::linear(blocks as u32, THREADS);
    launch.start(&format!("whiten_moments_{}", R::DTYPE.name()), grid, &params)?;
    launch.start(&format!("whiten_{}", R::DTYPE.name()), grid, &params)?;
    // Device views may be empty: then there is nothing to fetch.
    let wanted = if a.stats.is_some() && blocks > 0 { 1 } else { 0 };
    let measured = launch.fetch::<Totals>(totals, wanted)?;
    drop(scratch);
    launch.finish()?;
    if let Some(stats) = a.stats {
        *stats = measured.first().map_or(WhitenStats::default(), |t| WhitenStats {
            count: t.count as usize,
            mean: t.low + t.rise,
            std: t.variance.sqrt(),
        });
    }
    Ok(())
}
