//! Matrix products with dense weights on the GPU.

use std::sync::Arc;

use crate::device::params::matmul::{DbiasParams, DwParams};
use crate::device::params::product::{Strided, THREADS};
use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::gemm_gpu::{Addend, Pass, Way, grid, is_half, prepare};
use crate::ops::products::gemm_mma;
use crate::ops::{Matmul, MatmulDw, MatmulDx};
use crate::view::View;

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

fn dense<T: Float>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    pass: Pass<'_, T>,
    w: &View<'_, T>,
) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::MATMUL);
    let way = pass.way;
    let right = match way {
        Way::Forward => Strided::rows(&mut launch, w)?,
        Way::Backward => Strided::columns(&mut launch, w)?,
    };
    let tensor = is_half::<T>();
    let Some(prepared) = prepare(&mut launch, gpu, op, pass, tensor)? else { return Ok(()) };
    if tensor {
        gemm_mma::launch(gpu, op, T::DTYPE.name(), way, prepared.product, right)?;
    } else {
        let (grid, params) = prepared.chain(op, right)?;
        launch.start(&format!("matmul_{}", T::DTYPE.name()), grid, &params)?;
    }
    launch.finish()
}

pub(crate) fn matmul_dw<T: Float>(gpu: &Arc<Gpu>, a: MatmulDw<'_, T>) -> Result<()> {
    let MatmulDw { dy, x, dw, dbias } = a;
    let (rows, columns, depth) = (dy.extent(1) as i64, x.extent(1) as i64, dy.extent(0) as i64);
    if depth == 0 {
        return Ok(());
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::MATMUL);
    let params = DwParams {
        left: Strided::columns(&mut launch, &dy)?,
        right: Strided::columns(&mut launch, &x)?,
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
        let blocks = (rows as u64).div_ceil(THREADS) as u32;
        let kernel = format!("matmul_dbias_{}", T::DTYPE.name());
        launch.start(&kernel, Grid::linear(blocks, THREADS as u32), &params)?;
    }
    launch.finish()
}
