//! Operands of a product and how they are packed: the left one in tiles `[step][row]`, the right
//! one in panels `[step][32 columns]`. A matrix only has to read stretches of its rows.

use super::tile::{Accumulator, HEIGHT, Tile, WIDTH};
use super::transpose::ROWS;
use crate::alloc::Grow;
use crate::dtype::Float;
use crate::ops::support::math::dispatch_simd;
use crate::ops::support::prefetch::fetch;
use crate::view::View;

/// Most steps that are packed and swept at a time.
pub(crate) const DEPTH: usize = 512;
/// Most columns that are packed and swept at a time.
pub(crate) const STRIP: usize = 512;

/// A matrix whose rows can be read.
pub(crate) trait Matrix<A>: Sync {
    /// Elements `first ..` of a row, as many as `out` takes.
    fn read(&self, row: usize, first: usize, out: &mut [A]);

    /// Elements `first .. first + len` of a row in place, if they lie in memory as `A`.
    fn lend(&self, _row: usize, _first: usize, _len: usize) -> Option<&[A]> {
        None
    }
}

impl<A: Accumulator, T: Float> Matrix<A> for View<'_, T> {
    fn read(&self, row: usize, first: usize, out: &mut [A]) {
        let from = &self.row(row)[first..][..out.len()];
        // The next piece of this row is read after as many of other rows.
        fetch(from.as_ptr().wrapping_add(from.len()), size_of_val(from));
        widen(from, out);
    }

    fn lend(&self, row: usize, first: usize, len: usize) -> Option<&[A]> {
        (T::DTYPE == A::DTYPE).then(|| bytemuck::cast_slice(&self.row(row)[first..][..len]))
    }
}

dispatch_simd!(fn widen<T: Float, A: Accumulator>(from: &[T], out: &mut [A]) = widen_body);

#[inline(always)]
fn widen_body<T: Float, A: Accumulator>(from: &[T], out: &mut [A]) {
    for (out, &x) in out.iter_mut().zip(from) {
        *out = A::widen(x);
    }
}

