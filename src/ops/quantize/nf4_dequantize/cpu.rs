//! 4-bit dequantization on the CPU.

use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::quantize::decode::Nf4Reader;
use crate::ops::quantize::nf4_dequantize::Nf4Dequantize;

/// One row is one item of work.
pub(crate) fn nf4_dequantize<T: Float>(a: Nf4Dequantize<'_, T>) {
    let (w, reader) = (a.w, Nf4Reader::new(&a.w));
    parallel::for_each(a.y.into_rows(), w.k, |row, y| reader.read(row, 0, y));
}
