//! Matrix products on the CPU. Each output element is one chain of fused multiply-adds in f32
//! (f64 for f64 operands) over increasing steps, first the weight's, then the adapter's, and is
//! rounded once at the end: its bits depend on its own operands only.

mod operand;
mod product;
mod scratch;
mod tile;
mod transpose;

pub(crate) use operand::{Matrix, Operand};
pub(crate) use product::{Cells, Link, Right, Rows, product};
pub(crate) use scratch::Scratch;
pub(crate) use tile::Lane;

use crate::alloc::{Gather, Grow};
use crate::dtype::Float;
use crate::ops::products::matmul::Lora;
use crate::view::{View, ViewMut};

/// Adapters and which row takes which.
pub(crate) struct Adapters<'a, T> {
    pub lora: &'a [Lora<'a, T>],
    pub adapter: Option<View<'a, i32>>,
}

impl<T: Float> Adapters<'_, T> {
    fn rows(&self, count: usize) -> Rows {
        match &self.adapter {
            Some(adapter) if !self.lora.is_empty() => Rows::grouped(adapter),
            _ => Rows::all(count),
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

impl<A: Lane> Matrix<A> for Buffer<'_, A> {
    fn read(&self, row: usize, first: usize, out: &mut [A]) {
        out.copy_from_slice(&self.data[row * self.columns + first..][..out.len()]);
    }
}

/// A forward product with any weight.
pub(crate) struct Forward<'a, T> {
    pub x: View<'a, T>,
    pub bias: Option<View<'a, T>>,
    pub adapters: Adapters<'a, T>,
    pub s: Option<ViewMut<'a, f32>>,
    pub residual: Option<View<'a, T>>,
    pub y: ViewMut<'a, T>,
}

/// Y = X·Wᵀ, then S·Bᵀ with S = scale·X·Aᵀ as further steps, then the bias, then the residual.
pub(crate) fn forward<T: Float, A: Lane>(pass: Forward<'_, T>, w: &dyn Matrix<A>) {
    let Forward { x, bias, adapters, s, residual, y } = pass;
    let (m, k, n) = (x.extent(0), x.extent(1), y.extent(1));
    let (rows, rank) = (adapters.rows(m), adapters.rank());
    let mut low = Scratch::<A>::take(m * rank);
    if rank > 0 {
        let right = adapters.lora.iter().map(|lora| Operand::Rows(&lora.a)).gathered();
        let link = Link { left: Operand::Rows(&x), right: Right::PerGroup(right), depth: k };
        low_rank(&rows, link, &adapters, &mut low);
        if let Some(s) = s {
            let from = low.chunks_exact(rank);
            s.into_rows().into_iter().zip(from).for_each(|(to, from)| {
                to.iter_mut().zip(from).for_each(|(to, &s)| *to = s.narrow());
            });
        }
    }
    let low = Buffer { data: &low, columns: rank };
    let right = Right::Shared(Operand::Rows(w));
    let mut chain = vec![Link { left: Operand::Rows(&x), right, depth: k }];
    if rank > 0 {
        let right = adapters.lora.iter().map(|lora| Operand::Rows(&lora.b)).gathered();
        let left = Operand::Rows(&low);
        chain.put(Link { left, right: Right::PerGroup(right), depth: rank });
    }
    let bias: Option<Vec<A>> = bias.map(|b| b.to_vec().into_iter().map(A::widen).gathered());
    let cells = Cells::new(y.into_rows(), n);
    product(&rows, n, &chain, &|place, sums| {
        let residual = residual.as_ref().map(|residual| residual.row(place.row));
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(place.row, place.column, sums, |column, y, sum| {
                let sum = bias.as_ref().map_or(sum, |bias| sum.plus(bias[column]));
                *y = residual.map_or(sum, |row| A::widen(row[column]).plus(sum)).narrow();
            });
        }
    });
}

/// `low[row] = scale · (link's product)` for rows with an adapter and 0 for the others.
pub(crate) fn low_rank<T: Float, A: Lane>(
    rows: &Rows,
    link: Link<'_, A>,
    adapters: &Adapters<'_, T>,
    low: &mut [A],
) {
    let rank = adapters.rank();
    low.fill(A::ZERO);
    let cells = Cells::new(low.chunks_exact_mut(rank), rank);
    product(rows, rank, &[link], &|place, sums| {
        let Some(group) = place.group else { return };
        let scale = adapters.lora[group].scale;
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(place.row, place.column, sums, |_, low, sum| {
                *low = A::from_f64(scale * sum.to_f64());
            });
        }
    });
}

/// A backward product with any weight.
pub(crate) struct Backward<'a, T> {
    pub dy: View<'a, T>,
    pub adapters: Adapters<'a, T>,
    pub accumulate: bool,
    pub dx: ViewMut<'a, T>,
}

/// dX = dY·W, then dS·A with dS = scale·dY·B as further steps.
pub(crate) fn backward<T: Float, A: Lane>(pass: Backward<'_, T>, w: &dyn Matrix<A>) {
    let Backward { dy, adapters, accumulate, dx } = pass;
    let (m, n, k) = (dy.extent(0), dy.extent(1), dx.extent(1));
    let (rows, rank) = (adapters.rows(m), adapters.rank());
    let mut low = Scratch::<A>::take(m * rank);
    if rank > 0 {
        let right = adapters.lora.iter().map(|lora| Operand::Columns(&lora.b)).gathered();
        let link = Link { left: Operand::Rows(&dy), right: Right::PerGroup(right), depth: n };
        low_rank(&rows, link, &adapters, &mut low);
    }
    let low = Buffer { data: &low, columns: rank };
    let right = Right::Shared(Operand::Columns(w));
    let mut chain = vec![Link { left: Operand::Rows(&dy), right, depth: n }];
    if rank > 0 {
        let right = adapters.lora.iter().map(|lora| Operand::Columns(&lora.a)).gathered();
        let left = Operand::Rows(&low);
        chain.put(Link { left, right: Right::PerGroup(right), depth: rank });
    }
    let cells = Cells::new(dx.into_rows(), k);
    product(&rows, k, &chain, &|place, sums| {
        // SAFETY: the product hands over each element once.
        unsafe {
            cells.update(place.row, place.column, sums, |_, dx, sum| {
                *dx = if accumulate { A::widen(*dx).plus(sum) } else { sum }.narrow();
            });
        }
    });
}
