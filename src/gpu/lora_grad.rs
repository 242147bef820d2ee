//! Gradients of low-rank adapters on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Stage};
use crate::dtype::{DType, Float};
use crate::error::Result;
use crate::gpu::product::{Dense, Factor, LowRank, Way, grid, low_rank};
use crate::ops::LoraGrad;

/// `LoraGradParams` of `kernels/lora_grad.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    left: Dense,
    right: Dense,
    rows: i64,
    columns: i64,
    depth: i64,
    adapter: Column,
    index: i64,
    out: u64,
    row_stride: i64,
    column_stride: i64,
}

pub(crate) fn lora_grad<T: Float>(gpu: &Arc<Gpu>, a: LoraGrad<'_, T>) -> Result<()> {
    let LoraGrad { x, dy, s, lora, adapter, index, da, db } = a;
    let (m, k, n, rank) = (x.extent(0), x.extent(1), dy.extent(1), s.extent(1));
    if m == 0 {
        return Ok(());
    }
    let mut stage = Stage::new(gpu, "lora_grad");
    let wide = T::DTYPE == DType::F64;
    let scratch = stage.scratch(m * rank * if wide { 8 } else { 4 })?;
    let gradient = Dense::rows(&mut stage, &dy)?;
    let low = LowRank {
        way: Way::Backward,
        left: gradient,
        rows: m as i64,
        depth: n as i64,
        rank: rank as i64,
        factors: &[Factor { side: Dense::columns(&mut stage, &lora.b)?, scale: lora.scale }],
        index: Column::default(),
        low: scratch.ptr(),
        low_stride: rank as i64,
        s: 0,
        s_stride: 0,
        parts: 0,
    };
    low_rank::<T>(&mut stage, gpu, "lora_grad", &low)?;
    let da_params = Params {
        left: Dense::packed(scratch.ptr(), rank as i64).turned(),
        right: Dense::columns(&mut stage, &x)?,
        rows: rank as i64,
        columns: k as i64,
        depth: m as i64,
        adapter: stage.opt_column(&adapter)?,
        index: index as i64,
        row_stride: da.stride(0),
        column_stride: 1,
        out: stage.update(da)?,
    };
    let kernel = format!("lora_grad_{}", T::DTYPE.name());
    stage.launch(&kernel, grid("lora_grad", rank as i64, k as i64)?, &da_params)?;
    let db_params = Params {
        left: Dense::columns(&mut stage, &s)?,
        right: gradient.turned(),
        columns: n as i64,
        row_stride: 1,
        column_stride: db.stride(0),
        out: stage.update(db)?,
        ..da_params
    };
    let kernel = if wide { "lora_grad_kept_f64".into() } else { kernel };
    stage.launch(&kernel, grid("lora_grad", rank as i64, n as i64)?, &db_params)?;
    stage.finish()
}
