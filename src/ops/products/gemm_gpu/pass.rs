//! One product with any weight, in either direction: operands and adapters are staged, the adapters' first
//! factors are computed, then the kernel for the weight starts.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::mma_gemm::GemmParams;
use crate::device::params::product::{ProductParams, Strided};
use crate::device::{Gpu, Grid, LaunchArgs, Ptr, Scratch, Void};
use crate::dtype::{DType, Float};
use crate::error::Result;
use crate::ops::products::gemm_gpu::{Direction, LowRank, chain, factors, grid, is_half, low_rank};
use crate::ops::products::gemm_mma::{self, GemmWeight};
use crate::ops::{Lora, Product, ProductDx};
use crate::view::{View, ViewMut};

/// What is added last.
enum Addend<'a, T> {
    None,
    /// What the output holds.
    Old,
    Residual(View<'a, T>),
}

/// A product with any weight, without the weight.
struct Pass<'a, T> {
    direction: Direction,
    left: View<'a, T>,
    lora: &'a [Lora<'a, T>],
    adapter: Option<View<'a, i32>>,
    bias: Option<View<'a, T>>,
    s: Option<ViewMut<'a, f32>>,
    addend: Addend<'a, T>,
    out: ViewMut<'a, T>,
}

/// A product but for its weight.
struct Prepared<'a, T> {
    product: GemmParams<T, ()>,
    /// Sums of the adapters' first factors: `[rows, rank]`.
    low: Ptr<Void>,
    low_stride: i64,
    /// Where they are.
    _scratch: Option<Scratch<'a>>,
}

impl<'a, T: Float> Prepared<'a, T> {
    /// Multiplies the left operand with the adapters' first factors, and stages their second ones.
    fn adapters(
        &mut self,
        launch: &mut LaunchArgs<'a>,
        gpu: &'a Gpu,
        op: &'static str,
        pass: &mut Pass<'a, T>,
        tensor_cores: bool,
    ) -> Result<()> {
        let product = &mut self.product;
        let (lora, direction, s) = (pass.lora, pass.direction, pass.s.take());
        let (rows, rank) = (product.rows as usize, lora[0].a.extent(0));
        let low_size = if T::DTYPE == DType::F64 { 8 } else { 4 };
        let low_bytes = (rows * rank * low_size).next_multiple_of(16);
        let parts_bytes =
            if tensor_cores { LowRank::<T>::parts_bytes(rows, rank, lora.len()) } else { 0 };
        let scratch = launch.scratch(low_bytes + parts_bytes)?;
        let parts: Ptr<T> =
            if tensor_cores { scratch.ptr::<Void>().byte_add(low_bytes).cast() } else { Ptr::NULL };
        let (down, up) = factors(launch, direction, lora)?;
        product.parts = parts.as_const();
        product.lora.index = launch.opt_column(&pass.adapter)?;
        (product.lora.count, product.lora.rank) = (lora.len() as i64, rank as i64);
        let mut low = LowRank {
            direction,
            left: Strided { at: product.x, lane_stride: product.x_stride, step_stride: 1 },
            rows: product.rows,
            depth: product.depth,
            rank: rank as i64,
            factors: &down,
            index: product.lora.index,
            low: scratch.ptr(),
            low_stride: rank as i64,
            parts,
            s_stride: s.as_ref().map_or(0, |s| s.stride(0)),
            s: launch.opt_output(s)?,
        };
        if low_size == 4 && !low.s.is_null() {
            (low.low, low.low_stride) = (low.s.cast(), low.s_stride);
        }
        low_rank::<T>(launch, gpu, op, &low)?;
        product.lora.list = launch.table(&up)?;
        (self.low, self.low_stride) = (low.low, low.low_stride);
        self._scratch = Some(scratch);
        Ok(())
    }

    /// What the kernels of one chain per output take.
    fn chain<W>(&self, op: &'static str, right: W) -> Result<(Grid, ProductParams<T, W, Void>)> {
        let grid = grid(op, self.product.rows, self.product.columns)?;
        Ok((grid, chain(&self.product, (self.low, self.low_stride), right)))
    }
}

/// A weight as kernels read it.
pub(in crate::ops::products) trait GpuWeight<T: Float> {
    /// What the kernels take.
    type Params: GemmWeight;

    /// Whether tensor cores can multiply operands of `T` with it, if they multiply `T` at all.
    fn suits_tensor_cores(&self) -> bool;

