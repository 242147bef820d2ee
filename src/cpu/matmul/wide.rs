//! The products for f64 data: the same chains as plain loops.

use super::Base;
use crate::dtype::Float;
use crate::ops::lora_grad::LoraGrad;
use crate::ops::matmul::{Lora, MatmulDw};
use crate::view::{View, ViewMut};

fn chain(terms: impl Iterator<Item = (f64, f64)>, from: f64) -> f64 {
    terms.fold(from, |c, (a, b)| a.mul_add(b, c))
}

/// W[n, k] in f64.
fn weight<T: Float>(base: &Base<'_, T>, n: usize, k: usize) -> f64 {
    match base {
        Base::Dense(w) => w.row(n)[k].to_f64(),
        Base::Nf4(w) => w.value(n * w.k + k) as f64,
    }
}

/// The adapter of row `m`, if it uses one.
fn adapter_of<'b, 'a, T>(
    lora: &'b [Lora<'a, T>],
    adapter: &Option<View<'_, i32>>,
    m: usize,
) -> Option<&'b Lora<'a, T>> {
    lora.get(usize::try_from(adapter.as_ref().map_or(0, |a| a.at(m))).ok()?)
}

pub(super) fn matmul<T: Float>(
    x: View<'_, T>,
    base: Base<'_, T>,
    bias: Option<View<'_, T>>,
    lora: &[Lora<'_, T>],
    adapter: Option<View<'_, i32>>,
    mut s_out: Option<ViewMut<'_, f32>>,
    y: ViewMut<'_, T>,
) {
    for (m, y) in y.into_rows().into_iter().enumerate() {
        let x: Vec<f64> = x.row(m).iter().map(|v| v.to_f64()).collect();
        let used = adapter_of(lora, &adapter, m);
        let s: Vec<f64> = used.map_or(Vec::new(), |l| {
            let dot = |r| chain(x.iter().zip(l.a.row(r)).map(|(&x, a)| (x, a.to_f64())), 0.0);
            (0..l.a.extent(0)).map(|r| l.scale * dot(r)).collect()
        });
        if let Some(out) = &mut s_out {
            let row = out.row_mut(m);
            row.fill(0.0);
            row.iter_mut().zip(&s).for_each(|(o, &s)| *o = s as f32);
        }
        for (n, y) in y.iter_mut().enumerate() {
            let c = chain(x.iter().enumerate().map(|(k, &x)| (x, weight(&base, n, k))), 0.0);
            let c = used
                .map_or(c, |l| chain(s.iter().zip(l.b.row(n)).map(|(&s, b)| (s, b.to_f64())), c));
            *y = T::from_f64(c + bias.as_ref().map_or(0.0, |b| b.at(n).to_f64()));
        }
    }
}

pub(super) fn matmul_dx<T: Float>(
    dy: View<'_, T>,
    base: Base<'_, T>,
    lora: &[Lora<'_, T>],
    adapter: Option<View<'_, i32>>,
    accumulate: bool,
    dx: ViewMut<'_, T>,
) {
    for (m, dx) in dx.into_rows().into_iter().enumerate() {
        let dy: Vec<f64> = dy.row(m).iter().map(|v| v.to_f64()).collect();
        let used = adapter_of(lora, &adapter, m);
        let ds: Vec<f64> = used.map_or(Vec::new(), |l| {
            let column =
                |r: usize| dy.iter().enumerate().map(move |(n, &d)| (d, l.b.row(n)[r].to_f64()));
            (0..l.a.extent(0)).map(|r| l.scale * chain(column(r), 0.0)).collect()
        });
        for (k, dx) in dx.iter_mut().enumerate() {
            let c = chain(dy.iter().enumerate().map(|(n, &d)| (d, weight(&base, n, k))), 0.0);
            let c = used.map_or(c, |l| {
                chain(ds.iter().enumerate().map(|(r, &d)| (d, l.a.row(r)[k].to_f64())), c)
            });
            *dx = T::from_f64(if accumulate { dx.to_f64() + c } else { c });
        }
    }
}

pub(super) fn matmul_dw<T: Float>(a: MatmulDw<'_, T>) {
    let rows = a.x.extent(0);
    for (n, dw) in a.dw.into_rows().into_iter().enumerate() {
        for (k, dw) in dw.iter_mut().enumerate() {
            let terms = (0..rows).map(|m| (a.dy.row(m)[n].to_f64(), a.x.row(m)[k].to_f64()));
            *dw = (*dw as f64 + chain(terms, 0.0)) as f32;
        }
    }
    if let Some(mut dbias) = a.dbias {
        for n in 0..dbias.extent(0) {
            let sum: f64 = (0..rows).map(|m| a.dy.row(m)[n].to_f64()).sum();
            dbias.set(n, (dbias.at(n) as f64 + sum) as f32);
        }
    }
}

pub(super) fn lora_grad<T: Float>(mut a: LoraGrad<'_, T>) {
    let (n, k, rank) = (a.dy.extent(1), a.x.extent(1), a.s.extent(1));
    let used = |m: &usize| a.adapter.as_ref().is_none_or(|adapter| adapter.at(*m) == a.index);
    let rows: Vec<usize> = (0..a.x.extent(0)).filter(used).collect();
    for j in 0..n {
        for r in 0..rank {
            let terms = rows.iter().map(|&m| (a.dy.row(m)[j].to_f64(), a.s.row(m)[r] as f64));
            let db = &mut a.db.row_mut(j)[r];
            *db = (*db as f64 + chain(terms, 0.0)) as f32;
        }
    }
    for r in 0..rank {
        let ds: Vec<f64> = rows
            .iter()
            .map(|&m| {
                let terms = (0..n).map(|j| (a.dy.row(m)[j].to_f64(), a.lora.b.row(j)[r].to_f64()));
                a.lora.scale * chain(terms, 0.0)
            })
            .collect();
        for c in 0..k {
            let terms = rows.iter().zip(&ds).map(|(&m, &d)| (d, a.x.row(m)[c].to_f64()));
            let da = &mut a.da.row_mut(r)[c];
            *da = (*da as f64 + chain(terms, 0.0)) as f32;
        }
    }
}
