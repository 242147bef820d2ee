//! 4-bit products of the experts of a mixture on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::mma_gemm::GemmParams;
use crate::device::params::nf4_matmul_grouped::GroupedParams;
use crate::device::params::nf4_matrix::Nf4Matrix;
use crate::device::{Gpu, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::products::gemm_gpu::{Direction, is_half};
use crate::ops::products::gemm_mma::grouped;
use crate::ops::products::nf4_matmul::gpu::{nf4_matmul, nf4_matmul_dx};
use crate::ops::{Nf4MatmulGrouped, Nf4MatmulGroupedDx};
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// A grouped product in one direction.
struct Pass<'a, T> {
    op: &'static str,
    direction: Direction,
    x: View<'a, T>,
    offsets: View<'a, i64>,
    w: &'a [Nf4View<'a>],
    accumulate: bool,
    y: ViewMut<'a, T>,
}

pub(crate) fn nf4_matmul_grouped<T: Float>(
    gpu: &Arc<Gpu>,
    a: Nf4MatmulGrouped<'_, T>,
) -> Result<()> {
    let Nf4MatmulGrouped { x, offsets, w, y } = a;
    if !on_tensor_cores::<T>(w) {
        readable("nf4_matmul_grouped", &offsets)?;
        return Nf4MatmulGrouped { x, offsets, w, y }.each(|part| nf4_matmul(gpu, part));
    }
    let (op, direction, accumulate) = ("nf4_matmul_grouped", Direction::Forward, false);
    run(gpu, Pass { op, direction, x, offsets, w, accumulate, y })
}

pub(crate) fn nf4_matmul_grouped_dx<T: Float>(
    gpu: &Arc<Gpu>,
    a: Nf4MatmulGroupedDx<'_, T>,
) -> Result<()> {
    let Nf4MatmulGroupedDx { dy, offsets, w, accumulate, dx } = a;
    if !on_tensor_cores::<T>(w) {
        readable("nf4_matmul_grouped_dx", &offsets)?;
        let args = Nf4MatmulGroupedDx { dy, offsets, w, accumulate, dx };
        return args.each(|part| nf4_matmul_dx(gpu, part));
    }
    let (op, direction) = ("nf4_matmul_grouped_dx", Direction::Backward);
    run(gpu, Pass { op, direction, x: dy, offsets, w, accumulate, y: dx })
}

fn on_tensor_cores<T: Float>(w: &[Nf4View<'_>]) -> bool {
    is_half::<T>() && w.iter().all(|w| w.dtype == T::DTYPE)
}

/// Where experts are launched one by one the host needs to know their rows.
fn readable(op: &'static str, offsets: &View<'_, i64>) -> Result<()> {
    if offsets.is_host() {
        return Ok(());
    }
    let reason = "offsets in device memory need bf16 or f16 operands and weights quantized from \
                  the same dtype; give the offsets in host memory"
        .to_string();
    Err(Error::Unsupported { op, reason })
}

fn run<T: Float>(gpu: &Arc<Gpu>, pass: Pass<'_, T>) -> Result<()> {
    let Pass { op, direction, x, offsets, w, accumulate, y } = pass;
    let (rows, columns) = (x.extent(0), y.extent(1));
    if rows == 0 {
        return Ok(());
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::NF4_MATMUL_GROUPED);
    let list: Vec<Nf4Matrix> =
        w.iter().map(|w| Nf4Matrix::new(&mut launch, w, direction)).collect::<Result<_>>()?;
    let mut product = GemmParams {
        x: launch.input(&x)?,
        x_stride: x.stride(0),
        rows: rows as i64,
        columns: columns as i64,
        depth: x.extent(1) as i64,
        y_stride: y.stride(0),
        ..GemmParams::zeroed()
    };
    product.y = if accumulate { launch.update(y)? } else { launch.output(y)? };
    if accumulate {
        (product.addend, product.addend_stride) = (product.y.as_const(), product.y_stride);
    }
    let params = GroupedParams {
        all: product.with(1, Nf4Matrix::zeroed()),
        offsets: launch.column(&offsets)?,
        weights: launch.table(&list)?,
        count: w.len() as i64,
    };
    let grid = grouped(gpu, op, [rows, columns], w.len())?;
    launch.start(&format!("{op}_{}", T::DTYPE.name()), grid, &params)?;
    launch.finish()
}
