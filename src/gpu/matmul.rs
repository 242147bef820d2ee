//! Matrix products on the GPU, dense and 4-bit.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, ScratchGuard, Stage};
use crate::dtype::{DType, Element, Float};
use crate::error::{Error, Result};
use crate::gpu::nf4_quantize::BlockMax;
use crate::ops::{Lora, Matmul, MatmulDw, MatmulDx, Nf4Matmul, Nf4MatmulDx};
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// Threads of a block in `kernels/product.cuh`.
const THREADS: u32 = 128;

/// Outputs of a block.
const ROWS: u64 = 32;
const COLUMNS: u64 = 64;

/// A matrix as one side of a product: `Dense` of `kernels/product.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Dense {
    at: u64,
    lane: i64,
    step: i64,
}

impl Dense {
    /// Element (lane, step) is `matrix[lane][step]`.
    pub fn rows<T: Element>(stage: &mut Stage<'_>, matrix: &View<'_, T>) -> Result<Dense> {
        Ok(Dense { at: stage.input(matrix)?, lane: matrix.stride(0), step: 1 })
    }

    /// Element (lane, step) is `matrix[step][lane]`.
    pub fn columns<T: Element>(stage: &mut Stage<'_>, matrix: &View<'_, T>) -> Result<Dense> {
        Ok(Dense { at: stage.input(matrix)?, lane: 1, step: matrix.stride(0) })
    }

    /// Packed rows in scratch memory.
    pub fn packed(at: u64, columns: i64) -> Dense {
        Dense { at, lane: columns, step: 1 }
    }

    /// The other way round.
    pub fn turned(self) -> Dense {
        Dense { at: self.at, lane: self.step, step: self.lane }
    }
}

/// `Factor` of `kernels/product.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Factor {
    side: Dense,
    scale: f64,
}

/// `Adapters` of `kernels/product.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Adapters {
    list: u64,
    count: i64,
    rank: i64,
    index: Column,
}

/// `ProductParams` of `kernels/product.cuh` up to the right side.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Product {
    left: Dense,
    rows: i64,
    columns: i64,
    depth: i64,
    lora: Adapters,
    low: u64,
    low_stride: i64,
    bias: Column,
    y: u64,
    addend: u64,
    row_stride: i64,
    addend_stride: i64,
}

/// `ProductParams<T, Dense<T>>`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DenseParams {
    product: Product,
    right: Dense,
}

/// `ProductParams<T, Nf4Matrix>` of `kernels/nf4_matmul.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Nf4Params {
    product: Product,
    packed: Column,
    code: Column,
    max: BlockMax,
    columns: i64,
    dtype: i32,
    across: i32,
}

/// `LowParams` of `kernels/matmul.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LowParams {
    left: Dense,
    lora: Adapters,
    rows: i64,
    depth: i64,
    low: u64,
    low_stride: i64,
    s: u64,
    s_stride: i64,
}

/// `DwParams` of `kernels/matmul.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DwParams {
    left: Dense,
    right: Dense,
    rows: i64,
    columns: i64,
    depth: i64,
    dw: u64,
    row_stride: i64,
}

/// `DbiasParams` of `kernels/matmul.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DbiasParams {
    dy: u64,
    rows: i64,
    columns: i64,
    row_stride: i64,
    dbias: Column,
}

/// Which way the weight is read.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Y = X·Wᵀ: along its rows.
    Forward,
    /// dX = dY·W: across them.
    Backward,
}

/// What is added last.
enum Addend<'a, T> {
    None,
    /// What the output holds.
    Old,
    Residual(View<'a, T>),
}

impl<'a, T> Addend<'a, T> {
    fn old(accumulate: bool) -> Addend<'a, T> {
        if accumulate { Addend::Old } else { Addend::None }
    }
}

/// A product with any weight, without the weight.
struct Pass<'a, T> {
    way: Way,
    left: View<'a, T>,
    lora: &'a [Lora<'a, T>],
    adapter: Option<View<'a, i32>>,
    bias: Option<View<'a, T>>,
    s: Option<ViewMut<'a, f32>>,
    addend: Addend<'a, T>,
    out: ViewMut<'a, T>,
}

pub(crate) fn matmul<T: Float>(gpu: &Arc<Gpu>, a: Matmul<'_, T>) -> Result<()> {
    let Matmul { x, w, bias, lora, adapter, s, residual, y } = a;
    let addend = residual.map_or(Addend::None, Addend::Residual);
    let pass = Pass { way: Way::Forward, left: x, lora, adapter, bias, s, addend, out: y };
    dense(gpu, "matmul", pass, &w)
}

