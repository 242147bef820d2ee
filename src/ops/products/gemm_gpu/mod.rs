//! What all products share: sides, adapters, and the kernels that add one chain an output
//! (`kernels/products/product.cuh`).

mod pass;

pub(super) use pass::{Addend, Pass, prepare};

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::{DType, Element, Float};
use crate::error::{Error, Result};
use crate::ops::Lora;
use crate::ops::products::gemm_mma;
use crate::ops::products::gemm_mma::TensorProduct;
use crate::view::View;

/// Threads of a block in `kernels/products/product.cuh`.
pub(super) const THREADS: u32 = 128;

/// Outputs of a block.
const ROWS: u64 = 32;
const COLUMNS: u64 = 64;

/// A matrix as one side of a product: `Dense` of `kernels/products/product.cuh`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Dense {
    pub at: u64,
    pub lane: i64,
    pub step: i64,
}

impl Dense {
    /// Element (lane, step) is `matrix[lane][step]`.
    pub fn rows<T: Element>(launch: &mut LaunchArgs<'_>, matrix: &View<'_, T>) -> Result<Dense> {
        Ok(Dense { at: launch.input(matrix)?, lane: matrix.stride(0), step: 1 })
    }

    /// Element (lane, step) is `matrix[step][lane]`.
    pub fn columns<T: Element>(launch: &mut LaunchArgs<'_>, matrix: &View<'_, T>) -> Result<Dense> {
        Ok(Dense { at: launch.input(matrix)?, lane: 1, step: matrix.stride(0) })
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

/// `Factor` of `kernels/products/product.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Factor {
    pub side: Dense,
    pub scale: f64,
}

/// `Adapters` of `kernels/products/product.cuh`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Adapters {
    pub list: u64,
    pub count: i64,
    pub rank: i64,
    pub index: Column,
}

/// `ProductParams` of `kernels/products/product.cuh` up to the right side.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ChainProduct {
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

impl ChainProduct {
    /// The same product, which continues with the f32 (f64) sums of the adapters' first factors.
    pub fn new(p: &TensorProduct, low: u64, low_stride: i64) -> ChainProduct {
        ChainProduct {
            left: Dense { at: p.x, lane: p.x_stride, step: 1 },
            rows: p.rows,
            columns: p.columns,
            depth: p.depth,
            lora: p.lora,
            low,
            low_stride,
            bias: p.bias,
            y: p.y,
            addend: p.addend,
            row_stride: p.y_stride,
            addend_stride: p.addend_stride,
        }
    }
}

/// `LowParams` of `kernels/products/matmul.cu`.
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

/// Which way the weight is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Y = X·Wᵀ: along its rows.
    Forward,
    /// dX = dY·W: across them.
    Backward,
}

/// The first factors of the adapters and the rows that they multiply.
pub(super) struct LowRank<'a> {
    pub way: Way,
    pub left: Dense,
    pub rows: i64,
    pub depth: i64,
    pub rank: i64,
    /// What multiplies the left side, one an adapter.
    pub factors: &'a [Factor],
    /// Which adapter a row takes.
    pub index: Column,
    /// `[rows, rank]` in f32, f64 for operands of f64.
    pub low: u64,
    pub low_stride: i64,
    /// The same in f32, if `low` is f64 and it is wanted.
    pub s: u64,
    pub s_stride: i64,
    /// The same in three parts of 16 bits, adapter after adapter, if they are wanted.
    pub parts: u64,
}

impl LowRank<'_> {
    /// Bytes of the parts of `rows` rows.
    pub fn parts_bytes(rows: usize, rank: usize, adapters: usize) -> usize {
        rows * 3 * rank * adapters * 2
    }
}

/// low = scale·left·factorᵀ, every row with its adapter's factor; 0 in rows without one.
pub(super) fn low_rank<T: Float>(
    launch: &mut LaunchArgs<'_>,
    gpu: &Gpu,
    op: &'static str,
    a: &LowRank<'_>,
) -> Result<()> {
    if !is_half::<T>() {
        let (count, rank, index) = (a.factors.len() as i64, a.rank, a.index);
        let params = LowParams {
            left: a.left,
            lora: Adapters { list: launch.table(a.factors)?, count, rank, index },
            rows: a.rows,
            depth: a.depth,
            low: a.low,
            low_stride: a.low_stride,
            s: a.s,
            s_stride: a.s_stride,
        };
        let kernel = format!("matmul_low_{}", T::DTYPE.name());
        return gpu.launch(&shipped::MATMUL, &kernel, grid(op, a.rows, a.rank)?, &params);
    }
    for (only, factor) in a.factors.iter().enumerate() {
        let before = LowRank::parts_bytes(a.rows as usize, a.rank as usize, only) as u64;
        let product = TensorProduct {
            x: a.left.at,
            x_stride: a.left.lane,
            rows: a.rows,
            columns: a.rank,
            depth: a.depth,
            lora: Adapters { index: a.index, ..Adapters::default() },
            factor: a.low,
            factor_parts: if a.parts == 0 { 0 } else { a.parts + before },
            factor_stride: a.low_stride,
            only: only as i64,
            scale: factor.scale,
            ..TensorProduct::zeroed()
        };
        gemm_mma::launch(gpu, op, T::DTYPE.name(), a.way, product, factor.side)?;
    }
    Ok(())
}

/// (what multiplies the left side, what multiplies its result) of every adapter.
pub(super) fn factors<T: Float>(
    launch: &mut LaunchArgs<'_>,
    way: Way,
    lora: &[Lora<'_, T>],
) -> Result<(Vec<Factor>, Vec<Factor>)> {
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for lora in lora {
        let (a, b) = (Dense::rows(launch, &lora.a)?, Dense::rows(launch, &lora.b)?);
        let (first, second) = match way {
            Way::Forward => (a, b),
            Way::Backward => (b.turned(), a.turned()),
        };
        down.push(Factor { side: first, scale: lora.scale });
        up.push(Factor { side: second, scale: lora.scale });
    }
    Ok((down, up))
}

/// Whether tensor cores multiply the dtype.
pub(super) fn is_half<T: Float>() -> bool {
    matches!(T::DTYPE, DType::Bf16 | DType::F16)
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
