//! RMSNorm on the CPU: one row per item, sums in f64 with column j in lane j mod 16; the gradient
//! of the gain by blocks of columns, rows in order.

use crate::alloc::{self, Gather};
use crate::device::parallel;
use crate::dtype::{DType, Float};
use crate::ops::decoder::rmsnorm::{RmsNorm, RmsNormBwd};
use crate::ops::support::math::dispatch_simd;
use crate::view::View;

/// Rough scalar operations per element.
const WORK: usize = 4;
/// Lanes of a sum over a row.
const LANES: usize = 16;
/// Columns of dweight summed at a time.
const COLUMNS: usize = 64;

pub(crate) fn rmsnorm<T: Float>(a: RmsNorm<'_, T>) {
    let (x, eps) = (a.x, a.eps);
    let (rows, d) = (x.extent(0), x.extent(1));
    let weight: Vec<f64> = (0..d).map(|j| a.weight.at(j).to_f64()).gathered();
    let mut scales = alloc::filled(0f64, rows);
    let items: Vec<_> = a.y.into_rows().into_iter().zip(&mut scales).gathered();
    parallel::for_each(items, d * WORK, |i, (y, scale)| {
        *scale = inverse_rms(x.row(i), eps);
        normalize(x.row(i), &weight, *scale, y);
    });
    if let Some(mut rstd) = a.rstd {
        scales.iter().enumerate().for_each(|(i, &s)| rstd.set(i, s as f32));
    }
}

/// With s = 1/rms, x̂ = s·x and g = dy ⊙ weight: dx = s·(g − x̂·mean(g ⊙ x̂)), dweight = Σ_rows dy ⊙ x̂.
pub(crate) fn rmsnorm_bwd<T: Float>(a: RmsNormBwd<'_, T>) {
    let (x, dy, eps) = (a.x, a.dy, a.eps);
    let (rows, d) = (x.extent(0), x.extent(1));
    let weight: Vec<f64> = (0..d).map(|j| a.weight.at(j).to_f64()).gathered();
    let mut scales = alloc::filled(0f64, rows);
    let items: Vec<_> = a.dx.into_rows().into_iter().zip(&mut scales).gathered();
    parallel::for_each(items, d * WORK * 2, |i, (dx, scale)| {
        *scale = inverse_rms(x.row(i), eps);
        propagate(x.row(i), &weight, dy.row(i), *scale, a.residual.as_ref().map(|r| r.row(i)), dx);
    });
    if let Some(mut dweight) = a.dweight {
        let blocks = d.div_ceil(COLUMNS);
        let sums = parallel::map(blocks, rows * COLUMNS, |b| {
            let mut sum = [0f64; COLUMNS];
            sum_columns(&x, &dy, &scales, b * COLUMNS, &mut sum);
            sum
        });
        for (j, sum) in sums.as_flattened()[..d].iter().enumerate() {
            dweight.set(j, (dweight.at(j) as f64 + sum) as f32);
        }
    }
}

dispatch_simd! {
    fn inverse_rms<T: Float>(row: &[T], eps: f64) -> f64 = inverse_rms_body
}

#[inline(always)]
fn inverse_rms_body<T: Float>(row: &[T], eps: f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        for l in 0..LANES {
            lanes[l] = x[l].to_f64().mul_add(x[l].to_f64(), lanes[l]);
        }
    }
    for (l, x) in rest.iter().enumerate() {
        lanes[l] = x.to_f64().mul_add(x.to_f64(), lanes[l]);
    }
    1.0 / (fold(lanes) / row.len() as f64 + eps).sqrt()
}

/// Sum of the lanes: halves onto each other, four times.
#[inline(always)]
fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

dispatch_simd! {
    fn normalize<T: Float>(x: &[T], weight: &[f64], scale: f64, y: &mut [T]) = normalize_body
}

#[inline(always)]
fn normalize_body<T: Float>(x: &[T], weight: &[f64], scale: f64, y: &mut [T]) {
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = T::from_f64(x.to_f64() * scale * w);
    }
}

dispatch_simd! {
    fn propagate<T: Float>(
        x: &[T],
        weight: &[f64],
        dy: &[T],
        scale: f64,
        residual: Option<&[T]>,
        dx: &mut [T],
    ) = propagate_body
}

#[inline(always)]
fn propagate_body<T: Float>(
    x: &[T],
    weight: &[f64],
    dy: &[T],
    scale: f64,
    residual: Option<&[T]>,
    dx: &mut [T],
) {
    let d = x.len();
    let (weight, dy, dx) = (&weight[..d], &dy[..d], &mut dx[..d]);
    let mut lanes = [0f64; LANES];
    let whole = d - d % LANES;
    for start in (0..whole).step_by(LANES) {
        let (x, w, dy) = (&x[start..][..LANES], &weight[start..][..LANES], &dy[start..][..LANES]);
        for l in 0..LANES {
            lanes[l] = (dy[l].to_f64() * w[l]).mul_add(x[l].to_f64(), lanes[l]);
        }
    }
    for j in whole..d {
        lanes[j - whole] = (dy[j].to_f64() * weight[j]).mul_add(x[j].to_f64(), lanes[j - whole]);
    }
    let shrink = fold(lanes) * scale * scale / d as f64;
    // Loops and not closures: what is not inlined here is compiled without fused multiply-adds.
    let Some(r) = residual.map(|r| &r[..d]) else {
        for j in 0..d {
            dx[j] = T::from_f64(gradient(x[j], dy[j], weight[j], scale, shrink));
        }
        return;
    };
    for j in 0..d {
        let g = gradient(x[j], dy[j], weight[j], scale, shrink);
        dx[j] = match T::DTYPE {
            DType::F64 => T::from_f64(r[j].to_f64() + g),
            _ => T::from_f32(r[j].to_f32() + g as f32),
        };
    }
}

#[inline(always)]
fn gradient<T: Float>(x: T, dy: T, weight: f64, scale: f64, shrink: f64) -> f64 {
    scale * x.to_f64().mul_add(-shrink, dy.to_f64() * weight)
}

dispatch_simd! {
    /// sum[j] += Σ_rows dy[row, first + j] · x[row, first + j] · scales[row].
    fn sum_columns<T: Float>(x: &View<'_, T>, dy: &View<'_, T>, scales: &[f64], first: usize, sum: &mut [f64; COLUMNS]) = sum_columns_body
}

#[inline(always)]
fn sum_columns_body<T: Float>(
    x: &View<'_, T>,
    dy: &View<'_, T>,
    scales: &[f64],
    first: usize,
    sum: &mut [f64; COLUMNS],
) {
    for (i, scale) in scales.iter().enumerate() {
        for ((sum, x), dy) in sum.iter_mut().zip(&x.row(i)[first..]).zip(&dy.row(i)[first..]) {
            *sum = (dy.to_f64() * x.to_f64()).mul_add(*scale, *sum);
        }
    }
}
