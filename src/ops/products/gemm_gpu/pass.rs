//! A product in one direction but for its weight: operands and adapters are staged, and the adapters'
//! first factors are computed.

use bytemuck::Zeroable;

use crate::device::params::mma_gemm::GemmParams;
use crate::device::params::product::{ProductParams, Strided};
use crate::device::{Gpu, Grid, LaunchArgs, Ptr, Scratch, Void};
use crate::dtype::{DType, Float};
use crate::error::Result;
use crate::ops::Lora;
use crate::ops::products::gemm_gpu::{LowRank, Way, chain, factors, grid, low_rank};
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
pub(in crate::ops::products) struct Prepared<'a, T> {
    pub product: GemmParams<T, ()>,
    /// Sums of the adapters' first factors: `[rows, rank]`.
    low: Ptr<Void>,
    low_stride: i64,
    /// Where they are.
    _scratch: Option<Scratch<'a>>,
}

impl<T: Float> Prepared<'_, T> {
    /// What the kernels of one chain per output take.
    pub fn chain<W>(
        &self,
        op: &'static str,
        right: W,
    ) -> Result<(Grid, ProductParams<T, W, Void>)> {
        let grid = grid(op, self.product.rows, self.product.columns)?;
        Ok((grid, chain(&self.product, (self.low, self.low_stride), right)))
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
) -> Result<Option<Prepared<'a, T>>> {
    let (rows, depth) = (pass.left.extent(0), pass.left.extent(1));
    if rows == 0 {
        return Ok(None);
    }
    let rank = pass.lora.first().map_or(0, |lora| lora.a.extent(0));
    let low_size = if T::DTYPE == DType::F64 { 8 } else { 4 };
    let low_bytes = (rows * rank * low_size).next_multiple_of(16);
    let parts_bytes =
        if tensor { LowRank::<T>::parts_bytes(rows, rank, pass.lora.len()) } else { 0 };
    let scratch = if rank > 0 { Some(launch.scratch(low_bytes + parts_bytes)?) } else { None };
    let mut low_at: Ptr<Void> = scratch.as_ref().map_or(Ptr::NULL, |s| s.ptr());
    let mut low_stride = rank as i64;
    let parts: Ptr<T> =
        if tensor && rank > 0 { low_at.byte_add(low_bytes).cast() } else { Ptr::NULL };
    let left = Strided::rows(launch, &pass.left)?;
    let mut product = GemmParams {
        x: left.at,
        x_stride: left.lane_stride,
        rows: rows as i64,
        columns: pass.out.extent(1) as i64,
        depth: depth as i64,
        parts: parts.as_const(),
        bias: launch.opt_column(&pass.bias)?,
        y_stride: pass.out.stride(0),
        ..GemmParams::zeroed()
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
            parts,
            s_stride: pass.s.as_ref().map_or(0, |s| s.stride(0)),
            s: launch.opt_output(pass.s)?,
        };
        if low_size == 4 && !low.s.is_null() {
            (low.low, low.low_stride) = (low.s.cast(), low.s_stride);
            (low_at, low_stride) = (low.low, low.low_stride);
        }
        low_rank::<T>(launch, gpu, op, &low)?;
        product.lora.list = launch.table(&up)?;
    }
    match pass.addend {
        Addend::None => product.y = launch.output(pass.out)?,
        Addend::Old => {
            product.y = launch.update(pass.out)?;
            (product.addend, product.addend_stride) = (product.y.as_const(), product.y_stride);
        }
        Addend::Residual(residual) => {
            product.addend = launch.input(&residual)?;
            product.addend_stride = residual.stride(0);
            product.y = launch.output(pass.out)?;
        }
    }
    Ok(Some(Prepared { product, low: low_at, low_stride, _scratch: scratch }))
}
