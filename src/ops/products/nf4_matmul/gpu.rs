//! Matrix products with 4-bit weights on the GPU.

use std::sync::Arc;

use crate::device::params::nf4::BlockMax;
use crate::device::params::nf4_matrix::{Nf4Matrix, SKINNY_SHARED};
use crate::device::{Gpu, Kernels, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::gemm_gpu::{Addend, Pass, Way, is_half, prepare};
use crate::ops::products::gemm_mma::{self, GemmWeight};
use crate::ops::{Nf4Matmul, Nf4MatmulDx};
use crate::quant::Nf4View;

impl Nf4Matrix {
    pub(in crate::ops::products) fn new(
        launch: &mut LaunchArgs<'_>,
        w: &Nf4View<'_>,
        way: Way,
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
            across: (way == Way::Backward) as i32,
            regular: regular as i32,
            quads: quads as i32,
            nested_shift: max.nested_shift(),
            pad: 0,
        })
    }
}

impl GemmWeight for Nf4Matrix {
    const KERNELS: &'static Kernels = &shipped::NF4_MATMUL;
    const FEW_SHARED: u64 = SKINNY_SHARED;

    fn suits_few_rows(&self, _depth: u64) -> bool {
        self.regular != 0
    }
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

fn nf4<T: Float>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    pass: Pass<'_, T>,
    w: &Nf4View<'_>,
) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::NF4_MATMUL);
    let way = pass.way;
    let tensor = is_half::<T>() && w.dtype == T::DTYPE;
    let Some(prepared) = prepare(&mut launch, gpu, op, pass, tensor)? else { return Ok(()) };
    let right = Nf4Matrix::new(&mut launch, w, way)?;
    if tensor {
        gemm_mma::launch(gpu, op, T::DTYPE.name(), way, prepared.product, right)?;
    } else {
        let (grid, params) = prepared.chain(op, right)?;
        launch.start(&format!("nf4_matmul_{}", T::DTYPE.name()), grid, &params)?;
    }
    launch.finish()
}
