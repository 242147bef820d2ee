//! Several products of one input on the GPU.

use std::sync::Arc;

use crate::device::Gpu;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::fan::{MatmulFan, Nf4MatmulFan};
use crate::ops::products::gemm_gpu::fan;

pub(crate) fn matmul_fan<T: Float>(gpu: &Arc<Gpu>, a: MatmulFan<'_, T>) -> Result<()> {
    fan(gpu, "matmul_fan", a)
}

pub(crate) fn nf4_matmul_fan<T: Float>(gpu: &Arc<Gpu>, a: Nf4MatmulFan<'_, T>) -> Result<()> {
    fan(gpu, "nf4_matmul_fan", a)
}
