//! Whitening on the GPU, in two launches: moments, then the result.

use std::sync::Arc;

use crate::device::params::gae::{CHUNK, Chunk, THREADS, WhitenParams, WhitenTotals};
use crate::device::{Gpu, Grid, LaunchArgs, Ptr, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::whiten::{Whiten, WhitenStats};

pub(crate) fn whiten<R: Real>(gpu: &Arc<Gpu>, a: Whiten<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GAE);
    let tokens = a.x.extent(0);
    let blocks = tokens.div_ceil(CHUNK as usize);
    let s = a.settings;
    let scratch = launch.scratch(blocks * size_of::<Chunk>() + size_of::<WhitenTotals>())?;
    let totals: Ptr<WhitenTotals> = scratch.ptr();
    let params = WhitenParams {
        x: launch.column(&a.x)?,
        mask: launch.opt_column(&a.mask)?,
        y: launch.column_out(a.y)?,
        chunks: totals.byte_add(size_of::<WhitenTotals>()).cast(),
        totals,
        ticket: scratch.ticket(),
        tokens: tokens as i64,
        eps: s.eps,
        count_eps: s.count_eps,
        ddof: s.ddof as i64,
        eps_form: s.eps_form.of_kernel(),
        shift_mean: s.shift_mean as i32,
    };
    let grid = Grid::linear(blocks as u32, THREADS as u32);
    launch.start(&format!("whiten_moments_{}", R::DTYPE.name()), grid, &params)?;
    launch.start(&format!("whiten_{}", R::DTYPE.name()), grid, &params)?;
    // Device views may be empty: then there is nothing to fetch.
    let wanted = if a.stats.is_some() && blocks > 0 { 1 } else { 0 };
    let measured = launch.fetch(totals, wanted)?;
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
