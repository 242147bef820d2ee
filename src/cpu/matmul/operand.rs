//! Operands of a product and how they are packed: the left one in tiles `[step][row]`, the right
//! one in panels `[step][32 columns]`. A matrix only has to read stretches of its rows.

use super::tile::{HEIGHT, Lane, Tile, WIDTH};
use crate::dtype::Float;
use crate::view::View;

/// Steps that are packed and swept at a time: a panel of f32 is 16 KiB, half of the smallest
/// first-level cache in use.
pub(crate) const DEPTH: usize = 128;

/// A matrix whose rows can be read.
pub(crate) trait Matrix<A>: Sync {
    /// Elements `first ..` of a row, as many as `out` takes.
    fn read(&self, row: usize, first: usize, out: &mut [A]);
}

impl<A: Lane, T: Float> Matrix<A> for View<'_, T> {
    fn read(&self, row: usize, first: usize, out: &mut [A]) {
        let from = &self.row(row)[first..][..out.len()];
        out.iter_mut().zip(from).for_each(|(out, &x)| *out = A::widen(x));
    }
}

/// One side of a product. "Lane" is a row of the left side or a column of the right side.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'s, A> {
    /// Element (lane, step) is `matrix[lane][step]`.
    Rows(&'s dyn Matrix<A>),
    /// Element (lane, step) is `matrix[step][lane]`.
    Columns(&'s dyn Matrix<A>),
    /// Element (lane, step) is `matrix[picked[step]][lane]`.
    Picked(&'s dyn Matrix<A>, &'s [usize]),
}

impl<A: Lane> Operand<'_, A> {
    /// Packs steps `first .. first + panel.len() / WIDTH` of columns `column .. column + count`.
    /// Columns beyond `count` are left as they are; nobody reads what comes of them.
    pub(crate) fn pack_panel(&self, column: usize, count: usize, first: usize, panel: &mut [A]) {
        match self {
            Operand::Rows(matrix) => {
                for lane in (0..count).step_by(4) {
                    let rows = std::array::from_fn(|i| column + (lane + i).min(count - 1));
                    let out = &mut panel[lane..];
                    pack_rows(*matrix, rows, (count - lane).min(4), first, WIDTH, out);
                }
            }
            Operand::Columns(matrix) => {
                for (step, out) in panel.chunks_exact_mut(WIDTH).enumerate() {
                    matrix.read(first + step, column, &mut out[..count]);
                }
            }
            Operand::Picked(matrix, picked) => {
                for (step, out) in panel.chunks_exact_mut(WIDTH).enumerate() {
                    matrix.read(picked[first + step], column, &mut out[..count]);
                }
            }
        }
    }

    /// Packs `depth` steps of neighbouring tiles; `order` names the matrix row of a packed row.
    pub(crate) fn pack_tiles(&self, tiles: &[Tile], order: &[usize], depth: usize, out: &mut [A]) {
        match self {
            Operand::Rows(matrix) => {
                let mut out = out;
                for tile in tiles {
                    let (this, rest) = out.split_at_mut(tile.height * depth);
                    let rows = &order[tile.start..][..tile.height];
                    pack_tile(*matrix, rows, depth, this);
                    out = rest;
                }
            }
            Operand::Columns(matrix) => {
                pack_across(*matrix, |step| step, tiles, order, depth, out);
            }
            Operand::Picked(matrix, picked) => {
                pack_across(*matrix, |step| picked[step], tiles, order, depth, out);
            }
        }
    }
}

/// One tile whose rows are rows of the matrix, a block of steps at a time.
fn pack_tile<A: Lane>(matrix: &dyn Matrix<A>, rows: &[usize], depth: usize, out: &mut [A]) {
    let height = rows.len();
    if height == 1 {
        return matrix.read(rows[0], 0, &mut out[..depth]);
    }
    for first in (0..depth).step_by(DEPTH) {
        let steps = DEPTH.min(depth - first);
        let block = &mut out[first * height..][..steps * height];
        for lane in (0..height).step_by(4) {
            let four = std::array::from_fn(|i| rows[(lane + i).min(height - 1)]);
            pack_rows(matrix, four, (height - lane).min(4), first, height, &mut block[lane..]);
        }
    }
}

/// Tiles whose rows are columns of the matrix: one stretch of a matrix row serves all of them.
/// Packed order is the matrix's own here.
fn pack_across<A: Lane>(
    matrix: &dyn Matrix<A>,
    row_of: impl Fn(usize) -> usize,
    tiles: &[Tile],
    order: &[usize],
    depth: usize,
    out: &mut [A],
) {
    let (Some(head), Some(tail)) = (tiles.first(), tiles.last()) else { return };
    let count = tail.start + tail.height - head.start;
    let mut stretch = [A::ZERO; HEIGHT * TILES_PER_JOB];
    let stretch = &mut stretch[..count];
    for step in 0..depth {
        matrix.read(row_of(step), order[head.start], stretch);
        for tile in tiles {
            let lane = tile.start - head.start;
            let to = &mut out[lane * depth + step * tile.height..][..tile.height];
            to.iter_mut().zip(&stretch[lane..]).for_each(|(to, &x)| *to = x);
        }
    }
}

/// Tiles that one call of [`Operand::pack_tiles`] takes at most.
pub(crate) const TILES_PER_JOB: usize = 16;

/// `out[step · pitch + lane] = matrix[rows[lane]][first + step]` for the first `lanes` of four rows
/// and as many steps (at most [`DEPTH`]) as `out` holds.
fn pack_rows<A: Lane>(
    matrix: &dyn Matrix<A>,
    rows: [usize; 4],
    lanes: usize,
    first: usize,
    pitch: usize,
    out: &mut [A],
) {
    let steps = out.len().div_ceil(pitch);
    let mut from = [[A::ZERO; DEPTH]; 4];
    for (from, &row) in from.iter_mut().zip(&rows[..lanes]) {
        matrix.read(row, first, &mut from[..steps]);
    }
    match lanes {
        1 => interleave::<A, 1>(&from, steps, pitch, out),
        2 => interleave::<A, 2>(&from, steps, pitch, out),
        3 => interleave::<A, 3>(&from, steps, pitch, out),
        _ => interleave::<A, 4>(&from, steps, pitch, out),
    }
}

#[inline(always)]
fn interleave<A: Lane, const L: usize>(
    from: &[[A; DEPTH]; 4],
    steps: usize,
    pitch: usize,
    out: &mut [A],
) {
    let whole = steps / 4 * 4;
    for step in (0..whole).step_by(4) {
        let block = A::transpose(std::array::from_fn(|i| {
            [from[i][step], from[i][step + 1], from[i][step + 2], from[i][step + 3]]
        }));
        let out = &mut out[step * pitch..];
        for (i, lanes) in block.iter().enumerate() {
            out[i * pitch..][..L].copy_from_slice(&lanes[..L]);
        }
    }
    for step in whole..steps {
        for lane in 0..L {
            out[step * pitch + lane] = from[lane][step];
        }
    }
}
