//! Dropout on the CPU: one row per item.

use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::decoder::dropout::{Dropout, QUAD, factor, threshold, words};

/// Rough scalar operations per element.
const WORK: usize = 16;

pub(crate) fn dropout<T: Float>(a: Dropout<'_, T>) {
    let (x, streams, positions, accumulate) = (a.x, a.streams, a.positions, a.accumulate);
    let (key, factor, threshold) = (a.key, factor(a.p, a.scale), threshold(a.p));
    parallel::for_each(a.y.into_rows(), x.extent(1) * WORK, |i, y| {
        let (stream, position) = (streams.at(i), positions.at(i));
        let quads = x.row(i).chunks(QUAD).zip(y.chunks_mut(QUAD)).enumerate();
        for (quad, (x, y)) in quads {
            let words = words(key, stream, position, quad);
            for ((x, y), word) in x.iter().zip(y).zip(words) {
                let kept = if word < threshold { 0.0 } else { factor * x.to_f64() };
                let before = if accumulate { y.to_f64() } else { 0.0 };
                *y = T::from_f64(before + kept);
            }
        }
    });
}
