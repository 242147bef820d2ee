//! Matrix products on the CPU, in f32 (f64 for f64 operands). An element is rounded once at the end, and its bits
//! depend on its own operands only.
//!
//! In the forward pass, rows times rows, it is 16 chains of fused multiply-adds over increasing steps, one for each
//! lane of a vector, first over the weight's steps, then over the adapter's; then one tree ([`lanes`]). In gradients,
//! where the weight's rows are the steps, it is one chain ([`product`]).

mod dot;
mod lanes;
mod operand;
mod product;
mod scratch;
mod tile;

pub(crate) use dot::dots;
pub(crate) use lanes::{COLUMNS, LANES};
pub(crate) use operand::{Matrix, Operand, Stack};
pub(crate) use product::{Cells, Link, Right, RowOrder, Segment, product};
use product::{Position, Sink};
pub(crate) use scratch::Scratch;
pub(crate) use tile::Accumulator;

use crate::alloc::{Gather, Grow};
use crate::dtype::{DType, Float};
use crate::ops::products::product::{Lora, Product, ProductDx};
use crate::view::View;

/// A weight as the CPU reads it.
pub(crate) trait CpuWeight: Copy {
    /// Reads rows of the weight as f32 or f64.
    type Reader: Matrix<f32> + Matrix<f64>;

    fn reader(self) -> Self::Reader;
}

/// Y = X·Wᵀ with any weight, in f32 or for f64 operands in f64.
pub(crate) fn product_forward<T: Float, W: CpuWeight>(args: Product<'_, T, W>) {
    let w = args.w.reader();
    match T::DTYPE {
        DType::F64 => forward::<T, W, f64>(args, &w),
        _ => forward::<T, W, f32>(args, &w),
    }
}

/// dX = dY·W with any weight, in f32 or for f64 operands in f64.
pub(crate) fn product_backward<T: Float, W: CpuWeight>(args: ProductDx<'_, T, W>) {
    let w = args.w.reader();
    match T::DTYPE {
        DType::F64 => backward::<T, W, f64>(args, &w),
        _ => backward::<T, W, f32>(args, &w),
    }
}

/// Adapters and which row takes which.
struct Adapters<'a, T> {
    lora: &'a [Lora<'a, T>],
    adapter: Option<View<'a, i32>>,
}

impl<T: Float> Adapters<'_, T> {
    fn rows(&self, count: usize) -> RowOrder {
        match &self.adapter {
            Some(adapter) if !self.lora.is_empty() => RowOrder::grouped(adapter),
            _ => RowOrder::all(count),
        }
    }

    fn rank(&self) -> usize {
        self.lora.first().map_or(0, |lora| lora.a.extent(0))
    }
}

/// A packed row-major buffer as an operand.
pub(crate) struct Buffer<'s, A> {
    pub data: &'s [A],
    pub columns: usize,
}

impl<A: Accumulator> Matrix<A> for Buffer<'_, A> {
    fn read(&self, row: usize, first: usize, out: &mut [A]) {
        out.copy_from_slice(&self.data[row * self.columns + first..][..out.len()]);
    }
}

