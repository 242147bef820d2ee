//! What all products share: operands, adapters, and the kernels that add one chain per output
//! (`kernels/products/product.cuh`).

mod fan;
mod pass;

pub(super) use fan::fan;
pub(super) use pass::{GpuWeight, backward, forward};

use bytemuck::Zeroable;

use crate::device::params::matmul::LowParams;
use crate::device::params::mma_gemm::GemmParams;
use crate::device::params::product::{
    Adapters, COLUMNS, Factor, ProductParams, ROWS, Strided, THREADS,
};
use crate::device::{Column, Const, Gpu, Grid, LaunchArgs, Ptr, Void, shipped};
use crate::dtype::{DType, Element, Float};
use crate::error::{Error, Result};
use crate::ops::Lora;
use crate::ops::products::gemm_mma;
use crate::view::View;

impl<T: Element> Strided<T> {
    /// Element (lane, step) is `matrix[lane][step]`.
    pub fn rows(launch: &mut LaunchArgs<'_>, matrix: &View<'_, T>) -> Result<Self> {
        Ok(Strided { at: launch.input(matrix)?, lane_stride: matrix.stride(0), step_stride: 1 })
    }

    /// Element (lane, step) is `matrix[step][lane]`.
    pub fn columns(launch: &mut LaunchArgs<'_>, matrix: &View<'_, T>) -> Result<Self> {
        Ok(Strided { at: launch.input(matrix)?, lane_stride: 1, step_stride: matrix.stride(0) })
    }

    /// The transposed matrix.
    pub fn transposed(self) -> Self {
        Strided { at: self.at, lane_stride: self.step_stride, step_stride: self.lane_stride }
    }
}

/// `p` for the kernels of one chain per output, which continues with the sums `low` of the adapters'
/// first factors, of f32 or f64.
fn chain<T, W>(
    p: &GemmParams<T, ()>,
    (low, low_stride): (Ptr<Void>, i64),
    right: W,
) -> ProductParams<T, W, Void> {
    ProductParams {
        left: Strided { at: p.x, lane_stride: p.x_stride, step_stride: 1 },
        rows: p.rows,
        columns: p.columns,
        depth: p.depth,
        lora: p.lora,
        low: low.as_const(),
        low_stride,
        bias: p.bias,
        y: p.y,
        addend: p.addend,
        row_stride: p.y_stride,
        addend_stride: p.addend_stride,
        right,
    }
}

/// Which product a weight takes part in, and so how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Y = X·Wᵀ, along its rows.
    Forward,
    /// dX = dY·W, along its columns.
    Backward,
}

/// The first factors of the adapters and the rows that they multiply.
pub(super) struct LowRank<'a, T> {
    pub direction: Direction,
    pub left: Strided<T>,
    pub rows: i64,
    pub depth: i64,
    pub rank: i64,
    /// The first factors, one per adapter.
    pub factors: &'a [Factor],
    /// Which adapter a row takes.
    pub index: Column<Const<i32>>,
    /// `[rows, rank]` in f32, f64 for operands of f64.
    pub low: Ptr<Void>,
    pub low_stride: i64,
    /// `low` rounded to f32, if `low` is f64 and `s` is wanted.
    pub s: Ptr<f32>,
    pub s_stride: i64,
    /// `low` in three parts of 16 bits, adapter after adapter, if they are wanted.
    pub parts: Ptr<T>,
}

impl<T: Float> LowRank<'_, T> {
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
    a: &LowRank<'_, T>,
) -> Result<()> {
    if !is_half::<T>() {
        let (count, rank, index) = (a.factors.len() as i64, a.rank, a.index);
        let params = LowParams::<T, Void> {
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
    for only in 0..a.factors.len() {
        let (product, operand) = factor_product(a, only);
        gemm_mma::launch(gpu, op, T::DTYPE.name(), a.direction, product, operand)?;
    }
    Ok(())
}

/// The sums of the first factor of adapter `only` as a product of its own.
fn factor_product<T: Float>(a: &LowRank<'_, T>, only: usize) -> (GemmParams<T, ()>, Strided<T>) {
    let factor = &a.factors[only];
    let before = LowRank::<T>::parts_bytes(a.rows as usize, a.rank as usize, only);
    let product = GemmParams::<T, ()> {
        x: a.left.at,
        x_stride: a.left.lane_stride,
        rows: a.rows,
        columns: a.rank,
        depth: a.depth,
        lora: Adapters { index: a.index, ..Adapters::zeroed() },
        factor: a.low.cast(),
        factor_parts: if a.parts.is_null() { a.parts } else { a.parts.byte_add(before) },
        factor_stride: a.low_stride,
        only: only as i64,
        scale: factor.scale,
        ..GemmParams::zeroed()
    };
    let operand = Strided {
        at: factor.at.cast(),
        lane_stride: factor.lane_stride,
        step_stride: factor.step_stride,
    };
    (product, operand)
}

/// The first and the second factor of every adapter.
pub(super) fn factors<T: Float>(
    launch: &mut LaunchArgs<'_>,
    direction: Direction,
    lora: &[Lora<'_, T>],
) -> Result<(Vec<Factor>, Vec<Factor>)> {
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for lora in lora {
        let (a, b) = (Strided::rows(launch, &lora.a)?, Strided::rows(launch, &lora.b)?);
        let (first, second) = match direction {
            Direction::Forward => (a, b),
            Direction::Backward => (b.transposed(), a.transposed()),
        };
        down.push(factor(first, lora.scale));
        up.push(factor(second, lora.scale));
    }
    Ok((down, up))
}

/// A factor of an adapter with its scale.
pub(super) fn factor<T>(operand: Strided<T>, scale: f64) -> Factor {
    Factor {
        at: operand.at.cast(),
        lane_stride: operand.lane_stride,
        step_stride: operand.step_stride,
        scale,
    }
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
    Ok(Grid { blocks: [blocks[0] as u32, blocks[1] as u32, 1], ..Grid::linear(1, THREADS as u32) })
}
