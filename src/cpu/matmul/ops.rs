//! The public products in terms of [`multiply`](super::multiply). f64 takes a plain loop of the
//! same chains in f64: it serves finite differences, not speed.

use super::{Columns, Nf4Columns, Nf4Rows, Operand, Rows, into_output, multiply, with_f32};
use crate::cpu::scratch;
use crate::dtype::{DType, Float};
use crate::ops::lora_grad::LoraGrad;
use crate::ops::matmul::{Lora, Matmul, MatmulDw, MatmulDx};
use crate::ops::nf4_matmul::Nf4Matmul;
use crate::ops::nf4_matmul_dx::Nf4MatmulDx;
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// A weight `[N, K]` as it is stored.
#[derive(Clone, Copy)]
pub(crate) enum Base<'a, T> {
    Dense(View<'a, T>),
    Nf4(Nf4View<'a>),
}

impl<T: Float> Base<'_, T> {
    /// c += x·Wᵀ.
    fn forward(&self, x: Operand<'_>, c: &mut [f32]) {
        match self {
            Base::Dense(w) => multiply(x, &Columns(*w), c),
            Base::Nf4(w) => multiply(x, &Nf4Columns::new(*w), c),
        }
    }

    /// c += dy·W.
    fn backward(&self, dy: Operand<'_>, c: &mut [f32]) {
        match self {
            Base::Dense(w) => multiply(dy, &Rows(*w), c),
            Base::Nf4(w) => multiply(dy, &Nf4Rows::new(*w), c),
        }
    }
}

/// Rows that use adapter `index`; `None` = all rows.
fn rows_of(adapter: &Option<View<'_, i32>>, index: usize) -> Option<Vec<usize>> {
    let adapter = adapter.as_ref()?;
    Some((0..adapter.extent(0)).filter(|&m| adapter.at(m) == index as i32).collect())
}

/// Calls `body` with the chosen rows of a row-major matrix, all of them as they are.
fn with_rows<R>(
    x: &[f32],
    columns: usize,
    rows: &Option<Vec<usize>>,
    body: impl FnOnce(&[f32]) -> R,
) -> R {
    let Some(rows) = rows else { return body(x) };
    scratch::with(rows.len() * columns, |copy| {
        for (to, &from) in copy.chunks_exact_mut(columns.max(1)).zip(rows) {
            to.copy_from_slice(&x[from * columns..(from + 1) * columns]);
        }
        body(copy)
    })
}

/// c[rows] continued by `body` on a compact copy of these rows.
fn on_rows(
    c: &mut [f32],
    columns: usize,
    rows: &Option<Vec<usize>>,
    body: impl FnOnce(&mut [f32]),
) {
    let Some(rows) = rows else { return body(c) };
    scratch::with(rows.len() * columns, |copy| {
        for (to, &from) in copy.chunks_exact_mut(columns.max(1)).zip(rows) {
            to.copy_from_slice(&c[from * columns..(from + 1) * columns]);
        }
        body(copy);
        for (from, &to) in copy.chunks_exact(columns.max(1)).zip(rows) {
            c[to * columns..(to + 1) * columns].copy_from_slice(from);
        }
    })
}

/// s = scale·x·Aᵀ, rounded to f32.
fn down<T: Float>(x: &[f32], lora: &Lora<'_, T>, s: &mut [f32]) {
    multiply(Operand::rows(x, lora.a.extent(1)), &Columns(lora.a), s);
    s.iter_mut().for_each(|v| *v = (*v as f64 * lora.scale) as f32);
}

pub(crate) fn matmul<T: Float>(a: Matmul<'_, T>) {
    forward(a.x, Base::Dense(a.w), a.bias, a.lora, a.adapter, a.s, a.y);
}

pub(crate) fn nf4_matmul<T: Float>(a: Nf4Matmul<'_, T>) {
    forward(a.x, Base::Nf4(a.w), a.bias, a.lora, a.adapter, a.s, a.y);
}

pub(crate) fn matmul_dx<T: Float>(a: MatmulDx<'_, T>) {
    backward(a.dy, Base::Dense(a.w), a.lora, a.adapter, a.accumulate, a.dx);
}

pub(crate) fn nf4_matmul_dx<T: Float>(a: Nf4MatmulDx<'_, T>) {
    backward(a.dy, Base::Nf4(a.w), a.lora, a.adapter, a.accumulate, a.dx);
}