pub(crate) fn matmul_dx<T: Float>(gpu: &Arc<Gpu>, a: MatmulDx<'_, T>) -> Result<()> {
    let MatmulDx { dy, w, lora, adapter, accumulate, dx } = a;
    let (bias, s, addend) = (None, None, Addend::old(accumulate));
    let pass = Pass { way: Way::Backward, left: dy, lora, adapter, bias, s, addend, out: dx };
    dense(gpu, "matmul_dx", pass, &w)
}

pub(crate) fn nf4_matmul<T: Float>(gpu: &Arc<Gpu>, a: Nf4Matmul<'_, T>) -> Result<()> {
    let Nf4Matmul { x, w, bias, lora, adapter, s, residual, y } = a;
    let addend = residual.map_or(Addend::None, Addend::Residual);
    let pass = Pass { way: Way::Forward, left: x, lora, adapter, bias, s, addend, out: y };
    nf4(gpu, "nf4_matmul", pass, &w)
}

pub(crate) fn nf4_matmul_dx<T: Float>(gpu: &Arc<Gpu>, a: Nf4MatmulDx<'_, T>) -> Result<()> {
    let Nf4MatmulDx { dy, w, lora, adapter, accumulate, dx } = a;
    let (bias, s, addend) = (None, None, Addend::old(accumulate));
    let pass = Pass { way: Way::Backward, left: dy, lora, adapter, bias, s, addend, out: dx };
    nf4(gpu, "nf4_matmul_dx", pass, &w)
}

fn dense<T: Float>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    pass: Pass<'_, T>,
    w: &View<'_, T>,
) -> Result<()> {
    let mut stage = Stage::new(gpu, "matmul");
    let right = match pass.way {
        Way::Forward => Dense::rows(&mut stage, w)?,
        Way::Backward => Dense::columns(&mut stage, w)?,
    };
    let Some((product, _low)) = prepare(&mut stage, gpu, op, pass)? else { return Ok(()) };
    let grid = grid(op, product.rows, product.columns)?;
    let params = DenseParams { product, right };
    stage.launch(&format!("matmul_{}", T::DTYPE.name()), grid, &params)?;
    stage.finish()
}

fn nf4<T: Float>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    pass: Pass<'_, T>,
    w: &Nf4View<'_>,
) -> Result<()> {
    let mut stage = Stage::new(gpu, "nf4_matmul");
    let way = pass.way;
    let Some((product, _low)) = prepare(&mut stage, gpu, op, pass)? else { return Ok(()) };
    let grid = grid(op, product.rows, product.columns)?;
    let params = Nf4Params {
        product,
        packed: stage.column(&w.packed)?,
        code: stage.column(&w.code)?,
        max: BlockMax::new(&mut stage, w)?,
        columns: w.k as i64,
        dtype: BlockMax::dtype_code(w.dtype),
        across: (way == Way::Backward) as i32,
    };
    let mma = if half::<T>() && w.dtype == T::DTYPE { "mma_" } else { "" };
    stage.launch(&format!("nf4_matmul_{mma}{}", T::DTYPE.name()), grid, &params)?;
    stage.finish()
}

fn half<T: Float>() -> bool {
    matches!(T::DTYPE, DType::Bf16 | DType::F16)
}

/// Stages everything but the weight and computes the low-rank factor. `None` if there are no rows.
fn prepare<'a, T: Float>(
    stage: &mut Stage<'a>,
    gpu: &'a Gpu,
    op: &'static str,
    pass: Pass<'a, T>,
) -> Result<Option<(Product, Option<ScratchGuard<'a>>)>> {
    let (rows, depth) = (pass.left.extent(0), pass.left.extent(1));
    if rows == 0 {
        return Ok(None);
    }
    let rank = pass.lora.first().map_or(0, |lora| lora.a.extent(0));
    let low_size = if T::DTYPE == DType::F64 { 8 } else { 4 };
    let scratch = if rank > 0 { Some(stage.scratch(rows * rank * low_size)?) } else { None };
    let left = Dense::rows(stage, &pass.left)?;
    let mut product = Product {
        left,
        rows: rows as i64,
        columns: pass.out.extent(1) as i64,
        depth: depth as i64,
        low: scratch.as_ref().map_or(0, |s| s.ptr()),
        low_stride: rank as i64,
        bias: stage.opt_column(&pass.bias)?,
        row_stride: pass.out.stride(0),
        ..Product::zeroed()
    };
    if rank > 0 {
        let (down, up) = factors(stage, &pass)?;
        product.lora.index = stage.opt_column(&pass.adapter)?;
        (product.lora.count, product.lora.rank) = (pass.lora.len() as i64, rank as i64);
        let mut params = LowParams {
            left,
            lora: Adapters { list: down, ..product.lora },
            rows: rows as i64,
            depth: depth as i64,
            low: product.low,
            low_stride: product.low_stride,
            s_stride: pass.s.as_ref().map_or(0, |s| s.stride(0)),
            s: stage.opt_output(pass.s)?,
        };
        if low_size == 4 && params.s != 0 {
            (params.low, params.low_stride) = (params.s, params.s_stride);
            (product.low, product.low_stride) = (params.s, params.s_stride);
        }
        let kernel = format!("matmul_low_{}", T::DTYPE.name());
        gpu.launch("matmul", &kernel, grid(op, rows as i64, rank as i64)?, &params)?;
        product.lora.list = up;
    }
    match pass.addend {
        Addend::None => product.y = stage.output(pass.out)?,
        Addend::Old => {
            product.y = stage.update(pass.out)?;
            (product.addend, product.addend_stride) = (product.y, product.row_stride);
        }
        Addend::Residual(residual) => {
            product.addend = stage.input(&residual)?;
            product.addend_stride = residual.stride(0);
            product.y = stage.output(pass.out)?;
        }
    }
    Ok(Some((product, scratch)))
}

