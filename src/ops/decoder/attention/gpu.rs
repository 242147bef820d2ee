//! Attention and its gradients on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::attention::{
    AttentionBwdParams, AttentionParams, Heads, Pages, Sequences, THREADS, WARPS,
};
use crate::device::params::attention_mma::{KEY_TILE_TABLES, LIMIT, TILE};
use crate::device::{Column, Const, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::{DType, Element, Float};
use crate::error::{Error, Result};
use crate::ops::{Attention, AttentionBwd, KvRows};
use crate::view::{View, ViewMut};

impl<T: Element> Heads<Const<T>> {
    fn read(launch: &mut LaunchArgs<'_>, view: &View<'_, T>) -> Result<Self> {
        Ok(Heads { at: launch.input(view)?, row: view.stride(0), head: view.stride(1) })
    }
}

impl<T: Element> Heads<T> {
    fn written<'a>(launch: &mut LaunchArgs<'a>, view: ViewMut<'a, T>) -> Result<Self> {
        let (row, head) = (view.stride(0), view.stride(1));
        Ok(Heads { at: launch.output(view)?, row, head })
    }
}

impl Pages {
    fn new(launch: &mut LaunchArgs<'_>, table: &View<'_, i32>, size: usize) -> Result<Pages> {
        Ok(Pages {
            table: launch.input(table)?,
            stride: table.stride(0),
            width: table.extent(1) as i64,
            shift: size.trailing_zeros() as i64,
        })
    }
}

