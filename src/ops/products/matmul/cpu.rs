//! Matrix products with dense weights on the CPU.

use crate::alloc::{self, Gather};
use crate::device::parallel;
use crate::dtype::{DType, Float};
use crate::ops::products::gemm_cpu::{
    Accumulator, Cells, CpuWeight, Operand, Right, RowOrder, Segment, Stack, product,
    product_backward, product_forward,
};
use crate::ops::products::matmul::{Matmul, MatmulDw, MatmulDx};
use crate::view::View;

impl<T: Float> CpuWeight for View<'_, T> {
    type Reader = Self;

    fn reader(self) -> Self {
        self
    }
}

pub(crate) fn matmul<T: Float>(args: Matmul<'_, T>) {
    product_forward(args);
}

pub(crate) fn matmul_dx<T: Float>(args: MatmulDx<'_, T>) {
    product_backward(args);
}

pub(crate) fn matmul_dw<T: Float>(args: MatmulDw<'_, T>) {
    match T::DTYPE {
        DType::F64 => weight_gradient::<T, f64>(args),
        _ => weight_gradient::<T, f32>(args),
    }
}

/// dW += dYᵀ·X, dbias += Σ_rows dY.
fn weight_gradient<T: Float, A: Accumulator>(args: MatmulDw<'_, T>) {
    let MatmulDw { dy, x, dw, dbias } = args;
    let (m, n, k) = (dy.extent(0), dy.extent(1), x.extent(1));
    let left: Operand<'_, A> = Operand::Columns(&dy);
    let chain = [Segment { left, right: Right::Shared(Stack::all(&x)), depth: m }];
    let cells = Cells::new(dw.into_rows(), k);
    product(&RowOrder::all(n), k, &chain, &|position, sums| {
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(position.row, position.column, sums, |_, dw, sum| {
                *dw = A::widen(*dw).plus(sum).narrow();
            });
        }
    });
    if let Some(mut dbias) = dbias {
        let sums = column_sums(&dy);
        for (column, sum) in sums.into_iter().enumerate() {
            dbias.set(column, (dbias.at(column) as f64 + sum) as f32);
        }
    }
}

/// Σ_rows dy in f64, rows in order.
fn column_sums<T: Float>(dy: &View<'_, T>) -> Vec<f64> {
    const STRETCH: usize = 64;
    let (m, n) = (dy.extent(0), dy.extent(1));
    let mut sums = alloc::filled(0.0, n);
    parallel::for_each(sums.chunks_mut(STRETCH).gathered(), m * STRETCH, |i, sums| {
        for row in 0..m {
            let dy = &dy.row(row)[i * STRETCH..][..sums.len()];
            sums.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy.to_f64());
        }
    });
    sums
}
