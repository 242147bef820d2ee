//! Rotary embedding on the CPU: one head of one token per item.

use crate::device::parallel;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::CopyRows;
use crate::ops::decoder::copy_rows::cpu::copy_rows;
use crate::ops::decoder::rope::{Rope, RopeStore};
use crate::ops::support::math::dispatch_simd;
use crate::view::{Dims, View};

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

pub(crate) fn rope_store<T: Float>(a: RopeStore<'_, T>) -> Result<()> {
    let RopeStore { q, mut k, positions, cos, sin, cache } = a;
    rope(Rope { x: q, positions, cos, sin, inverse: false });
    rope(Rope { x: k.reborrow(), positions, cos, sin, inverse: false });
    let Some(cache) = cache else { return Ok(()) };
    let k = k.as_view();
    let shape = [k.extent(0) as i64, (k.extent(1) * k.extent(2)) as i64];
    let dims = Dims::strided(&shape, &[k.stride(0), 1])?;
    // SAFETY: the heads of a token lie side by side, as was checked, so these are k's own elements.
    let x = unsafe { View::from_raw(k.as_ptr(), dims, k.location()) }?;
    for (x, y) in [(x, cache.keys), (cache.v, cache.values)] {
        copy_rows(CopyRows { x, from_rows: None, to_rows: Some(cache.rows), y });
    }
    Ok(())
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
