//! Conversion between dtypes on the CPU.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::{DType, Float};
use crate::ops::decoder::convert::Convert;
use crate::ops::support::math;

/// Elements per item of work.
const CHUNK: usize = 4096;

pub(crate) fn convert<S: Float, T: Float>(mut a: Convert<'_, S, T>) {
    let (x, y) = (a.x.as_slice().unwrap_or(&[]), a.y.as_mut_slice().unwrap_or(&mut []));
    parallel::for_each(y.chunks_mut(CHUNK).gathered(), CHUNK, |i, y| {
        let x = &x[i * CHUNK..][..y.len()];
        match (S::DTYPE, T::DTYPE) {
            (from, to) if from == to => y.copy_from_slice(bytemuck::cast_slice(x)),
            (DType::F64, _) => narrow(x, y),
            _ => through_f32(x, y),
        }
    });
}

/// Neither dtype is wider than f32, or the source is not: one rounding at most.
#[inline(always)]
fn through_f32_body<S: Float, T: Float>(x: &[S], y: &mut [T]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = T::from_f32(x.to_f32()));
}

#[inline(always)]
fn narrow_body<S: Float, T: Float>(x: &[S], y: &mut [T]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = T::from_f64(x.to_f64()));
}

math::dispatch_simd!(fn through_f32<S: Float, T: Float>(x: &[S], y: &mut [T]) = through_f32_body);
math::dispatch_simd!(fn narrow<S: Float, T: Float>(x: &[S], y: &mut [T]) = narrow_body);
