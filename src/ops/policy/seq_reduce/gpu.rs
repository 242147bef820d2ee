//! Per-sequence reductions on the GPU: one launch, a block a sequence.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::seq_reduce::{SeqBroadcast, SeqReduce, SeqReduction};

/// Threads of a block.
const THREADS: u32 = 128;

/// `SeqReduceParams` of `kernels/policy/seq_reduce.cu`.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct Params {
    x: Column,
    mask: Column,
    cu_seqlens: Column,
    y: Column,
    count: Column,
    tokens: i64,
    reduction: i32,
    mean: i32,
}

pub(crate) fn seq_reduce<R: Real>(gpu: &Arc<Gpu>, a: SeqReduce<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::SEQ_REDUCE);
    let sequences = a.y.extent(0) as u32;
    let params = Params {
        x: launch.column(&a.x)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        tokens: a.x.numel(),
        y: launch.column_out(a.y)?,
        count: launch.column_out(a.count)?,
        reduction: match a.reduction {
            SeqReduction::Sum => 0,
            SeqReduction::Mean => 1,
            SeqReduction::Max => 2,
            SeqReduction::Min => 3,
        },
        mean: 0,
    };
    let kernel = format!("seq_reduce_{}", R::DTYPE.name());
    launch.start(&kernel, Grid::linear(sequences, THREADS), &params)?;
    launch.finish()
}

pub(crate) fn seq_broadcast<R: Real>(gpu: &Arc<Gpu>, a: SeqBroadcast<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::SEQ_REDUCE);
    let sequences = a.x.extent(0) as u32;
    let params = Params {
        x: launch.column(&a.x)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        tokens: a.y.numel(),
        y: launch.column_out(a.y)?,
        mean: a.mean as i32,
        ..Params::default()
    };
    let kernel = format!("seq_broadcast_{}", R::DTYPE.name());
    launch.start(&kernel, Grid::linear(sequences, THREADS), &params)?;
    launch.finish()
}
