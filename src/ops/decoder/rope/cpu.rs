//! Rotary embedding on the CPU: one head of one token per item.

use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::decoder::rope::Rope;
use crate::ops::support::math::dispatch_simd;

/// Rough scalar operations per element.
const WORK: usize = 2;

pub(crate) fn rope<T: Float>(a: Rope<'_, T>) {
    let (positions, cos, sin) = (a.positions, a.cos, a.sin);
    let sign = if a.inverse { -1.0 } else { 1.0 };
    let (heads, d) = (a.x.extent(1).max(1), a.x.extent(2));
    parallel::for_each(a.x.into_rows(), d * WORK, |i, row| {
        let p = positions.at(i / heads) as usize;
        rotate(row, cos.row(p), sin.row(p), sign);
    });
}

dispatch_simd! {
    fn rotate<T: Float>(x: &mut [T], cos: &[f32], sin: &[f32], sign: f64) = rotate_body
}

#[inline(always)]
fn rotate_body<T: Float>(x: &mut [T], cos: &[f32], sin: &[f32], sign: f64) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (x, y, c, s) = (a.to_f64(), b.to_f64(), *c as f64, sign * *s as f64);
        *a = T::from_f64(x.mul_add(c, -(y * s)));
        *b = T::from_f64(y.mul_add(c, x * s));
    }
}
