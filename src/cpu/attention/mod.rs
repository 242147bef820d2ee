//! Attention on the CPU. A row of scores is formed whole, then its softmax, then the sum over
//! values: three passes whose arithmetic depends on the key's index and on `D` alone, so how rows
//! are tiled, packed or handed to threads cannot change a bit. `lanes` holds the arithmetic,
//! `forward` and `backward` the loops.

mod backward;
mod forward;
mod lanes;

use crate::dtype::{DType, Float};
use crate::ops::attention::{Attention, AttentionBwd};
use crate::view::{View, ViewMut};
use lanes::LANES;

pub(crate) fn attention<T: Float>(a: Attention<'_, T>) {
    match T::DTYPE {
        DType::F64 => forward::run::<T, f64>(a),
        _ => forward::run::<T, f32>(a),
    }
}

pub(crate) fn attention_bwd<T: Float>(a: AttentionBwd<'_, T>) {
    match T::DTYPE {
        DType::F64 => backward::run::<T, f64>(a),
        _ => backward::run::<T, f32>(a),
    }
}

/// Rows `start..` of one head, each a whole number of lanes.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    view: View<'a, T>,
    head: usize,
    start: usize,
}

impl<'a, T: Float> Rows<'a, T> {
    /// Rows `start..start + len` of `head`; copied to `padded` with zeros behind if `D` is not a
    /// multiple of the lanes.
    fn new(
        view: View<'a, T>,
        head: usize,
        start: usize,
        len: usize,
        padded: &'a mut Vec<T>,
    ) -> Self {
        let d = view.extent(2);
        if d.is_multiple_of(LANES) {
            return Rows { view, head, start };
        }
        let width = d.next_multiple_of(LANES);
        padded.clear();
        padded.resize(len * width, T::from_f32(0.0));
        for (j, row) in padded.chunks_exact_mut(width).enumerate() {
            row[..d].copy_from_slice(view.row2(start + j, head));
        }
        let shape = [len as i64, 1, width as i64];
        let view = View::new(padded, &shape).expect("the shape of the copy just made");
        Rows { view, head: 0, start: 0 }
    }

    #[inline(always)]
    fn row(&self, j: usize) -> &'a [[T; LANES]] {
        self.view.row2(self.start + j, self.head).as_chunks().0
    }
}

/// The rows of a view, an independent borrow each.
fn into_rows<'v, T: Float>(view: &'v mut ViewMut<'_, T>) -> Vec<&'v mut [T]> {
    view.reborrow().into_rows()
}
