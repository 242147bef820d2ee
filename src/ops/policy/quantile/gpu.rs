//! Order statistics on the GPU: a block a scope, one launch.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, KernelSet, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::quantile::{OnNan, Quantile, QuantileMethod, QuantileScope, TopFraction};

/// Threads of a block.
const THREADS: u32 = 512;

/// `QuantileParams` of `kernels/policy/quantile.cu`.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct Params {
    x: Column,
    class: Column,
    cu_seqlens: Column,
    y: Column,
    keep: Column,
    tokens: i64,
    q: f64,
    method: i32,
    ranked: i32,
    nan_result: i32,
    others: i32,
    keeps_none: i32,
    cluster: i32,
}

/// Blocks that share a large scope, on devices with clusters: as many as all of them can place.
const CLUSTER: u32 = 8;
/// Tokens from which they do: below, one block is done before another could help.
const SHARED_TOKENS: i64 = 32 * THREADS as i64;

/// The ranked class that stands for every class but 0.
const NONZERO: i32 = -1;

pub(crate) fn quantile<R: Real>(gpu: &Arc<Gpu>, a: Quantile<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::QUANTILE);
    let outputs = a.y.extent(0) as u32;
    let cluster = cluster(gpu, outputs, a.x.numel());
    let params = Params {
        x: launch.column(&a.x)?,
        class: launch.opt_column(&a.mask)?,
        cu_seqlens: offsets(&mut launch, &a.scope)?,
        y: launch.column_out(a.y)?,
        tokens: a.x.numel(),
        q: a.q,
        method: a.method as i32,
        ranked: NONZERO,
        nan_result: (a.on_nan == OnNan::Error) as i32,
        cluster: cluster as i32,
        ..Params::default()
    };
    let kernel = format!("quantile_{}", R::DTYPE.name());
    launch.start(&kernel, grid(outputs, cluster), &params)?;
    launch.finish()
}

pub(crate) fn top_fraction<R: Real>(gpu: &Arc<Gpu>, a: TopFraction<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::QUANTILE);
    let outputs = match &a.scope {
        QuantileScope::All => 1,
        QuantileScope::PerSequence(offsets) => offsets.extent(0) as u32 - 1,
    };
    let cluster = cluster(gpu, outputs, a.x.numel());
    let params = Params {
        x: launch.column(&a.x)?,
        class: launch.opt_column(&a.class.map(|c| c.class_ids))?,
        cu_seqlens: offsets(&mut launch, &a.scope)?,
        y: launch.column_out(a.threshold)?,
        keep: launch.column_out(a.keep)?,
        tokens: a.x.numel(),
        q: 1.0 - a.fraction,
        method: QuantileMethod::Linear as i32,
        ranked: a.class.map_or(NONZERO, |c| c.ranked as i32),
        nan_result: 1,
        others: a.class.is_some_and(|c| c.others) as i32,
        keeps_none: (a.fraction == 0.0) as i32,
        cluster: cluster as i32,
    };
    let kernel = format!("quantile_{}", R::DTYPE.name());
    launch.start(&kernel, grid(outputs, cluster), &params)?;
    launch.finish()
}

/// Blocks of a scope: several only where a single one has many tokens.
fn cluster(gpu: &Gpu, scopes: u32, tokens: i64) -> u32 {
    let clusters = gpu.kernel_set() == KernelSet::Sm90a;
    if clusters && scopes == 1 && tokens >= SHARED_TOKENS { CLUSTER } else { 1 }
}

fn grid(scopes: u32, cluster: u32) -> Grid {
    Grid { cluster, ..Grid::linear(scopes * cluster, THREADS) }
}

fn offsets(launch: &mut LaunchArgs<'_>, scope: &QuantileScope<'_>) -> Result<Column> {
    match scope {
        QuantileScope::All => Ok(Column::default()),
        QuantileScope::PerSequence(offsets) => launch.column(offsets),
    }
}
