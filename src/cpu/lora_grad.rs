//! Gradients of an adapter on the CPU: two products over the rows that took the adapter.

use crate::cpu::matmul::{
    Buffer, Cells, Lane, Link, Matrix, Operand, Right, Rows, Scratch, product,
};
use crate::dtype::{DType, Float};
use crate::ops::lora_grad::LoraGrad;

pub(crate) fn lora_grad<T: Float>(args: LoraGrad<'_, T>) {
    match T::DTYPE {
        DType::F64 => gradients::<T, f64>(args),
        _ => gradients::<T, f32>(args),
    }
}

fn gradients<T: Float, A: Lane>(args: LoraGrad<'_, T>) {
    let LoraGrad { x, dy, s, lora, adapter, index, da, db } = args;
    let (m, k, n, rank) = (x.extent(0), x.extent(1), dy.extent(1), s.extent(1));
    let picked: Vec<usize> =
        (0..m).filter(|&row| adapter.as_ref().is_none_or(|a| a.at(row) == index)).collect();
    let count = picked.len();

    // dS = scale·dY·B, one packed row per picked row.
    let mut ds = Scratch::<A>::take(count * rank);
    let right = Right::Shared(Operand::Columns(&lora.b));
    let link: Link<'_, A> = Link { left: Operand::Rows(&dy), right, depth: n };
    let cells = Cells::new(ds.chunks_exact_mut(rank), rank);
    product(&Rows::picked(picked.clone()), rank, &[link], &|place, sums| {
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(place.packed, place.column, sums, |_, ds, sum| {
                *ds = A::from_f64(lora.scale * sum.to_f64());
            });
        }
    });
    drop(cells);

    // dA = dSᵀ·X.
    let ds = Buffer { data: &ds, columns: rank };
    let right = Right::Shared(Operand::Picked(&x, &picked));
    let link = Link { left: Operand::Columns(&ds), right, depth: count };
    let cells = Cells::new(da.into_rows(), k);
    product(&Rows::all(rank), k, &[link], &|place, sums| {
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(place.row, place.column, sums, |_, da, sum| add(da, sum));
        }
    });

    // dBᵀ = Sᵀ·dY: the long side in the lanes.
    let left: Operand<'_, A> = Operand::Picked(&s as &dyn Matrix<A>, &picked);
    let right = Right::Shared(Operand::Picked(&dy, &picked));
    let cells = Cells::new(db.into_rows(), rank);
    product(&Rows::all(rank), n, &[Link { left, right, depth: count }], &|place, sums| {
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: the product hands over each element once.
            unsafe {
                let (row, column) = (place.column + i, place.row);
                cells.update(row, column, std::slice::from_ref(sum), |_, db, sum| add(db, sum));
            }
        }
    });
}

fn add<A: Lane>(gradient: &mut f32, sum: A) {
    *gradient = A::widen(*gradient).plus(sum).narrow();
}
