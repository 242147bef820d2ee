//! Global norm on the CPU: fixed chunks, then pairwise over the chunks.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::optim::grad_norm::{GlobalNorm, GradNorm};
use crate::ops::support::math;

/// Elements per chunk.
const CHUNK: usize = 4096;
const LANES: usize = 16;

pub(crate) fn grad_norm<T: Float>(a: GradNorm<'_, T>) {
    let chunks: Vec<&[T]> =
        a.grads.iter().flat_map(|grad| grad.as_slice().unwrap_or(&[]).chunks(CHUNK)).sifted();
    let sums = parallel::map(chunks.len(), CHUNK, |i| sum_of_squares(chunks[i]));
    let value = pairwise(&sums).sqrt();
    *a.norm = GlobalNorm { value, finite: value.is_finite() };
}

#[inline(always)]
fn sum_of_squares_body<T: Float>(values: &[T]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (vectors, rest) = values.as_chunks::<LANES>();
    for vector in vectors {
        for l in 0..LANES {
            let x = vector[l].to_f64();
            lanes[l] = x.mul_add(x, lanes[l]);
        }
    }
    for (l, x) in rest.iter().enumerate() {
        let x = x.to_f64();
        lanes[l] = x.mul_add(x, lanes[l]);
    }
    pairwise(&lanes)
}

math::dispatch_simd!(fn sum_of_squares<T: Float>(values: &[T]) -> f64 = sum_of_squares_body);

/// Sum by halves; the left half is the larger power of two, so equal prefixes add equally.
fn pairwise(terms: &[f64]) -> f64 {
    match terms {
        [] => 0.0,
        [x] => *x,
        _ => {
            let (left, right) = terms.split_at(terms.len().next_power_of_two() / 2);
            pairwise(left) + pairwise(right)
        }
    }
}
