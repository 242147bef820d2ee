//! Products with a 4-bit weight on the CPU: the dense product over a matrix that expands stretches
//! of its rows when they are packed.

use crate::dtype::{DType, Float};
use crate::ops::products::gemm_cpu::{
    Adapters, Backward, Forward, Lane, Matrix, backward, forward,
};
use crate::ops::products::nf4_matmul::Nf4Matmul;
use crate::ops::products::nf4_matmul::dx::Nf4MatmulDx;
use crate::ops::quantize::decode::Nf4Reader;

pub(crate) fn nf4_matmul<T: Float>(args: Nf4Matmul<'_, T>) {
    let Nf4Matmul { x, w, bias, lora, adapter, s, residual, y } = args;
    let w = Nf4Reader::new(&w);
    let pass = Forward { x, bias, adapters: Adapters { lora, adapter }, s, residual, y };
    match T::DTYPE {
        DType::F64 => forward::<T, f64>(pass, &w),
        _ => forward::<T, f32>(pass, &w),
    }
}

pub(crate) fn nf4_matmul_dx<T: Float>(args: Nf4MatmulDx<'_, T>) {
    let Nf4MatmulDx { dy, w, lora, adapter, accumulate, dx } = args;
    let w = Nf4Reader::new(&w);
    let pass = Backward { dy, adapters: Adapters { lora, adapter }, accumulate, dx };
    match T::DTYPE {
        DType::F64 => backward::<T, f64>(pass, &w),
        _ => backward::<T, f32>(pass, &w),
    }
}

/// A 4-bit matrix that reads as the floats it stands for.
impl<A: Lane> Matrix<A> for Nf4Reader<'_> {
    fn read(&self, row: usize, first: usize, out: &mut [A]) {
        Nf4Reader::read(self, row, first, out);
    }
}