/// Tables of the factors that make the low-rank part: what multiplies the left side, then what
/// multiplies the result.
fn factors<T: Float>(stage: &mut Stage<'_>, pass: &Pass<'_, T>) -> Result<(u64, u64)> {
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for lora in pass.lora {
        let (a, b) = (Dense::rows(stage, &lora.a)?, Dense::rows(stage, &lora.b)?);
        let (first, second) = match pass.way {
            Way::Forward => (a, b),
            Way::Backward => (b.turned(), a.turned()),
        };
        down.push(Factor { side: first, scale: lora.scale });
        up.push(Factor { side: second, scale: lora.scale });
    }
    Ok((stage.table(&down)?, stage.table(&up)?))
}

/// `low[row] = scale·dy[row]·b` for every row, packed, in f32 (f64 for f64 operands).
pub(super) fn low_of<T: Float>(
    stage: &mut Stage<'_>,
    gpu: &Gpu,
    op: &'static str,
    dy: Dense,
    [rows, depth]: [usize; 2],
    lora: &Lora<'_, T>,
    low: u64,
) -> Result<()> {
    let rank = lora.b.extent(1) as i64;
    let factor = Factor { side: Dense::columns(stage, &lora.b)?, scale: lora.scale };
    let adapters =
        Adapters { list: stage.table(&[factor])?, count: 1, rank, index: Column::default() };
    let params = LowParams {
        left: dy,
        lora: adapters,
        rows: rows as i64,
        depth: depth as i64,
        low,
        low_stride: rank,
        s: 0,
        s_stride: 0,
    };
    let kernel = format!("matmul_low_{}", T::DTYPE.name());
    gpu.launch("matmul", &kernel, grid(op, rows as i64, rank)?, &params)
}

pub(crate) fn matmul_dw<T: Float>(gpu: &Arc<Gpu>, a: MatmulDw<'_, T>) -> Result<()> {
    let MatmulDw { dy, x, dw, dbias } = a;
    let (rows, columns, depth) = (dy.extent(1) as i64, x.extent(1) as i64, dy.extent(0) as i64);
    if depth == 0 {
        return Ok(());
    }
    let mut stage = Stage::new(gpu, "matmul");
    let params = DwParams {
        left: Dense::columns(&mut stage, &dy)?,
        right: Dense::columns(&mut stage, &x)?,
        rows,
        columns,
        depth,
        row_stride: dw.stride(0),
        dw: stage.update(dw)?,
    };
    let kernel = format!("matmul_dw_{}", T::DTYPE.name());
    stage.launch(&kernel, grid("matmul_dw", rows, columns)?, &params)?;
    if let Some(dbias) = dbias {
        let params = DbiasParams {
            dy: params.left.at,
            rows: depth,
            columns: rows,
            row_stride: dy.stride(0),
            dbias: Column { stride: dbias.stride(0), at: stage.update(dbias)? },
        };
        let blocks = (rows as u64).div_ceil(THREADS as u64) as u32;
        let kernel = format!("matmul_dbias_{}", T::DTYPE.name());
        stage.launch(&kernel, Grid::linear(blocks, THREADS), &params)?;
    }
    stage.finish()
}

/// Row blocks on x, column blocks on y.
pub(super) fn grid(op: &'static str, rows: i64, columns: i64) -> Result<Grid> {
    let blocks = [(rows as u64).div_ceil(ROWS), (columns as u64).div_ceil(COLUMNS)];
    if blocks[0] > i32::MAX as u64 || blocks[1] > 65_535 {
        let got = format!("{rows} x {columns}");
        return Err(Error::invalid(op, "y", got, "at most 2^36 x 4194240 outputs on a GPU"));
    }
    Ok(Grid { blocks: [blocks[0] as u32, blocks[1] as u32, 1], ..Grid::linear(1, THREADS) })
}
