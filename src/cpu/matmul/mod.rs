//! Matrix products: one driver for Y = X·Wᵀ, dX = dY·W and dW = dYᵀ·X, dense and 4-bit.
//!
//! ```text
//! for each block of k:                     (256 steps: a packed panel stays in the first cache)
//!     pack B[k block, :] into panels of 32 columns       (decodes 4-bit codes, transposes W)
//!     for each tile of rows x panel:  C += A·B           (tile.rs; threads share the tiles)
//! ```
//! Tricks, each keeping every output one chain of fused multiply-adds in increasing k:
//! 1. C itself is the accumulator between blocks of k; f32 in memory is f32 in a register.
//! 2. The LoRA term is a second call on the same C: r more steps of the same chain, rounded once.
//! 3. Rows of A are broadcast from where they lie, with any two strides, so only B is packed.
//! 4. With few rows the panels are split over the threads, with many the rows; nobody splits k.

mod pack;
mod tile;
mod wide;

use rayon::prelude::*;

pub(crate) use pack::{Columns, Nf4Columns, Nf4Rows, Right, Rows};
use tile::{COLUMNS, Left, Out, accumulate};

use crate::cpu::scratch;
use crate::dtype::{DType, Float};
use crate::view::{View, ViewMut};

/// Steps of k per packed block.
const DEPTH: usize = 256;

/// Rows a thread takes at a time.
const ROWS: usize = 64;

/// Multiply-adds below which a product stays on the calling thread.
const SERIAL: usize = 1 << 19;

/// The left operand A `[rows, depth]`, in f32.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    left: Left,
    rows: usize,
    depth: usize,
    life: std::marker::PhantomData<&'a [f32]>,
}

impl<'a> Operand<'a> {
    /// A row-major buffer of `depth` columns.
    pub fn rows(data: &'a [f32], depth: usize) -> Operand<'a> {
        let rows = data.len().checked_div(depth).unwrap_or(0);
        let left = Left { ptr: data.as_ptr(), row_stride: depth, k_stride: 1 };
        Operand { left, rows, depth, life: std::marker::PhantomData }
    }

    /// The transpose of a row-major buffer of `columns` columns.
    pub fn transposed(data: &'a [f32], columns: usize) -> Operand<'a> {
        let depth = data.len().checked_div(columns).unwrap_or(0);
        let left = Left { ptr: data.as_ptr(), row_stride: 1, k_stride: columns };
        Operand { left, rows: columns, depth, life: std::marker::PhantomData }
    }
}

/// c `[rows, columns]` += A·B, continuing the chains that c holds.
pub(crate) fn multiply(a: Operand<'_>, b: &impl Right, c: &mut [f32]) {
    let columns = b.columns();
    debug_assert_eq!((a.depth, c.len()), (b.depth(), a.rows * columns));
    if a.rows == 0 || columns == 0 {
        return;
    }
    let panels = columns.div_ceil(COLUMNS);
    let serial = a.rows * columns * a.depth < SERIAL;
    let base = Out { ptr: c.as_mut_ptr(), stride: columns, rows: a.rows, columns };
    for k in (0..a.depth).step_by(DEPTH) {
        let depth = DEPTH.min(a.depth - k);
        scratch::with(panels * depth * COLUMNS, |packed| {
            let pack = |(panel, out): (usize, &mut [f32])| b.pack(k, panel * COLUMNS, out);
            if serial {
                packed.chunks_exact_mut(depth * COLUMNS).enumerate().for_each(pack);
            } else {
                packed.par_chunks_exact_mut(depth * COLUMNS).enumerate().for_each(pack);
            }
            let left = offset(a.left, 0, k);
            let tile = |rows: std::ops::Range<usize>, panel: usize| {
                let b = &packed[panel * depth * COLUMNS..(panel + 1) * depth * COLUMNS];
                run_tile(left, b, depth, base, rows, panel);
            };
            let blocks = a.rows.div_ceil(ROWS);
            let rows_of = |block: usize| block * ROWS..a.rows.min((block + 1) * ROWS);
            if serial {
                (0..blocks).for_each(|i| (0..panels).for_each(|panel| tile(rows_of(i), panel)));
            } else if blocks >= 2 * rayon::current_num_threads() {
                let all = |i: usize| (0..panels).for_each(|panel| tile(rows_of(i), panel));
                (0..blocks).into_par_iter().for_each(all);
            } else {
                let one = |i: usize| tile(rows_of(i / panels), i % panels);
                (0..blocks * panels).into_par_iter().for_each(one);
            }
        });
    }
}

fn offset(left: Left, row: usize, k: usize) -> Left {
    // Wrapping: an operand without elements may be offset, but is never read.
    let ptr = left.ptr.wrapping_add(row * left.row_stride + k * left.k_stride);
    Left { ptr, ..left }
}

/// The tile of `rows` and one panel of the whole output `base`.
fn run_tile(
    left: Left,
    b: &[f32],
    depth: usize,
    base: Out,
    rows: std::ops::Range<usize>,
    panel: usize,
) {
    let first = panel * COLUMNS;
    let out = Out {
        ptr: base.ptr.wrapping_add(rows.start * base.stride + first),
        stride: base.stride,
        rows: rows.len(),
        columns: COLUMNS.min(base.columns - first),
    };
    // SAFETY: rows and panel lie inside A, B and C, whose lengths `multiply` was called with;
    // tiles are disjoint, and C is exclusively borrowed by `multiply`.
    unsafe { accumulate(offset(left, rows.start, 0), b.as_ptr(), depth, out) }
}

/// Calls `body` with the matrix as contiguous f32: itself if it is that, a copy otherwise.
pub(crate) fn with_f32<T: Float, R>(x: &View<'_, T>, body: impl FnOnce(&[f32]) -> R) -> R {
    let own = x.as_slice().filter(|_| T::DTYPE == DType::F32);
    if let Some(slice) = own {
        return body(bytemuck::cast_slice(slice));
    }
    let (rows, columns) = (x.extent(0), x.extent(1));
    scratch::with(rows * columns, |copy| {
        for i in 0..rows {
            let out = &mut copy[i * columns..(i + 1) * columns];
            out.iter_mut().zip(x.row(i)).for_each(|(o, v)| *o = v.to_f32());
        }
        body(copy)
    })
}

/// Runs `body` on a zeroed f32 accumulator the shape of `y`, then writes y = finish(y, c).
pub(crate) fn into_output<T: Float>(
    mut y: ViewMut<'_, T>,
    in_place: bool,
    body: impl FnOnce(&mut [f32]),
    finish: impl Fn(T, usize, f32) -> T + Sync,
) {
    if in_place
        && T::DTYPE == DType::F32
        && let Some(slice) = y.as_mut_slice()
    {
        let c: &mut [f32] = bytemuck::cast_slice_mut(slice);
        c.fill(0.0);
        return body(c);
    }
    let columns = y.extent(1);
    scratch::with(y.extent(0) * columns, |c| {
        body(c);
        for (i, row) in y.into_rows().into_iter().enumerate() {
            let c = &c[i * columns..(i + 1) * columns];
            for j in 0..columns {
                row[j] = finish(row[j], j, c[j]);
            }
        }
    })
}

mod ops;
use ops::Base;
pub(crate) use ops::{lora_grad, matmul, matmul_dw, matmul_dx, nf4_matmul, nf4_matmul_dx};
