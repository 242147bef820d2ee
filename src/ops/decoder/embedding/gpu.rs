//! Token embedding and its gradient on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, Stage};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::{Embedding, EmbeddingBwd};

/// `EmbeddingParams` of `kernels/embedding.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    ids: Column,
    table: u64,
    dy: u64,
    y: u64,
    dtable: u64,
    tokens: i64,
    vocab: i64,
    columns: i64,
    table_stride: i64,
    y_stride: i64,
    dy_stride: i64,
    dtable_stride: i64,
}

pub(crate) fn embedding<T: Float>(gpu: &Arc<Gpu>, a: Embedding<'_, T>) -> Result<()> {
    let mut stage = Stage::new(gpu, "embedding");
    let tokens = a.ids.extent(0);
    let params = Params {
        ids: stage.column(&a.ids)?,
        table: stage.input(&a.table)?,
        tokens: tokens as i64,
        vocab: a.table.extent(0) as i64,
        columns: a.table.extent(1) as i64,
        table_stride: a.table.stride(0),
        y_stride: a.y.stride(0),
        y: stage.output(a.y)?,
        ..Params::zeroed()
    };
    let kernel = format!("embedding_{}", T::DTYPE.name());
    stage.launch(&kernel, Grid::linear(tokens as u32, 128), &params)?;
    stage.finish()
}

pub(crate) fn embedding_bwd<T: Float>(gpu: &Arc<Gpu>, a: EmbeddingBwd<'_, T>) -> Result<()> {
    let mut stage = Stage::new(gpu, "embedding");
    let tokens = a.ids.extent(0);
    let params = Params {
        ids: stage.column(&a.ids)?,
        dy: stage.input(&a.dy)?,
        tokens: tokens as i64,
        vocab: a.dtable.extent(0) as i64,
        columns: a.dtable.extent(1) as i64,
        dy_stride: a.dy.stride(0),
        dtable_stride: a.dtable.stride(0),
        dtable: stage.update(a.dtable)?,
        ..Params::zeroed()
    };
    let kernel = format!("embedding_bwd_{}", T::DTYPE.name());
    stage.launch(&kernel, Grid::linear(tokens as u32, 128), &params)?;
    stage.finish()
}