impl Sequences {
    fn new(
        launch: &mut LaunchArgs<'_>,
        [cu_seqlens, kv_len]: [&View<'_, i64>; 2],
        kv_rows: &KvRows<'_>,
        [tokens, rows]: [usize; 2],
    ) -> Result<Sequences> {
        let none = Column::NONE;
        let (kv_start, prefix, pages) = match kv_rows {
            KvRows::From(start) => (launch.column(start)?, [none; 2], Pages::zeroed()),
            KvRows::Pages { table, size } => (none, [none; 2], Pages::new(launch, table, *size)?),
            KvRows::Prefixed { prefix, start } => {
                let prefix = [launch.column(&prefix.start)?, launch.column(&prefix.len)?];
                (launch.column(start)?, prefix, Pages::zeroed())
            }
        };
        let [prefix_start, prefix_len] = prefix;
        Ok(Sequences {
            cu_seqlens: launch.column(cu_seqlens)?,
            kv_start,
            prefix_start,
            prefix_len,
            kv_len: launch.column(kv_len)?,
            pages,
            count: kv_len.extent(0) as i64,
            tokens: tokens as i64,
            rows: rows as i64,
        })
    }
}

pub(crate) fn attention<T: Float>(gpu: &Arc<Gpu>, a: Attention<'_, T>) -> Result<()> {
    let shape = Shape::of(&a.q, &a.k, &a.kv_rows, a.kv_len.extent(0));
    let (dtype, &Shape { tokens, heads, d, .. }) = (T::DTYPE.name(), &shape);
    let (kernels, kernel, grid) = match shape.tensor_width::<T>() {
        Some(width) => {
            (&shipped::ATTENTION_MMA, format!("attention_mma_{dtype}_d{width}"), shape.tiles())
        }
        None => {
            let grid = grid::<T>(gpu, "attention", tokens * heads, d, 2)?;
            (&shipped::ATTENTION, format!("attention_{dtype}"), grid)
        }
    };
    let mut launch = LaunchArgs::new(gpu, kernels);
    let tables = [&a.cu_seqlens, &a.kv_len];
    let params = AttentionParams {
        q: Heads::read(&mut launch, &a.q)?,
        k: Heads::read(&mut launch, &a.k)?,
        v: Heads::read(&mut launch, &a.v)?,
        o: Heads::written(&mut launch, a.o)?,
        sequences: Sequences::new(&mut launch, tables, &a.kv_rows, [tokens, a.k.extent(0)])?,
        lse_stride: a.lse.as_ref().map_or(0, |lse| lse.stride(0)),
        lse: launch.opt_output(a.lse)?,
        heads: heads as i64,
        group: shape.group() as i64,
        d: d as i64,
        scale: a.scale * std::f64::consts::LOG2_E,
    };
    launch.start(&kernel, grid, &params)?;
    launch.finish()
}

pub(crate) fn attention_bwd<T: Float>(gpu: &Arc<Gpu>, a: AttentionBwd<'_, T>) -> Result<()> {
    let kv_rows = a.kv_rows();
    let shape = Shape::of(&a.q, &a.k, &kv_rows, a.kv_len.extent(0));
    let (dtype, &Shape { tokens, heads, d, .. }) = (T::DTYPE.name(), &shape);
    let rows = a.k.extent(0);
    let (kernels, suffix, dq_grid, dkv_grid) = match shape.tensor_width::<T>() {
        Some(width) => {
            let suffix = format!("{dtype}_d{width}");
            (&shipped::ATTENTION_MMA_BWD, suffix, shape.tiles(), shape.key_tiles(rows, width))
        }
        None => {
            let dq = grid::<T>(gpu, "attention_bwd", tokens * heads, d, 3)?;
            let dkv = grid::<T>(gpu, "attention_bwd", rows * shape.kv_heads, d, 4)?;
            (&shipped::ATTENTION_BWD, dtype.to_string(), dq, dkv)
        }
    };
    let mut launch = LaunchArgs::new(gpu, kernels);
    let scratch = launch.scratch(tokens * heads * 3 * size_of::<f64>())?;
    let tables = [&a.cu_seqlens, &a.kv_len];
    let params = AttentionBwdParams {
        q: Heads::read(&mut launch, &a.q)?,
        k: Heads::read(&mut launch, &a.k)?,
        v: Heads::read(&mut launch, &a.v)?,
        dout: Heads::read(&mut launch, &a.dout)?,
        dq: Heads::written(&mut launch, a.dq)?,
        dk: Heads::written(&mut launch, a.dk)?,
        dv: Heads::written(&mut launch, a.dv)?,
        sequences: Sequences::new(&mut launch, tables, &kv_rows, [tokens, rows])?,
        stats: scratch.ptr(),
        heads: heads as i64,
        group: shape.group() as i64,
        d: d as i64,
        scale: a.scale,
        scale2: a.scale * std::f64::consts::LOG2_E,
    };
    let family = kernels.name().trim_end_matches("_bwd");
    launch.start(&format!("{family}_dq_{suffix}"), dq_grid, &params)?;
    launch.start(&format!("{family}_dkv_{suffix}"), dkv_grid, &params)?;
    launch.finish()
}

/// The extents that choose a kernel.
struct Shape {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    /// The most keys that tables could name.
    room: usize,
    sequences: usize,
}

impl Shape {
    fn of<T: Float>(
        q: &View<'_, T>,
        k: &View<'_, T>,
        kv_rows: &KvRows<'_>,
        sequences: usize,
    ) -> Shape {
        let room = match kv_rows {
            KvRows::From(_) => k.extent(0),
            KvRows::Pages { table, size } => table.extent(1).saturating_mul(*size),
            KvRows::Prefixed { .. } => k.extent(0).saturating_mul(2),
        };
        Shape {
            tokens: q.extent(0),
            heads: q.extent(1),
            kv_heads: k.extent(1),
            d: q.extent(2),
            room: room.max(k.extent(0)),
            sequences,
        }
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The width of the tensor-core kernel, if there is one for this dtype, `D` and size.
    fn tensor_width<T: Float>(&self) -> Option<usize> {
        let half = matches!(T::DTYPE, DType::Bf16 | DType::F16);
        let rows = self.tokens.saturating_mul(self.group()).saturating_add(self.sequences);
        let small = (rows.max(self.room) as u64) < LIMIT && self.kv_heads <= u16::MAX as usize;
        let fits = half && small && self.d.is_multiple_of(16);
        [64, 96, 128].into_iter().find(|&width| fits && self.d <= width)
    }

    /// Blocks for the tiles of all sequences and key/value heads: as many as any offsets could
    /// need, so that the launch depends on shapes alone.
    fn tiles(&self) -> Grid {
        let blocks = self.tokens * self.group() / TILE as usize + self.sequences;
        let used = if self.tokens == 0 { 0 } else { blocks as u32 };
        Grid { blocks: [used, self.kv_heads as u32, 1], ..Grid::linear(used, THREADS as u32) }
    }

    /// Blocks for the rows of k and v and all key/value heads, each with four tiles of shared memory.
    fn key_tiles(&self, rows: usize, width: usize) -> Grid {
        let blocks = (rows as u64).div_ceil(TILE) as u32;
        let shared = 4 * TILE * (width as u64 + 8) * 2 + KEY_TILE_TABLES;
        Grid {
            blocks: [blocks, self.kv_heads as u32, 1],
            shared: shared as u32,
            ..Grid::linear(blocks, THREADS as u32)
        }
    }
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
    Ok(Grid { shared: shared as u32, ..Grid::linear(blocks as u32, THREADS as u32) })
}
