//! Matrix products with dense weights on the GPU.

use std::sync::Arc;

use crate::device::params::matmul::{DbiasParams, DwParams};
use crate::device::params::product::{Strided, THREADS};
use crate::device::{Column, Gpu, Grid, LaunchArgs, Scratch, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::gemm_gpu::{Direction, GpuWeight, backward, forward, grid};
use crate::ops::{Matmul, MatmulDw, MatmulDx};
use crate::view::View;

impl<T: Float> GpuWeight<T> for View<'_, T> {
    type Params = Strided<T>;

    fn suits_tensor_cores(&self) -> bool {
        true
    }

    fn params(&self, launch: &mut LaunchArgs<'_>, direction: Direction) -> Result<Strided<T>> {
        match direction {
            Direction::Forward => Strided::rows(launch, self),
            Direction::Backward => Strided::columns(launch, self),
        }
    }

    fn is_written_out(&self, _rows: u64) -> bool {
        false
    }

    fn write_out<'s>(&self, _launch: &mut LaunchArgs<'s>, _gpu: &Gpu) -> Result<Scratch<'s>> {
        unreachable!("a dense weight is multiplied as it is")
    }
}

pub(crate) fn matmul<T: Float>(gpu: &Arc<Gpu>, a: Matmul<'_, T>) -> Result<()> {
    forward(gpu, "matmul", a)
}

pub(crate) fn matmul_dx<T: Float>(gpu: &Arc<Gpu>, a: MatmulDx<'_, T>) -> Result<()> {
    backward(gpu, "matmul_dx", a)
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
