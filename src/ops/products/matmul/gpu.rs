//! Matrix products on the GPU, dense and 4-bit.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, Scratch};
use crate::dtype::{DType, Float};
use crate::error::Result;
use crate::ops::products::gemm_gpu::{
    ChainProduct, Dense, LowRank, THREADS, Way, factors, grid, is_half, low_rank,
};
use crate::ops::products::gemm_mma;
use crate::ops::products::gemm_mma::{TensorProduct, TensorWeight};
use crate::ops::quantize::nf4_quantize::gpu::BlockMax;
use crate::ops::{Lora, Matmul, MatmulDw, MatmulDx, Nf4Matmul, Nf4MatmulDx};
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// `ProductParams<T, Dense<T>>` of `kernels/products/product.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DenseParams {
    product: ChainProduct,
    right: Dense,
}

/// `Nf4Matrix` of `kernels/products/tensor_nf4.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::ops::products) struct Nf4Matrix {
    packed: Column,
    code: Column,
    max: BlockMax,
    columns: i64,
    dtype: i32,
    across: i32,
    regular: i32,
    quads: i32,
    nested_shift: i32,
    pad: i32,
}

impl Nf4Matrix {
    pub fn new(launch: &mut LaunchArgs<'_>, w: &Nf4View<'_>, way: Way) -> Result<Nf4Matrix> {
        let max = BlockMax::new(launch, w)?;
        let packed = launch.column(&w.packed)?;
        let k = w.k as u64;
        let whole = packed.stride == 1 && packed.at.is_multiple_of(16) && k.is_multiple_of(64);
        let regular = whole && max.is_regular();
        let chunk = gemm_mma::chunks(k).0;
        let quads = regular && (k | chunk).is_multiple_of(256) && max.in_quads();
        Ok(Nf4Matrix {
            packed,
            code: launch.column(&w.code)?,
            max,
            columns: w.k as i64,
            dtype: BlockMax::dtype_code(w.dtype),
            across: (way == Way::Backward) as i32,
            regular: regular as i32,
            quads: quads as i32,
            nested_shift: max.nested_shift(),
            pad: 0,
        })
    }
}

impl TensorWeight for Nf4Matrix {
    const OP: &'static str = "nf4_matmul";
    /// The table of code pairs with what may precede it, and 8 maxima of every row.
    const FEW_SHARED: u64 = 4096 + 65_536 + 8 * 8 * 32 * 4;

    fn suits_few_rows(&self, _depth: u64) -> bool {
        self.regular != 0
    }
}

/// `ProductParams<T, Nf4Matrix>`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Nf4Params {
    product: ChainProduct,
    right: Nf4Matrix,
}

/// `DwParams` of `kernels/products/matmul.cu`.
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

/// `DbiasParams` of `kernels/products/matmul.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DbiasParams {
    dy: u64,
    rows: i64,
    columns: i64,
    row_stride: i64,
    dbias: Column,
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
    let mut launch = LaunchArgs::new(gpu, "matmul");
    let way = pass.way;
    let right = match way {
        Way::Forward => Dense::rows(&mut launch, w)?,
        Way::Backward => Dense::columns(&mut launch, w)?,
    };
    let tensor = is_half::<T>();
    let Some(prepared) = prepare(&mut launch, gpu, op, pass, tensor)? else { return Ok(()) };
    if tensor {
        gemm_mma::launch(gpu, op, T::DTYPE.name(), way, prepared.product, right)?;
    } else {
        let (grid, product) = prepared.chain(op)?;
        let params = DenseParams { product, right };
        launch.start(&format!("matmul_{}", T::DTYPE.name()), grid, &params)?;
    }
    launch.finish()
}

fn nf4<T: Float>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    pass: Pass<'_, T>,
    w: &Nf4View<'_>,
) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "nf4_matmul");
    let way = pass.way;
    let tensor = is_half::<T>() && w.dtype == T::DTYPE;
    let Some(prepared) = prepare(&mut launch, gpu, op, pass, tensor)? else { return Ok(()) };
    let right = Nf4Matrix::new(&mut launch, w, way)?;
    if tensor {
        gemm_mma::launch(gpu, op, T::DTYPE.name(), way, prepared.product, right)?;
    } else {
        let (grid, product) = prepared.chain(op)?;
        let params = Nf4Params { product, right };
        launch.start(&format!("nf4_matmul_{}", T::DTYPE.name()), grid, &params)?;
    }
    launch.finish()
}

/// A product but for its weight.
struct Prepared<'a> {
    product: TensorProduct,
    /// Sums of the adapters' first factors: `[rows, rank]`.
    low: u64,
    low_stride: i64,
    /// Where they are.
    _scratch: Option<Scratch<'a>>,
}