/// Y = X·Wᵀ + Σ S·Bᵀ + bias in one chain per element; the bias last, one rounding to T.
fn forward<T: Float>(
    x: View<'_, T>,
    base: Base<'_, T>,
    bias: Option<View<'_, T>>,
    lora: &[Lora<'_, T>],
    adapter: Option<View<'_, i32>>,
    s_out: Option<ViewMut<'_, f32>>,
    y: ViewMut<'_, T>,
) {
    if T::DTYPE == DType::F64 {
        return super::wide::matmul(x, base, bias, lora, adapter, s_out, y);
    }
    let (k, n) = (x.extent(1), y.extent(1));
    let rank = lora.first().map_or(0, |l| l.a.extent(0));
    let mut s_out = s_out;
    with_f32(&x, |x| {
        let product = |c: &mut [f32]| {
            base.forward(Operand::rows(x, k), c);
            if let Some(s_out) = &mut s_out {
                s_out.fill(0.0);
            }
            for (index, lora) in lora.iter().enumerate() {
                let rows = rows_of(&adapter, index);
                with_rows(x, k, &rows, |x| {
                    scratch::with(x.len() / k.max(1) * rank, |s| {
                        down(x, lora, s);
                        let up =
                            |c: &mut [f32]| multiply(Operand::rows(s, rank), &Columns(lora.b), c);
                        on_rows(c, n, &rows, up);
                        if let Some(s_out) = &mut s_out {
                            keep(s_out, s, rank, &rows);
                        }
                    })
                });
            }
        };
        let add_bias = |_: T, j: usize, c: f32| match &bias {
            Some(bias) => T::from_f32(c + bias.at(j).to_f32()),
            None => T::from_f32(c),
        };
        into_output(y, bias.is_none(), product, add_bias);
    });
}

/// Writes the rows of `s` where they belong.
fn keep(out: &mut ViewMut<'_, f32>, s: &[f32], rank: usize, rows: &Option<Vec<usize>>) {
    for (i, s) in s.chunks_exact(rank.max(1)).enumerate() {
        let row = rows.as_ref().map_or(i, |rows| rows[i]);
        out.row_mut(row).copy_from_slice(s);
    }
}

/// dX = dY·W + Σ (scale·dY·B)·A in one chain per element, or old + that.
fn backward<T: Float>(
    dy: View<'_, T>,
    base: Base<'_, T>,
    lora: &[Lora<'_, T>],
    adapter: Option<View<'_, i32>>,
    accumulate: bool,
    dx: ViewMut<'_, T>,
) {
    if T::DTYPE == DType::F64 {
        return super::wide::matmul_dx(dy, base, lora, adapter, accumulate, dx);
    }
    let (n, k) = (dy.extent(1), dx.extent(1));
    with_f32(&dy, |dy| {
        let product = |c: &mut [f32]| {
            base.backward(Operand::rows(dy, n), c);
            for (index, lora) in lora.iter().enumerate() {
                let (rows, rank) = (rows_of(&adapter, index), lora.a.extent(0));
                with_rows(dy, n, &rows, |dy| {
                    scratch::with(dy.len() / n.max(1) * rank, |ds| {
                        up_gradient(dy, n, lora, ds);
                        let term =
                            |c: &mut [f32]| multiply(Operand::rows(ds, rank), &Rows(lora.a), c);
                        on_rows(c, k, &rows, term);
                    })
                });
            }
        };
        let finish = |old: T, _: usize, c: f32| match accumulate {
            true => T::from_f32(old.to_f32() + c),
            false => T::from_f32(c),
        };
        into_output(dx, !accumulate, product, finish);
    });
}

/// ds = scale·dy·B, rounded to f32.
fn up_gradient<T: Float>(dy: &[f32], n: usize, lora: &Lora<'_, T>, ds: &mut [f32]) {
    multiply(Operand::rows(dy, n), &Rows(lora.b), ds);
    ds.iter_mut().for_each(|v| *v = (*v as f64 * lora.scale) as f32);
}

/// dW += dYᵀ·X, dbias += Σ_m dY.
pub(crate) fn matmul_dw<T: Float>(a: MatmulDw<'_, T>) {
    if T::DTYPE == DType::F64 {
        return super::wide::matmul_dw(a);
    }
    let (n, dw) = (a.dy.extent(1), a.dw);
    with_f32(&a.dy, |dy| {
        let product = |c: &mut [f32]| multiply(Operand::transposed(dy, n), &Rows(a.x), c);
        into_output(dw, false, product, |old: f32, _, c| old + c);
        if let Some(mut dbias) = a.dbias {
            for j in 0..n {
                let sum: f64 = dy.iter().skip(j).step_by(n).map(|&v| v as f64).sum();
                dbias.set(j, (dbias.at(j) as f64 + sum) as f32);
            }
        }
    });
}

/// dB += dYᵀ·S and dA += (scale·dY·B)ᵀ·X over the rows of one adapter.
pub(crate) fn lora_grad<T: Float>(a: LoraGrad<'_, T>) {
    if T::DTYPE == DType::F64 {
        return super::wide::lora_grad(a);
    }
    let (n, k, rank) = (a.dy.extent(1), a.x.extent(1), a.s.extent(1));
    let rows = rows_of(&a.adapter, a.index as usize);
    with_f32(&a.dy, |dy| {
        with_f32(&a.s, |s| {
            with_rows(dy, n, &rows, |dy| {
                with_rows(s, rank, &rows, |s| {
                    let s = View::rows_of(s, rank.max(1));
                    if let Ok(s) = s {
                        let product =
                            |c: &mut [f32]| multiply(Operand::transposed(dy, n), &Rows(s), c);
                        into_output(a.db, false, product, |old: f32, _, c| old + c);
                    }
                });
                scratch::with(dy.len() / n.max(1) * rank, |ds| {
                    up_gradient(dy, n, &a.lora, ds);
                    with_f32(&a.x, |x| {
                        with_rows(x, k, &rows, |x| {
                            let Ok(x) = View::rows_of(x, k.max(1)) else { return };
                            let product = |c: &mut [f32]| {
                                multiply(Operand::transposed(ds, rank), &Rows(x), c)
                            };
                            into_output(a.da, false, product, |old: f32, _, c| old + c);
                        })
                    })
                })
            })
        })
    });
}
