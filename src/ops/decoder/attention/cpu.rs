//! Attention on the CPU. A row of scores is formed whole, then its softmax, then the sum over
//! values: three passes whose arithmetic depends on the key's index and on `D` alone, so how rows
//! are tiled, packed or handed to threads cannot change a bit. `lanes` holds the arithmetic,
//! `forward` and `backward` the loops.

use std::marker::PhantomData;
use std::ops::Range;

use super::cpu_lanes::LANES;
use crate::alloc::{Gather, Grow};
use crate::dtype::{DType, Float};
use crate::error::{Error, Result};
use crate::ops::decoder::attention::{Attention, AttentionBwd, KvRows};
use crate::view::{View, ViewMut};

pub(crate) fn attention<T: Float>(a: Attention<'_, T>) -> Result<()> {
    match T::DTYPE {
        DType::F64 => super::cpu_forward::run::<T, f64>(a),
        _ => super::cpu_forward::run::<T, f32>(a),
    }
}

pub(crate) fn attention_bwd<T: Float>(a: AttentionBwd<'_, T>) {
    match T::DTYPE {
        DType::F64 => super::cpu_backward::run::<T, f64>(a),
        _ => super::cpu_backward::run::<T, f32>(a),
    }
}

/// The rows that hold the keys of one sequence.
#[derive(Clone, Copy)]
pub(super) enum KeyRows<'a> {
    From(usize),
    Pages(&'a [i32], usize),
    /// The first `shared` keys from the row `prefix` on, the rest from the row `start` on.
    Prefixed {
        prefix: usize,
        shared: usize,
        start: usize,
    },
}

impl<'a> KeyRows<'a> {
    /// Those of sequence `b`.
    pub(super) fn of(rows: &KvRows<'a>, b: usize) -> KeyRows<'a> {
        match rows {
            KvRows::From(start) => KeyRows::From(start.at(b) as usize),
            KvRows::Pages { table, size } => KeyRows::Pages(table.row(b), *size),
            KvRows::Prefixed { prefix, start } => KeyRows::Prefixed {
                prefix: prefix.start.at(b) as usize,
                shared: prefix.len.at(b) as usize,
                start: start.at(b) as usize,
            },
        }
    }

    /// The row of key `j`.
    #[inline(always)]
    pub(super) fn row(&self, j: usize) -> usize {
        match self {
            KeyRows::From(start) => start + j,
            KeyRows::Prefixed { prefix, shared, .. } if j < *shared => prefix + j,
            KeyRows::Prefixed { shared, start, .. } => start + (j - shared),
            KeyRows::Pages(table, size) => table[j / size] as usize * size + j % size,
        }
    }

    /// The row of the first of `keys`, if they lie in rows one after another.
    fn run(&self, keys: &Range<usize>) -> Option<usize> {
        let whole = match *self {
            KeyRows::From(_) => true,
            KeyRows::Prefixed { prefix, shared, start } => {
                keys.end <= shared || keys.start >= shared || prefix + shared == start
            }
            KeyRows::Pages(table, size) => {
                let pages = &table[keys.start / size..keys.end.div_ceil(size)];
                pages.windows(2).all(|p| p[1].wrapping_sub(p[0]) == 1)
            }
        };
        whole.then(|| self.row(keys.start))
    }
}

/// Rows of one head, each a whole number of lanes.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    base: *const T,
    /// Elements from a row to the next.
    stride: usize,
    pub(super) len: usize,
    pub(super) chunks: usize,
    life: PhantomData<&'a T>,
}

impl<'a, T: Float> Rows<'a, T> {
    /// The rows of some keys of `head`, one at least; copied to `padded` if they do not follow one
    /// another, or with zeros behind if `D` is not a multiple of the lanes.
    #[inline(always)]
    pub(super) fn new(
        view: View<'a, T>,
        head: usize,
        rows: KeyRows<'_>,
        keys: Range<usize>,
        padded: &'a mut Vec<T>,
    ) -> Self {
        let len = keys.len();
        let (d, chunks, life) = (view.extent(2), view.extent(2).div_ceil(LANES), PhantomData);
        if let (Some(start), true) = (rows.run(&keys), d.is_multiple_of(LANES)) {
            let (first, _) = (view.row2(start, head), view.row2(start + len - 1, head));
            let stride = if len > 1 { view.dims().strides()[0] as usize } else { 0 };
            return Rows { base: first.as_ptr(), stride, len, chunks, life };
        }
        let width = chunks * LANES;
        padded.clear();
        padded.grow_to(len * width, T::from_f32(0.0));
        for (j, row) in padded.chunks_exact_mut(width).enumerate() {
            row[..d].copy_from_slice(view.row2(rows.row(keys.start + j), head));
        }
        Rows { base: padded.as_ptr(), stride: width, len, chunks, life }
    }

    /// Chunks `c..c + C` of row `j`.
    ///
    /// # Safety
    /// `j < len` and `c + C <= chunks`.
    #[inline(always)]
    pub(super) unsafe fn chunks_at<const C: usize>(
        &self,
        j: usize,
        c: usize,
    ) -> &'a [[T; LANES]; C] {
        // SAFETY: `new` checked the first and the last row of the view, or made the copy; row j
        // lies between them, and [[T; LANES]; C] is aligned as T.
        unsafe { &*self.base.add(j * self.stride + c * LANES).cast() }
    }
}

/// Fails if a workspace of that many elements cannot be had: a view that repeats one row may claim
/// more keys than memory could hold scores. Asks only beyond 64 MiB.
pub(super) fn probe<A>(rows: usize, columns: usize) -> Result<()> {
    let count = rows.saturating_mul(columns);
    let bytes = (count as u64).saturating_mul(size_of::<A>() as u64);
    let mut workspace = Vec::<A>::new();
    if bytes > 64 << 20 && std::hint::black_box(&mut workspace).try_reserve_exact(count).is_err() {
        return Err(Error::OutOfMemory { what: "a row of attention scores".into(), bytes });
    }
    Ok(())
}

/// The rows of a view, an independent borrow each.
pub(super) fn into_rows<'v, T: Float>(view: &'v mut ViewMut<'_, T>) -> Vec<&'v mut [T]> {
    let d = view.extent(2);
    if view.dims().is_contiguous() {
        return view.as_mut_slice().into_iter().flat_map(|all| all.chunks_mut(d)).sifted();
    }
    view.reborrow().into_rows()
}
