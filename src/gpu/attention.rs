//! Attention and its gradients on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, Stage};
use crate::dtype::{DType, Element, Float};
use crate::error::{Error, Result};
use crate::ops::{Attention, AttentionBwd, KvRows};
use crate::view::{View, ViewMut};

/// Threads of a block, and its warps: one (row, head) each.
const THREADS: u32 = 128;
const WARPS: u64 = 4;

/// `Heads` of `kernels/attention.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Heads {
    at: u64,
    row: i64,
    head: i64,
}

impl Heads {
    fn read<T: Element>(stage: &mut Stage<'_>, view: &View<'_, T>) -> Result<Heads> {
        Ok(Heads { at: stage.input(view)?, row: view.stride(0), head: view.stride(1) })
    }

    fn written<'a, T: Element>(stage: &mut Stage<'a>, view: ViewMut<'a, T>) -> Result<Heads> {
        let (row, head) = (view.stride(0), view.stride(1));
        Ok(Heads { at: stage.output(view)?, row, head })
    }
}

/// `Pages` of `kernels/attention.cuh`; no address if keys lie one after another.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct Pages {
    table: u64,
    stride: i64,
    width: i64,
    shift: i64,
}

/// `Sequences` of `kernels/attention.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Sequences {
    cu_seqlens: Column,
    kv_start: Column,
    kv_len: Column,
    pages: Pages,
    count: i64,
    tokens: i64,
    rows: i64,
}

impl Pages {
    fn new(stage: &mut Stage<'_>, table: &View<'_, i32>, size: usize) -> Result<Pages> {
        Ok(Pages {
            table: stage.input(table)?,
            stride: table.stride(0),
            width: table.extent(1) as i64,
            shift: size.trailing_zeros() as i64,
        })
    }
}

impl Sequences {
    fn new(
        stage: &mut Stage<'_>,
        [cu_seqlens, kv_len]: [&View<'_, i64>; 2],
        kv_rows: &KvRows<'_>,
        [tokens, rows]: [usize; 2],
    ) -> Result<Sequences> {
        let (kv_start, pages) = match kv_rows {
            KvRows::From(start) => (stage.column(start)?, Pages::default()),
            KvRows::Pages { table, size } => (Column::default(), Pages::new(stage, table, *size)?),
        };
        Ok(Sequences {
            cu_seqlens: stage.column(cu_seqlens)?,
            kv_start,
            kv_len: stage.column(kv_len)?,
            pages,
            count: kv_len.extent(0) as i64,
            tokens: tokens as i64,
            rows: rows as i64,
        })
    }
}

/// `AttentionParams` of `kernels/attention.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    q: Heads,
    k: Heads,
    v: Heads,
    o: Heads,
    sequences: Sequences,
    lse: u64,
    lse_stride: i64,
    heads: i64,
    group: i64,
    d: i64,
    scale: f64,
}

/// `AttentionBwdParams` of `kernels/attention_bwd.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BwdParams {
    q: Heads,
    k: Heads,
    v: Heads,
    dout: Heads,
    dq: Heads,
    dk: Heads,
    dv: Heads,
    sequences: Sequences,
    stats: u64,
    heads: i64,
    group: i64,
    d: i64,
    scale: f64,
    scale2: f64,
}

pub(crate) fn attention<T: Float>(gpu: &Arc<Gpu>, a: Attention<'_, T>) -> Result<()> {
    let (tokens, heads, d) = (a.q.extent(0), a.q.extent(1), a.q.extent(2));
    let grid = grid::<T>(gpu, "attention", tokens * heads, d, 2)?;
    let mut stage = Stage::new(gpu, "attention");
    let tables = [&a.cu_seqlens, &a.kv_len];
    let params = Params {
        q: Heads::read(&mut stage, &a.q)?,
        k: Heads::read(&mut stage, &a.k)?,
        v: Heads::read(&mut stage, &a.v)?,
        o: Heads::written(&mut stage, a.o)?,
        sequences: Sequences::new(&mut stage, tables, &a.kv_rows, [tokens, a.k.extent(0)])?,
        lse_stride: a.lse.as_ref().map_or(0, |lse| lse.stride(0)),
        lse: stage.opt_output(a.lse)?,
        heads: heads as i64,
        group: (heads / a.k.extent(1)) as i64,
        d: d as i64,
        scale: a.scale * std::f64::consts::LOG2_E,
    };
    stage.launch(&format!("attention_{}", T::DTYPE.name()), grid, &params)?;
    stage.finish()
}

pub(crate) fn attention_bwd<T: Float>(gpu: &Arc<Gpu>, a: AttentionBwd<'_, T>) -> Result<()> {
    let (tokens, heads, d) = (a.q.extent(0), a.q.extent(1), a.q.extent(2));
    let (rows, kv_heads) = (a.k.extent(0), a.k.extent(1));
    let dq_grid = grid::<T>(gpu, "attention_bwd", tokens * heads, d, 3)?;
    let dkv_grid = grid::<T>(gpu, "attention_bwd", rows * kv_heads, d, 4)?;
    let mut stage = Stage::new(gpu, "attention_bwd");
    let scratch = stage.scratch(tokens * heads * 3 * size_of::<f64>())?;
    let (tables, kv_rows) = ([&a.cu_seqlens, &a.kv_len], KvRows::From(a.kv_start));
    let params = BwdParams {
        q: Heads::read(&mut stage, &a.q)?,
        k: Heads::read(&mut stage, &a.k)?,
        v: Heads::read(&mut stage, &a.v)?,
        dout: Heads::read(&mut stage, &a.dout)?,
        dq: Heads::written(&mut stage, a.dq)?,
        dk: Heads::written(&mut stage, a.dk)?,
        dv: Heads::written(&mut stage, a.dv)?,
        sequences: Sequences::new(&mut stage, tables, &kv_rows, [tokens, rows])?,
        stats: scratch.ptr(),
        heads: heads as i64,
        group: (heads / kv_heads) as i64,
        d: d as i64,
        scale: a.scale,
        scale2: a.scale * std::f64::consts::LOG2_E,
    };
    stage.launch(&format!("attention_dq_{}", T::DTYPE.name()), dq_grid, &params)?;
    stage.launch(&format!("attention_dkv_{}", T::DTYPE.name()), dkv_grid, &params)?;
    stage.finish()
}

/// A warp for each of `units`, with `vectors` of `d` elements of shared memory.
fn grid<T: Float>(
    gpu: &Gpu,
    op: &'static str,
    units: usize,
    d: usize,
    vectors: usize,
) -> Result<Grid> {
    let size = if T::DTYPE == DType::F64 { 8 } else { 4 };
    let shared = WARPS as usize * vectors * d * size;
    if shared > gpu.info().shared_per_block as usize {
        let most = gpu.info().shared_per_block as usize / (WARPS as usize * vectors * size);
        return Err(Error::invalid(
            op,
            "q",
            format!("D = {d}"),
            format!("at most {most} on this GPU"),
        ));
    }
    let blocks = (units as u64).div_ceil(WARPS);
    if blocks > i32::MAX as u64 {
        return Err(Error::invalid(
            op,
            "q",
            format!("{units} rows of heads"),
            "at most 2^33 on a GPU",
        ));
    }
    Ok(Grid { shared: shared as u32, ..Grid::linear(blocks as u32, THREADS) })
}
