//! Matrix products with 4-bit weights on the GPU.

use std::sync::Arc;

use crate::device::params::nf4::BlockMax;
use crate::device::params::nf4_matrix::{self, Nf4Matrix};
use crate::device::{Gpu, Kernels, LaunchArgs, Scratch, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::gemm_gpu::{Direction, GpuWeight, backward, forward};
use crate::ops::products::gemm_mma::{self, GemmWeight};
use crate::ops::quantize::nf4_dequantize::gpu as nf4_dequantize;
use crate::ops::{Nf4Matmul, Nf4MatmulDx};
use crate::quant::Nf4View;

impl Nf4Matrix {
    pub(in crate::ops::products) fn new(
        launch: &mut LaunchArgs<'_>,
        w: &Nf4View<'_>,
        direction: Direction,
    ) -> Result<Nf4Matrix> {
        let max = BlockMax::new(launch, w)?;
        let packed = launch.column(&w.packed)?;
        let k = w.k as u64;
        let whole =
            packed.stride == 1 && packed.at.address().is_multiple_of(16) && k.is_multiple_of(64);
        let regular = whole && max.is_regular();
        let chunk = gemm_mma::chunks(k).0;
        let quads = regular && (k | chunk).is_multiple_of(256) && max.in_quads();
        Ok(Nf4Matrix {
            packed,
            code: launch.column(&w.code)?,
            max,
            columns: w.k as i64,
            dtype: BlockMax::dtype_code(w.dtype),
            across: (direction == Direction::Backward) as i32,
            regular: regular as i32,
            quads: quads as i32,
            nested_shift: max.nested_shift(),
            pad: 0,
        })
    }
}

impl GemmWeight for Nf4Matrix {
    const KERNELS: &'static Kernels = &shipped::NF4_MATMUL;
    const FAN_KERNELS: &'static Kernels = &shipped::NF4_MATMUL_FAN;
    const SKINNY_SHARED: u64 = nf4_matrix::SKINNY_SHARED;

    fn suits_skinny(&self, _depth: u64) -> bool {
        self.regular != 0
    }
}

impl<T: Float> GpuWeight<T> for Nf4View<'_> {
    type Params = Nf4Matrix;

    fn suits_tensor_cores(&self) -> bool {
        self.dtype == T::DTYPE
    }

    fn params(&self, launch: &mut LaunchArgs<'_>, direction: Direction) -> Result<Nf4Matrix> {
        Nf4Matrix::new(launch, self, direction)
    }

    fn is_written_out(&self, rows: u64) -> bool {
        gemm_mma::writes_out(rows, [self.n as u64, self.k as u64])
    }

    fn write_out<'s>(&self, launch: &mut LaunchArgs<'s>, gpu: &Gpu) -> Result<Scratch<'s>> {
        let copy = launch.scratch(self.n * self.k * size_of::<T>())?;
        nf4_dequantize::start::<T>(launch, gpu, self, copy.ptr(), (self.k as i64, true))?;
        Ok(copy)
    }
}

pub(crate) fn nf4_matmul<T: Float>(gpu: &Arc<Gpu>, a: Nf4Matmul<'_, T>) -> Result<()> {
    forward(gpu, "nf4_matmul", a)
}

pub(crate) fn nf4_matmul_dx<T: Float>(gpu: &Arc<Gpu>, a: Nf4MatmulDx<'_, T>) -> Result<()> {
    backward(gpu, "nf4_matmul_dx", a)
}
