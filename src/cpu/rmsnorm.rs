//! RMSNorm on the CPU: one row per item, sums in f64 in index order.

use crate::cpu::par;
use crate::dtype::Float;
use crate::ops::rmsnorm::{RmsNorm, RmsNormBwd};

/// Rough scalar operations per element.
const WORK: usize = 4;

pub(crate) fn rmsnorm<T: Float>(a: RmsNorm<'_, T>) {
    let (x, weight, eps) = (a.x, a.weight, a.eps);
    let mut rstd = a.rstd;
    let d = x.extent(1);
    let scales = par::map(x.extent(0), d * WORK, |i| inverse_rms(x.row(i), eps));
    if let Some(rstd) = &mut rstd {
        scales.iter().enumerate().for_each(|(i, &s)| rstd.set(i, s as f32));
    }
    par::for_each(a.y.into_rows(), d * WORK, |i, y| {
        let row = x.row(i);
        for j in 0..d {
            y[j] = T::from_f64(row[j].to_f64() * scales[i] * weight.at(j).to_f64());
        }
    });
}

/// With s = 1/rms, x̂ = s·x and g = dy ⊙ weight: dx = s·(g − x̂·mean(g ⊙ x̂)), dweight = Σ_rows dy ⊙ x̂.
pub(crate) fn rmsnorm_bwd<T: Float>(a: RmsNormBwd<'_, T>) {
    let (x, weight, dy, eps) = (a.x, a.weight, a.dy, a.eps);
    let (rows, d) = (x.extent(0), x.extent(1));
    let scales = par::map(rows, d * WORK, |i| inverse_rms(x.row(i), eps));
    par::for_each(a.dx.into_rows(), d * WORK, |i, dx| {
        let (x, dy, s) = (x.row(i), dy.row(i), scales[i]);
        let mut dot = 0.0;
        for j in 0..d {
            dot += dy[j].to_f64() * weight.at(j).to_f64() * x[j].to_f64();
        }
        let shrink = dot * s * s / d as f64;
        for j in 0..d {
            let g = dy[j].to_f64() * weight.at(j).to_f64();
            dx[j] = T::from_f64(s * (g - x[j].to_f64() * shrink));
        }
    });
    if let Some(mut dweight) = a.dweight {
        for j in 0..d {
            let sum: f64 =
                (0..rows).map(|i| dy.row(i)[j].to_f64() * x.row(i)[j].to_f64() * scales[i]).sum();
            dweight.set(j, (dweight.at(j) as f64 + sum) as f32);
        }
    }
}

fn inverse_rms<T: Float>(row: &[T], eps: f64) -> f64 {
    let sum: f64 = row.iter().map(|x| x.to_f64() * x.to_f64()).sum();
    1.0 / (sum / row.len() as f64 + eps).sqrt()
}
