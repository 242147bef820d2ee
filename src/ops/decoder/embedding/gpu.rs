//! Token embedding and its gradient on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::embedding::{EmbeddingParams, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::{Embedding, EmbeddingBwd};

pub(crate) fn embedding<T: Float>(gpu: &Arc<Gpu>, a: Embedding<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::EMBEDDING);
    let tokens = a.ids.extent(0);
    let params = EmbeddingParams {
        ids: launch.column(&a.ids)?,
        table: launch.input(&a.table)?,
        tokens: tokens as i64,
        vocab: a.table.extent(0) as i64,
        columns: a.table.extent(1) as i64,
        table_stride: a.table.stride(0),
        y_stride: a.y.stride(0),
        y: launch.output(a.y)?,
        ..EmbeddingParams::zeroed()
    };
    let kernel = format!("embedding_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(tokens as u32, THREADS as u32), &params)?;
    launch.finish()
}

pub(crate) fn embedding_bwd<T: Float>(gpu: &Arc<Gpu>, a: EmbeddingBwd<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::EMBEDDING);
    let tokens = a.ids.extent(0);
    let params = EmbeddingParams {
        ids: launch.column(&a.ids)?,
        dy: launch.input(&a.dy)?,
        tokens: tokens as i64,
        vocab: a.dtable.extent(0) as i64,
        columns: a.dtable.extent(1) as i64,
        dy_stride: a.dy.stride(0),
        dtable_stride: a.dtable.stride(0),
        dtable: launch.update(a.dtable)?,
        ..EmbeddingParams::zeroed()
    };
    let kernel = format!("embedding_bwd_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(tokens as u32, THREADS as u32), &params)?;
    launch.finish()
}
