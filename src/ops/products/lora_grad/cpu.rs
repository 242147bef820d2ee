//! Gradients of an adapter on the CPU: two products over the rows that took the adapter.

use std::ops::Range;

use crate::alloc::{self, Gather};
use crate::device::parallel;
use crate::dtype::{DType, Float};
use crate::ops::products::gemm_cpu::{
    Accumulator, Buffer, Cells, Link, Matrix, Operand, Right, RowOrder, Scratch, Segment, Stack,
    product,
};
use crate::ops::products::lora_grad::LoraGrad;

/// Rows whose sums are one chain, counted among those that took the adapter: also `CHUNK` of
/// `kernels/products/lora_grad.cu`. A constant, so that an adapter's gradient depends on its own rows
/// only. Chunks of 128 rows give a GPU enough independent work, and their sums are small beside their rows.
pub(crate) const CHUNK: usize = 128;

pub(crate) fn lora_grad<T: Float>(args: LoraGrad<'_, T>) {
    match T::DTYPE {
        DType::F64 => gradients::<T, f64>(args),
        _ => gradients::<T, f32>(args),
    }
}

fn gradients<T: Float, A: Accumulator>(args: LoraGrad<'_, T>) {
    let LoraGrad { x, dy, s, lora, adapter, index, da, db } = args;
    let (m, k, n, rank) = (x.extent(0), x.extent(1), dy.extent(1), s.extent(1));
    let picked: Vec<usize> =
        (0..m).filter(|&row| adapter.as_ref().is_none_or(|a| a.at(row) == index)).sifted();
    let count = picked.len();

    // dS = scale·dY·B, one packed row per picked row.
    let mut ds = Scratch::<A>::take(count * rank);
    let right = Right::Shared(Stack::all(&lora.b));
    let segment: Link<'_, A> = Segment { left: Operand::Rows(&dy), right, depth: n };
    let cells = Cells::new(ds.chunks_exact_mut(rank), rank);
    product(&RowOrder::picked(alloc::copied(&picked)), rank, &[segment], &|position, sums| {
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(position.packed, position.column, sums, |_, ds, sum| {
                *ds = A::from_f64(lora.scale * sum.to_f64());
            });
        }
    });
    drop(cells);

    // dA = dSᵀ·X.
    let cells = Cells::new(da.into_rows(), k);
    let mut sums = Chunks::new([rank, k], count);
    for (part, rows) in parts(&picked) {
        let ds = Buffer { data: &ds[part.start * rank..part.end * rank], columns: rank };
        let right = Right::Shared(Stack::picked(&x, rows));
        let segment = Segment { left: Operand::Columns(&ds), right, depth: rows.len() };
        sums.add(part, segment, &|row, column, sums| {
            // SAFETY: the product hands over each element once.
            unsafe { cells.update(row, column, sums, |_, da, sum| add(da, sum)) };
        });
    }

    // dBᵀ = Sᵀ·dY: the long side in the lanes.
    let cells = Cells::new(db.into_rows(), rank);
    let mut sums = Chunks::new([rank, n], count);
    for (part, rows) in parts(&picked) {
        let left: Operand<'_, A> = Operand::Picked(&s as &dyn Matrix<A>, rows);
        let right = Right::Shared(Stack::picked(&dy, rows));
        let segment = Segment { left, right, depth: rows.len() };
        sums.add(part, segment, &|row, column, sums| {
            for (i, sum) in sums.iter().enumerate() {
                let sum = std::slice::from_ref(sum);
                // SAFETY: the product hands over each element once.
                unsafe { cells.update(column + i, row, sum, |_, db, sum| add(db, sum)) };
            }
        });
    }
}

/// Steps of each chunk, and the rows they stand for. Of no rows there is one chunk.
fn parts(picked: &[usize]) -> impl Iterator<Item = (Range<usize>, &[usize])> {
    (0..picked.len().max(1)).step_by(CHUNK).map(|first| {
        let part = first..picked.len().min(first + CHUNK);
        (part.clone(), &picked[part])
    })
}

/// The sums of a product over rows, chunk by chunk.
struct Chunks<A: Accumulator> {
    extents: [usize; 2],
    steps: usize,
    /// Sums of the chunks before, added up in order.
    total: Scratch<A>,
}

/// Takes the sums from (row, column) on.
type Done<'s, A> = dyn Fn(usize, usize, &[A]) + Sync + 's;

impl<A: Accumulator> Chunks<A> {
    fn new(extents: [usize; 2], steps: usize) -> Chunks<A> {
        // One chunk needs no memory.
        let len = if steps > CHUNK { extents[0] * extents[1] } else { 0 };
        Chunks { extents, steps, total: Scratch::take(len) }
    }

    /// Adds the chunk's sums to the total, and hands the last total to `done`.
    fn add(&mut self, part: Range<usize>, segment: Link<'_, A>, done: &Done<'_, A>) {
        let ([rows, columns], first) = (self.extents, part.start == 0);
        if self.steps <= CHUNK {
            return product(&RowOrder::all(rows), columns, &[segment], &|position, sums| {
                done(position.row, position.column, sums);
            });
        }
        let cells = Cells::new(self.total.chunks_exact_mut(columns), columns);
        product(&RowOrder::all(rows), columns, &[segment], &|position, sums| {
            // SAFETY: the product hands over each element once.
            unsafe {
                cells.update(position.row, position.column, sums, |_, total, sum| {
                    *total = if first { sum } else { total.plus(sum) };
                });
            }
        });
        drop(cells);
        if part.end == self.steps {
            let totals = self.total.chunks_exact(columns).gathered();
            parallel::for_each(totals, columns, |row, totals| done(row, 0, totals));
        }
    }
}

fn add<A: Accumulator>(gradient: &mut f32, sum: A) {
    *gradient = A::widen(*gradient).plus(sum).narrow();
}
