//! Work over packed sequences on the CPU: sequential in a sequence, parallel over sequences.

use crate::alloc::{self, Grow};
use crate::device::parallel;
use crate::dtype::Real;
use crate::view::{View, ViewMut};

/// Rough scalar operations per token.
const WORK: usize = 8;

/// `body(i, start, out)` for every sequence, `out` being its tokens of a vector of zeros.
pub(in crate::ops::policy) fn per_sequence(
    cu_seqlens: &View<'_, i64>,
    body: impl Fn(usize, usize, &mut [f64]) + Sync + Send,
) -> Vec<f64> {
    let sequences = cu_seqlens.extent(0) - 1;
    let tokens = cu_seqlens.at(sequences) as usize;
    let mut values = alloc::filled(0.0, tokens);
    let (mut rest, mut parts) = (values.as_mut_slice(), alloc::room(sequences));
    for i in 0..sequences {
        let start = cu_seqlens.at(i) as usize;
        let (part, tail) = rest.split_at_mut(cu_seqlens.at(i + 1) as usize - start);
        parts.put((start, part));
        rest = tail;
    }
    let mean_length = tokens / sequences.max(1) + 1;
    parallel::for_each(parts, mean_length * WORK, |i, (start, part)| body(i, start, part));
    values
}

/// Rounds the values into the view.
pub(in crate::ops::policy) fn store<R: Real>(mut view: ViewMut<'_, R>, values: &[f64]) {
    values.iter().enumerate().for_each(|(t, &value)| view.set(t, R::from_f64(value)));
}

/// The tokens of sequence `i`.
pub(in crate::ops::policy) fn tokens(
    cu_seqlens: &View<'_, i64>,
    i: usize,
) -> std::ops::Range<usize> {
    cu_seqlens.at(i) as usize..cu_seqlens.at(i + 1) as usize
}
