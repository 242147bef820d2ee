//! Products with a 4-bit weight on the CPU: the dense product over a matrix that expands stretches
//! of its rows when they are packed.

use crate::dtype::{DType, Float};
use crate::ops::products::gemm_cpu::{
    Accumulator, COLUMNS, CpuWeight, Matrix, product_backward, product_forward,
};
use crate::ops::products::nf4_matmul::{Nf4Matmul, Nf4MatmulDx};
use crate::ops::quantize::decode::Nf4Reader;
use crate::quant::Nf4View;

impl<'a> CpuWeight for Nf4View<'a> {
    type Reader = Nf4Reader<'a>;

    fn reader(self) -> Nf4Reader<'a> {
        Nf4Reader::new(&self)
    }
}

/// A 4-bit matrix that reads as the floats it stands for.
impl<A: Accumulator> Matrix<A> for Nf4Reader<'_> {
    fn read(&self, row: usize, first: usize, out: &mut [A]) {
        Nf4Reader::read(self, row, first, out);
    }

    fn carry(&self, rows: [usize; COLUMNS], x: &[A], lanes: &mut [A]) -> bool {
        match A::DTYPE {
            DType::F32 => {
                self.carry_row(rows, bytemuck::cast_slice(x), bytemuck::cast_slice_mut(lanes))
            }
            _ => false,
        }
    }
}

pub(crate) fn nf4_matmul<T: Float>(args: Nf4Matmul<'_, T>) {
    product_forward(args);
}

pub(crate) fn nf4_matmul_dx<T: Float>(args: Nf4MatmulDx<'_, T>) {
    product_backward(args);
}
