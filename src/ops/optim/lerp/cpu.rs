//! Interpolation on the CPU.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::optim::lerp::Lerp;
use crate::ops::support::math;

/// Elements per item of work.
const CHUNK: usize = 4096;

pub(crate) fn lerp<T: Float>(mut args: Lerp<'_, T>) {
    let (a, b) = (args.a.as_slice().unwrap_or(&[]), args.b.as_slice().unwrap_or(&[]));
    let (y, lambda) = (args.y.as_mut_slice().unwrap_or(&mut []), args.weight);
    parallel::for_each(y.chunks_mut(CHUNK).gathered(), CHUNK, |i, y| {
        let part = i * CHUNK..i * CHUNK + y.len();
        match lambda {
            0.0 => y.copy_from_slice(&a[part]),
            1.0 => y.copy_from_slice(&b[part]),
            _ => mix(&a[part.clone()], &b[part], lambda, y),
        }
    });
}

/// Both products and the sum are rounded, so that swapping a and b with λ and 1 − λ changes
/// nothing.
#[inline(always)]
fn mix_body<T: Float>(a: &[T], b: &[T], lambda: f64, y: &mut [T]) {
    let rest = 1.0 - lambda;
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = T::from_f64(rest * a.to_f64() + lambda * b.to_f64());
    }
}

math::dispatch_simd!(fn mix<T: Float>(a: &[T], b: &[T], lambda: f64, y: &mut [T]) = mix_body);