    fn params(&self, launch: &mut LaunchArgs<'_>, direction: Direction) -> Result<Self::Params>;

    /// Whether a product of `rows` rows on tensor cores is faster with the weight as `[N, K]` values of `T` in scratch
    /// memory. That changes no bit.
    fn is_written_out(&self, rows: u64) -> bool;

    /// The weight as such values.
    fn write_out<'s>(&self, launch: &mut LaunchArgs<'s>, gpu: &Gpu) -> Result<Scratch<'s>>;
}

/// Y = X·Wᵀ and what is added to it.
pub(in crate::ops::products) fn forward<T: Float, W: GpuWeight<T>>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    a: Product<'_, T, W>,
) -> Result<()> {
    let Product { x, w, bias, lora, adapter, s, residual, y } = a;
    let addend = residual.map_or(Addend::None, Addend::Residual);
    let direction = Direction::Forward;
    run(gpu, op, &w, Pass { direction, left: x, lora, adapter, bias, s, addend, out: y })
}

/// dX = dY·W.
pub(in crate::ops::products) fn backward<T: Float, W: GpuWeight<T>>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    a: ProductDx<'_, T, W>,
) -> Result<()> {
    let ProductDx { dy, w, lora, adapter, accumulate, dx } = a;
    let addend = if accumulate { Addend::Old } else { Addend::None };
    let (direction, bias, s) = (Direction::Backward, None, None);
    run(gpu, op, &w, Pass { direction, left: dy, lora, adapter, bias, s, addend, out: dx })
}

fn run<T: Float, W: GpuWeight<T>>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    w: &W,
    pass: Pass<'_, T>,
) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, W::Params::KERNELS);
    let direction = pass.direction;
    let tensor_cores = is_half::<T>() && w.suits_tensor_cores();
    let Some(prepared) = prepare(&mut launch, gpu, op, pass, tensor_cores)? else {
        return Ok(());
    };
    if tensor_cores {
        multiply(&mut launch, gpu, op, w, direction, prepared.product)?;
    } else {
        let right = w.params(&mut launch, direction)?;
        let (grid, params) = prepared.chain(op, right)?;
        let kernel = format!("{}_{}", W::Params::KERNELS.name(), T::DTYPE.name());
        launch.start(&kernel, grid, &params)?;
    }
    launch.finish()
}

/// Starts a product on tensor cores, with the weight as it is or written out.
pub(super) fn multiply<T: Float, W: GpuWeight<T>>(
    launch: &mut LaunchArgs<'_>,
    gpu: &Gpu,
    op: &'static str,
    w: &W,
    direction: Direction,
    product: GemmParams<T, ()>,
) -> Result<()> {
    let dtype = T::DTYPE.name();
    if !w.is_written_out(product.rows as u64) {
        let right = w.params(launch, direction)?;
        return gemm_mma::launch(gpu, op, dtype, direction, product, right);
    }
    let copy = w.write_out(launch, gpu)?;
    let at = copy.ptr::<T>().as_const();
    let right = match direction {
        Direction::Forward => Strided { at, lane_stride: product.depth, step_stride: 1 },
        Direction::Backward => Strided { at, lane_stride: 1, step_stride: product.columns },
    };
    gemm_mma::launch(gpu, op, dtype, direction, product, right)
}

/// Stages everything but the weight and computes the adapters' first factor. `None` if there are no
/// rows.
fn prepare<'a, T: Float>(
    launch: &mut LaunchArgs<'a>,
    gpu: &'a Gpu,
    op: &'static str,
    mut pass: Pass<'a, T>,
    tensor_cores: bool,
) -> Result<Option<Prepared<'a, T>>> {
    let (rows, depth) = (pass.left.extent(0), pass.left.extent(1));
    if rows == 0 {
        return Ok(None);
    }
    let left = Strided::rows(launch, &pass.left)?;
    let product = GemmParams {
        x: left.at,
        x_stride: left.lane_stride,
        rows: rows as i64,
        columns: pass.out.extent(1) as i64,
        depth: depth as i64,
        bias: launch.opt_column(&pass.bias)?,
        y_stride: pass.out.stride(0),
        ..GemmParams::zeroed()
    };
    let mut prepared = Prepared { product, low: Ptr::NULL, low_stride: 0, _scratch: None };
    if !pass.lora.is_empty() {
        prepared.adapters(launch, gpu, op, &mut pass, tensor_cores)?;
    }
    let product = &mut prepared.product;
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
    Ok(Some(prepared))
}
