//! Order statistics on the GPU: a block a scope, one launch.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, Stage};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::quantile::{OnNan, Quantile, QuantileMethod, QuantileScope, TopFraction};

/// Threads of a block.
const THREADS: u32 = 512;

/// `QuantileParams` of `kernels/quantile.cu`.
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
    padding: i32,
}

/// The ranked class that stands for every class but 0.
const NONZERO: i32 = -1;

pub(crate) fn quantile<R: Real>(gpu: &Arc<Gpu>, a: Quantile<'_, R>) -> Result<()> {
    let mut stage = Stage::new(gpu, "quantile");
    let outputs = a.y.extent(0) as u32;
    let params = Params {
        x: stage.column(&a.x)?,
        class: stage.opt_column(&a.mask)?,
        cu_seqlens: offsets(&mut stage, &a.scope)?,
        y: stage.column_out(a.y)?,
        tokens: a.x.numel(),
        q: a.q,
        method: a.method as i32,
        ranked: NONZERO,
        nan_result: (a.on_nan == OnNan::Error) as i32,
        ..Params::default()
    };
    let kernel = format!("quantile_{}", R::DTYPE.name());
    stage.launch(&kernel, Grid::linear(outputs, THREADS), &params)?;
    stage.finish()
}

pub(crate) fn top_fraction<R: Real>(gpu: &Arc<Gpu>, a: TopFraction<'_, R>) -> Result<()> {
    let mut stage = Stage::new(gpu, "quantile");
    let outputs = match &a.scope {
        QuantileScope::All => 1,
        QuantileScope::PerSequence(offsets) => offsets.extent(0) as u32 - 1,
    };
    let params = Params {
        x: stage.column(&a.x)?,
        class: stage.opt_column(&a.class.map(|c| c.class))?,
        cu_seqlens: offsets(&mut stage, &a.scope)?,
        y: stage.opt_column_out(a.threshold)?,
        keep: stage.column_out(a.keep)?,
        tokens: a.x.numel(),
        q: 1.0 - a.fraction,
        method: QuantileMethod::Linear as i32,
        ranked: a.class.map_or(NONZERO, |c| c.ranked as i32),
        nan_result: 1,
        others: a.class.is_some_and(|c| c.others) as i32,
        keeps_none: (a.fraction == 0.0) as i32,
        padding: 0,
    };
    let kernel = format!("quantile_{}", R::DTYPE.name());
    stage.launch(&kernel, Grid::linear(outputs, THREADS), &params)?;
    stage.finish()
}

fn offsets(stage: &mut Stage<'_>, scope: &QuantileScope<'_>) -> Result<Column> {
    match scope {
        QuantileScope::All => Ok(Column::default()),
        QuantileScope::PerSequence(offsets) => stage.column(offsets),
    }
}