/// One of the two operands of a product. A lane is a row of the left operand or a column of the right one.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'s, A> {
    /// Element (lane, step) is `matrix[lane][step]`.
    Rows(&'s dyn Matrix<A>),
    /// Element (lane, step) is `matrix[step][lane]`.
    Columns(&'s dyn Matrix<A>),
    /// Element (lane, step) is `matrix[picked[step]][lane]`.
    Picked(&'s dyn Matrix<A>, &'s [usize]),
}

impl<A: Accumulator> Operand<'_, A> {
    /// Packs columns `column .. column + count` (at most [`STRIP`]) of `steps` steps from `first`
    /// on (at most [`DEPTH`]) into panels `[steps][WIDTH]`, one after another. Columns
    /// beyond `count` keep what the panel held; their sums are never read.
    pub(crate) fn pack_panels(
        &self,
        (column, count): (usize, usize),
        (first, steps): (usize, usize),
        panels: &mut [A],
    ) {
        match self {
            Operand::Rows(matrix) => {
                let mut room = Vec::new();
                for (i, panel) in panels.chunks_exact_mut(steps * WIDTH).enumerate() {
                    let (column, count) = (column + i * WIDTH, WIDTH.min(count - i * WIDTH));
                    for lane in (0..count).step_by(ROWS) {
                        let rows = std::array::from_fn(|i| column + (lane + i).min(count - 1));
                        pack_lanes(*matrix, rows, lane, first, &mut room, panel);
                    }
                }
            }
            Operand::Columns(matrix) => {
                pack_stretches(*matrix, |step| first + step, (column, count), steps, panels);
            }
            Operand::Picked(matrix, picked) => {
                let row_of = |step| picked[first + step];
                pack_stretches(*matrix, row_of, (column, count), steps, panels);
            }
        }
    }

    /// `sums[i] = fma(x[step], (column + i, first + step), sums[i])` for up to [`WIDTH`] columns and all
    /// steps of `x` in order, without packing a panel, which one row would read only once. Returns false
    /// where the operand or the machine does not allow it. Sums beyond `count` are not defined.
    pub(crate) fn carry_row(
        &self,
        (column, count): (usize, usize),
        first: usize,
        x: &[A],
        room: &mut [A],
        sums: &mut [A],
    ) -> bool {
        let Operand::Rows(matrix) = self else { return false };
        if !A::carries_rows() || room.len() < WIDTH * PITCH {
            return false;
        }
        let rows: [usize; WIDTH] = std::array::from_fn(|i| column + i.min(count - 1));
        for (i, x) in x.chunks(READ).enumerate() {
            for (room, &row) in room.chunks_exact_mut(PITCH).zip(&rows) {
                matrix.read(row, first + i * READ, &mut room[..x.len()]);
            }
            A::carry_rows(&std::array::from_fn(|i| &room[i * PITCH..][..x.len()]), x, sums);
        }
        true
    }

    /// True if neighboring columns lie side by side in memory.
    pub(crate) fn has_contiguous_columns(&self) -> bool {
        !matches!(self, Operand::Rows(_))
    }

    /// Packs `depth` steps of neighboring tiles; `order` names the matrix row of a packed row.
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

/// Columns `column .. column + count` of matrix row `row_of(step)` become step `step` of the panels.
fn pack_stretches<A: Accumulator>(
    matrix: &dyn Matrix<A>,
    row_of: impl Fn(usize) -> usize,
    (column, count): (usize, usize),
    steps: usize,
    panels: &mut [A],
) {
    let mut room = Vec::new();
    for step in 0..steps {
        let row = row_of(step);
        let stretch = match matrix.lend(row, column, count) {
            Some(stretch) => stretch,
            None => {
                room.grow_to(count, A::ZERO);
                matrix.read(row, column, &mut room);
                &room
            }
        };
        let (whole, rest) = stretch.as_chunks::<WIDTH>();
        for (i, from) in whole.iter().enumerate() {
            panels[(i * steps + step) * WIDTH..][..WIDTH].copy_from_slice(from);
        }
        if !rest.is_empty() {
            panels[(whole.len() * steps + step) * WIDTH..][..rest.len()].copy_from_slice(rest);
        }
    }
}

/// One tile whose rows are rows of the matrix.
fn pack_tile<A: Accumulator>(matrix: &dyn Matrix<A>, rows: &[usize], depth: usize, out: &mut [A]) {
    match rows.len() {
        1 => matrix.read(rows[0], 0, &mut out[..depth]),
        2 => pack_tall::<A, 2>(matrix, rows, depth, out),
        3 => pack_tall::<A, 3>(matrix, rows, depth, out),
        4 => pack_tall::<A, 4>(matrix, rows, depth, out),
        5 => pack_tall::<A, 5>(matrix, rows, depth, out),
        _ => pack_tall::<A, HEIGHT>(matrix, rows, depth, out),
    }
}

fn pack_tall<A: Accumulator, const H: usize>(
    matrix: &dyn Matrix<A>,
    rows: &[usize],
    depth: usize,
    out: &mut [A],
) {
    let mut room = Vec::new();
    for first in (0..depth).step_by(DEPTH) {
        let block = &mut out[first * H..][..DEPTH.min(depth - first) * H];
        for lane in (0..H).step_by(4) {
            let four = std::array::from_fn(|i| rows[(lane + i).min(H - 1)]);
            let lanes = (lane, (H - lane).min(4));
            pack_rows::<A, H>(matrix, four, lanes, first, &mut room, block);
        }
    }
}

/// Tiles whose rows are columns of the matrix: one stretch of a matrix row serves all of them.
/// Packed order is the matrix's own here.
fn pack_across<A: Accumulator>(
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

/// Steps of rows that cannot be lent which are read at a time: 16 rows of them stay in the first-level
/// cache until they are transposed.
const READ: usize = 256;
/// From one of those rows to the next: a cache line more, so that neighboring rows share no set.
const PITCH: usize = READ + 16;

/// `panel[step · WIDTH + lane + i] = matrix[rows[i]][first + step]` for as many steps as the panel holds.
fn pack_lanes<A: Accumulator>(
    matrix: &dyn Matrix<A>,
    rows: [usize; ROWS],
    lane: usize,
    first: usize,
    room: &mut Vec<A>,
    panel: &mut [A],
) {
    let steps = panel.len() / WIDTH;
    let mut from: [&[A]; ROWS] = [&[]; ROWS];
    for (from, &row) in from.iter_mut().zip(&rows) {
        *from = matrix.lend(row, first, steps).unwrap_or(&[]);
    }
    if from.iter().all(|row| row.len() == steps) {
        return A::transpose_rows(&from, lane, panel);
    }
    for (i, panel) in panel.chunks_mut(READ * WIDTH).enumerate() {
        let steps = panel.len() / WIDTH;
        room.grow_to(ROWS * READ, A::ZERO);
        for (room, &row) in room.chunks_exact_mut(READ).zip(&rows) {
            matrix.read(row, first + i * READ, &mut room[..steps]);
        }
        let from = std::array::from_fn(|i| &room[i * READ..][..steps]);
        A::transpose_rows(&from, lane, panel);
    }
}

/// `out[step · P + lane + i] = matrix[rows[i]][first + step]` for the first `count` of four rows and
/// as many steps (at most [`DEPTH`]) as `out` holds. `room` takes rows that cannot be lent.
fn pack_rows<A: Accumulator, const P: usize>(
    matrix: &dyn Matrix<A>,
    rows: [usize; 4],
    (lane, count): (usize, usize),
    first: usize,
    room: &mut Vec<A>,
    out: &mut [A],
) {
    let steps = out.len() / P;
    let lent = rows.map(|row| matrix.lend(row, first, steps));
    if lent[0].is_none() {
        room.grow_to(4 * steps, A::ZERO);
        for (room, &row) in room.chunks_exact_mut(steps).zip(&rows[..count]) {
            matrix.read(row, first, room);
        }
    }
    let from = std::array::from_fn(|i| lent[i].unwrap_or_else(|| &room[i * steps..][..steps]));
    match count {
        1 => interleave::<A, P, 1>(from, lane, out),
        2 => interleave::<A, P, 2>(from, lane, out),
        3 => interleave::<A, P, 3>(from, lane, out),
        _ => interleave::<A, P, 4>(from, lane, out),
    }
}

#[inline(always)]
fn interleave<A: Accumulator, const P: usize, const L: usize>(
    from: [&[A]; 4],
    lane: usize,
    out: &mut [A],
) {
    assert!(lane + L <= P);
    let [a, b, c, d] = from.map(|row| row.as_chunks::<4>());
    let blocks = a.0.iter().zip(b.0).zip(c.0).zip(d.0);
    for ((((a, b), c), d), out) in blocks.zip(out.chunks_exact_mut(4 * P)) {
        let block = A::transpose([*a, *b, *c, *d]);
        for (i, lanes) in block.iter().enumerate() {
            out[i * P + lane..][..L].copy_from_slice(&lanes[..L]);
        }
    }
    for step in 4 * a.0.len()..from[0].len() {
        for i in 0..L {
            out[step * P + lane + i] = from[i][step];
        }
    }
}