/// Y = X·Wᵀ, then S·Bᵀ with S = scale·X·Aᵀ as further steps, then the bias, then the residual.
fn forward<T: Float, W: CpuWeight, A: Accumulator>(a: Product<'_, T, W>, w: &dyn Matrix<A>) {
    let Product { x, bias, lora, adapter, s, residual, y, .. } = a;
    let adapters = Adapters { lora, adapter };
    let (m, k, n) = (x.extent(0), x.extent(1), y.extent(1));
    let (rows, rank) = (adapters.rows(m), adapters.rank());
    let mut low = Scratch::<A>::take(m * rank);
    if rank > 0 {
        let right = adapters.lora.iter().map(|lora| &lora.a as &dyn Matrix<A>).gathered();
        let left: &dyn Matrix<A> = &x;
        let chain = [Segment { left, right: Right::PerGroup(right), depth: k }];
        low_rank(&adapters, &mut low, |sink| dots(&rows, rank, &chain, sink));
        if let Some(s) = s {
            let from = low.chunks_exact(rank);
            s.into_rows().into_iter().zip(from).for_each(|(to, from)| {
                to.iter_mut().zip(from).for_each(|(to, &s)| *to = s.narrow());
            });
        }
    }
    let low = Buffer { data: &low, columns: rank };
    let mut chain = vec![Segment { left: &x as &dyn Matrix<A>, right: Right::Shared(w), depth: k }];
    if rank > 0 {
        let right = adapters.lora.iter().map(|lora| &lora.b as &dyn Matrix<A>).gathered();
        chain.put(Segment { left: &low, right: Right::PerGroup(right), depth: rank });
    }
    let bias: Option<Vec<A>> = bias.map(|b| b.to_vec().into_iter().map(A::widen).gathered());
    let cells = Cells::new(y.into_rows(), n);
    dots(&rows, n, &chain, &|Position { row, column, .. }, sums| {
        let bias = bias.as_ref().map(|bias| &bias[column..][..sums.len()]);
        let residual = residual.as_ref().map(|view| &view.row(row)[column..][..sums.len()]);
        let plus = |r: &T, sum| A::widen(*r).plus(sum);
        // SAFETY: the product hands over each element once.
        unsafe {
            match (bias, residual) {
                (None, None) => cells.update(row, column, sums, |_, y, sum| *y = sum.narrow()),
                (Some(b), None) => {
                    cells.update(row, column, sums, |i, y, sum| *y = sum.plus(b[i]).narrow());
                }
                (None, Some(r)) => {
                    cells.update(row, column, sums, |i, y, sum| *y = plus(&r[i], sum).narrow());
                }
                (Some(b), Some(r)) => cells.update(row, column, sums, |i, y, sum| {
                    *y = plus(&r[i], sum.plus(b[i])).narrow();
                }),
            }
        }
    });
}

/// `low[row] = scale · (the sums that `form` hands over)` for rows with an adapter and 0 for the others.
fn low_rank<T: Float, A: Accumulator>(
    adapters: &Adapters<'_, T>,
    low: &mut [A],
    form: impl FnOnce(&Sink<'_, A>),
) {
    let rank = adapters.rank();
    low.fill(A::ZERO);
    let cells = Cells::new(low.chunks_exact_mut(rank), rank);
    form(&|position, sums| {
        let Some(group) = position.group else { return };
        let scale = adapters.lora[group].scale;
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(position.row, position.column, sums, |_, low, sum| {
                *low = A::from_f64(scale * sum.to_f64());
            });
        }
    });
}

/// dX = dY·W, then dS·A with dS = scale·dY·B as further steps.
fn backward<T: Float, W: CpuWeight, A: Accumulator>(a: ProductDx<'_, T, W>, w: &dyn Matrix<A>) {
    let ProductDx { dy, lora, adapter, accumulate, dx, .. } = a;
    let adapters = Adapters { lora, adapter };
    let (m, n, k) = (dy.extent(0), dy.extent(1), dx.extent(1));
    let (rows, rank) = (adapters.rows(m), adapters.rank());
    let mut low = Scratch::<A>::take(m * rank);
    if rank > 0 {
        let right = adapters.lora.iter().map(|lora| Stack::all(&lora.b)).gathered();
        let left = Operand::Rows(&dy as &dyn Matrix<A>);
        let chain = [Segment { left, right: Right::PerGroup(right), depth: n }];
        low_rank(&adapters, &mut low, |sink| product(&rows, rank, &chain, sink));
    }
    let low = Buffer { data: &low, columns: rank };
    let right = Right::Shared(Stack::all(w));
    let mut chain = vec![Segment { left: Operand::Rows(&dy), right, depth: n }];
    if rank > 0 {
        let right = adapters.lora.iter().map(|lora| Stack::all(&lora.a)).gathered();
        let left = Operand::Rows(&low);
        chain.put(Segment { left, right: Right::PerGroup(right), depth: rank });
    }
    let cells = Cells::new(dx.into_rows(), k);
    product(&rows, k, &chain, &|position, sums| {
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(position.row, position.column, sums, |_, dx, sum| {
                *dx = if accumulate { A::widen(*dx).plus(sum) } else { sum }.narrow();
            });
        }
    });
}