impl Prepared<'_> {
    /// What the kernels of one chain an output take.
    fn chain(&self, op: &'static str) -> Result<(Grid, ChainProduct)> {
        let grid = grid(op, self.product.rows, self.product.columns)?;
        Ok((grid, ChainProduct::new(&self.product, self.low, self.low_stride)))
    }
}

/// Stages everything but the weight and computes the low-rank factor, for kernels that use tensor
/// cores or not. `None` if there are no rows.
fn prepare<'a, T: Float>(
    launch: &mut LaunchArgs<'a>,
    gpu: &'a Gpu,
    op: &'static str,
    pass: Pass<'a, T>,
    tensor: bool,
) -> Result<Option<Prepared<'a>>> {
    let (rows, depth) = (pass.left.extent(0), pass.left.extent(1));
    if rows == 0 {
        return Ok(None);
    }
    let rank = pass.lora.first().map_or(0, |lora| lora.a.extent(0));
    let low_size = if T::DTYPE == DType::F64 { 8 } else { 4 };
    let low_bytes = (rows * rank * low_size).next_multiple_of(16);
    let parts_bytes = if tensor { LowRank::parts_bytes(rows, rank, pass.lora.len()) } else { 0 };
    let scratch = if rank > 0 { Some(launch.scratch(low_bytes + parts_bytes)?) } else { None };
    let (mut low_at, mut low_stride) = (scratch.as_ref().map_or(0, |s| s.ptr()), rank as i64);
    let left = Dense::rows(launch, &pass.left)?;
    let mut product = TensorProduct {
        x: left.at,
        x_stride: left.lane,
        rows: rows as i64,
        columns: pass.out.extent(1) as i64,
        depth: depth as i64,
        parts: if tensor && rank > 0 { low_at + low_bytes as u64 } else { 0 },
        bias: launch.opt_column(&pass.bias)?,
        y_stride: pass.out.stride(0),
        ..TensorProduct::zeroed()
    };
    if rank > 0 {
        let (down, up) = factors(launch, pass.way, pass.lora)?;
        product.lora.index = launch.opt_column(&pass.adapter)?;
        (product.lora.count, product.lora.rank) = (pass.lora.len() as i64, rank as i64);
        let mut low = LowRank {
            way: pass.way,
            left,
            rows: rows as i64,
            depth: depth as i64,
            rank: rank as i64,
            factors: &down,
            index: product.lora.index,
            low: low_at,
            low_stride,
            parts: product.parts,
            s_stride: pass.s.as_ref().map_or(0, |s| s.stride(0)),
            s: launch.opt_output(pass.s)?,
        };
        if low_size == 4 && low.s != 0 {
            (low.low, low.low_stride) = (low.s, low.s_stride);
            (low_at, low_stride) = (low.s, low.s_stride);
        }
        low_rank::<T>(launch, gpu, op, &low)?;
        product.lora.list = launch.table(&up)?;
    }
    match pass.addend {
        Addend::None => product.y = launch.output(pass.out)?,
        Addend::Old => {
            product.y = launch.update(pass.out)?;
            (product.addend, product.addend_stride) = (product.y, product.y_stride);
        }
        Addend::Residual(residual) => {
            product.addend = launch.input(&residual)?;
            product.addend_stride = residual.stride(0);
            product.y = launch.output(pass.out)?;
        }
    }
    Ok(Some(Prepared { product, low: low_at, low_stride, _scratch: scratch }))
}

pub(crate) fn matmul_dw<T: Float>(gpu: &Arc<Gpu>, a: MatmulDw<'_, T>) -> Result<()> {
    let MatmulDw { dy, x, dw, dbias } = a;
    let (rows, columns, depth) = (dy.extent(1) as i64, x.extent(1) as i64, dy.extent(0) as i64);
    if depth == 0 {
        return Ok(());
    }
    let mut launch = LaunchArgs::new(gpu, "matmul");
    let params = DwParams {
        left: Dense::columns(&mut launch, &dy)?,
        right: Dense::columns(&mut launch, &x)?,
        rows,
        columns,
        depth,
        row_stride: dw.stride(0),
        dw: launch.update(dw)?,
    };
    let kernel = format!("matmul_dw_{}", T::DTYPE.name());
    launch.start(&kernel, grid("matmul_dw", rows, columns)?, &params)?;
    if let Some(dbias) = dbias {
        let params = DbiasParams {
            dy: params.left.at,
            rows: depth,
            columns: rows,
            row_stride: dy.stride(0),
            dbias: Column { stride: dbias.stride(0), at: launch.update(dbias)? },
        };
        let blocks = (rows as u64).div_ceil(THREADS as u64) as u32;
        let kernel = format!("matmul_dbias_{}", T::DTYPE.name());
        launch.start(&kernel, Grid::linear(blocks, THREADS), &params)?;
    }
    launch.finish()
}
