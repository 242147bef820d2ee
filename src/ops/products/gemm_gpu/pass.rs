//! A product in one direction but for its weight: operands and adapters are staged, and the adapters'
//! first factors are computed.

use bytemuck::Zeroable;

use crate::device::{Gpu, Grid, LaunchArgs, Scratch};
use crate::dtype::{DType, Float};
use crate::error::Result;
use crate::ops::Lora;
use crate::ops::products::gemm_gpu::{ChainProduct, Dense, LowRank, Way, factors, grid, low_rank};
use crate::ops::products::gemm_mma::TensorProduct;
use crate::view::{View, ViewMut};

/// What is added last.
pub(in crate::ops::products) enum Addend<'a, T> {
    None,
    /// What the output holds.
    Old,
    Residual(View<'a, T>),
}

impl<'a, T> Addend<'a, T> {
    pub fn old(accumulate: bool) -> Addend<'a, T> {
        if accumulate { Addend::Old } else { Addend::None }
    }
}

/// A product with any weight, without the weight.
pub(in crate::ops::products) struct Pass<'a, T> {
    pub way: Way,
    pub left: View<'a, T>,
    pub lora: &'a [Lora<'a, T>],
    pub adapter: Option<View<'a, i32>>,
    pub bias: Option<View<'a, T>>,
    pub s: Option<ViewMut<'a, f32>>,
    pub addend: Addend<'a, T>,
    pub out: ViewMut<'a, T>,
}

/// A product but for its weight.
pub(in crate::ops::products) struct Prepared<'a> {
    pub product: TensorProduct,
    /// Sums of the adapters' first factors: `[rows, rank]`.
    low: u64,
    low_stride: i64,
    /// Where they are.
    _scratch: Option<Scratch<'a>>,
}

impl Prepared<'_> {
    /// What the kernels of one chain an output take.
    pub fn chain(&self, op: &'static str) -> Result<(Grid, ChainProduct)> {
        let grid = grid(op, self.product.rows, self.product.columns)?;
        Ok((grid, ChainProduct::new(&self.product, self.low, self.low_stride)))
    }
}

/// Stages everything but the weight and computes the low-rank factor, for kernels that use tensor
/// cores or not. `None` if there are no rows.
pub(in crate::ops::products) fn prepare<'a, T: Float>(
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
