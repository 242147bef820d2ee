//! Per-sequence reductions on the GPU: one launch, one block per sequence.

use std::sync::Arc;

use crate::device::params::seq_reduce::{Reduction, SeqReduceParams, THREADS};
use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::seq_reduce::{SeqBroadcast, SeqReduce, SeqReduction};

pub(crate) fn seq_reduce<R: Real>(gpu: &Arc<Gpu>, a: SeqReduce<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::SEQ_REDUCE);
    let sequences = a.y.extent(0) as u32;
    let params = SeqReduceParams {
        x: launch.column(&a.x)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        tokens: a.x.numel(),
        y: launch.column_out(a.y)?,
        count: launch.column_out(a.count)?,
        reduction: match a.reduction {
            SeqReduction::Sum => Reduction::Sum,
            SeqReduction::Mean => Reduction::Mean,
            SeqReduction::Max => Reduction::Max,
            SeqReduction::Min => Reduction::Min,
        },
        mean: 0,
    };
    let kernel = format!("seq_reduce_{}", R::DTYPE.name());
    launch.start(&kernel, Grid::linear(sequences, THREADS as u32), &params)?;
    launch.finish()
}

pub(crate) fn seq_broadcast<R: Real>(gpu: &Arc<Gpu>, a: SeqBroadcast<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::SEQ_REDUCE);
    let sequences = a.x.extent(0) as u32;
    let params = SeqReduceParams {
        x: launch.column(&a.x)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        tokens: a.y.numel(),
        y: launch.column_out(a.y)?,
        count: Column::NONE,
        reduction: Reduction::Sum,
        mean: a.mean as i32,
    };
    let kernel = format!("seq_broadcast_{}", R::DTYPE.name());
    launch.start(&kernel, Grid::linear(sequences, THREADS as u32), &params)?;
    launch.finish()
}
