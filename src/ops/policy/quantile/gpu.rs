//! Order statistics on the GPU: one launch, one block per scope.

use std::sync::Arc;

use crate::device::params::quantile::{Method, QuantileParams, THREADS};
use crate::device::{Column, Const, Gpu, Grid, KernelSet, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::quantile::{OnNan, Quantile, QuantileMethod, QuantileScope, TopFraction};

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
    let params = QuantileParams {
        x: launch.column(&a.x)?,
        klass: launch.opt_column(&a.mask)?,
        cu_seqlens: offsets(&mut launch, &a.scope)?,
        y: launch.column_out(a.y)?,
        tokens: a.x.numel(),
        q: a.q,
        method: match a.method {
            QuantileMethod::Linear => Method::Linear,
            QuantileMethod::Lower => Method::Lower,
            QuantileMethod::Higher => Method::Higher,
        },
        ranked: NONZERO,
        nan_result: (a.on_nan == OnNan::Error) as i32,
        others: 0,
        keep: Column::NONE,
        keeps_none: 0,
        cluster: cluster as i32,
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
    let params = QuantileParams {
        x: launch.column(&a.x)?,
        klass: launch.opt_column(&a.class.map(|c| c.class_ids))?,
        cu_seqlens: offsets(&mut launch, &a.scope)?,
        y: launch.column_out(a.threshold)?,
        keep: launch.column_out(a.keep)?,
        tokens: a.x.numel(),
        q: 1.0 - a.fraction,
        method: Method::Linear,
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
    Grid { cluster, ..Grid::linear(scopes * cluster, THREADS as u32) }
}

fn offsets(launch: &mut LaunchArgs<'_>, scope: &QuantileScope<'_>) -> Result<Column<Const<i64>>> {
    match scope {
        QuantileScope::All => Ok(Column::NONE),
        QuantileScope::PerSequence(offsets) => launch.column(offsets),
    }
}
