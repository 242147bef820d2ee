//! Matrices, and how the operands of chains are packed: the left one in tiles `[step][row]`, the right
//! one in panels `[step][32 columns]`. A matrix only has to read stretches of its rows.

use super::lanes::{self, COLUMNS};
use super::tile::{Accumulator, HEIGHT, Tile, WIDTH};
use crate::alloc::Grow;
use crate::dtype::Float;
use crate::ops::support::math::dispatch_simd;
use crate::ops::support::prefetch::fetch;
use crate::view::View;

/// Most steps of a row that are packed at a time.
const DEPTH: usize = 512;
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

    /// Carries a row of lanes, one element for each of the rows, through their first `x.len()` elements, whole
    /// vectors of lanes, without writing down what they read as. Returns false, and does nothing, if it cannot.
    fn carry(&self, _rows: [usize; COLUMNS], _x: &[A], _lanes: &mut [A]) -> bool {
        false
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

    fn carry(&self, rows: [usize; COLUMNS], x: &[A], lanes: &mut [A]) -> bool {
        lanes::carry_narrow(x, rows.map(|row| &self.row(row)[..x.len()]), lanes)
    }
}

dispatch_simd!(fn widen<T: Float, A: Accumulator>(from: &[T], out: &mut [A]) = widen_body);

#[inline(always)]
fn widen_body<T: Float, A: Accumulator>(from: &[T], out: &mut [A]) {
    for (out, &x) in out.iter_mut().zip(from) {
        *out = A::widen(x);
    }
}

/// The left operand of chains. A lane is a row of it.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'s, A> {
    /// Element (lane, step) is `matrix[lane][step]`.
    Rows(&'s dyn Matrix<A>),
    /// Element (lane, step) is `matrix[step][lane]`.
    Columns(&'s dyn Matrix<A>),
    /// Element (lane, step) is `matrix[picked[step]][lane]`.
    Picked(&'s dyn Matrix<A>, &'s [usize]),
}

/// The right operand of chains: steps are rows of a matrix, neighboring columns lie side by side.
#[derive(Clone, Copy)]
pub(crate) struct Stack<'s, A> {
    matrix: &'s dyn Matrix<A>,
    picked: Option<&'s [usize]>,
}

impl<'s, A: Accumulator> Stack<'s, A> {
    /// Element (step, column) is `matrix[step][column]`.
    pub(crate) fn all(matrix: &'s dyn Matrix<A>) -> Stack<'s, A> {
        Stack { matrix, picked: None }
    }

    /// Element (step, column) is `matrix[picked[step]][column]`.
    pub(crate) fn picked(matrix: &'s dyn Matrix<A>, picked: &'s [usize]) -> Stack<'s, A> {
        Stack { matrix, picked: Some(picked) }
    }

    /// Packs columns `column .. column + count` (at most [`STRIP`]) of `steps` steps from `first`
    /// on into panels `[steps][WIDTH]`, one after another. Columns beyond `count` keep what the panel
    /// held; their sums are never read.
    pub(crate) fn pack_panels(
        &self,
        (column, count): (usize, usize),
        (first, steps): (usize, usize),
        panels: &mut [A],
    ) {
        let mut room = Vec::new();
        for step in 0..steps {
            let row = self.picked.map_or(first + step, |picked| picked[first + step]);
            let stretch = match self.matrix.lend(row, column, count) {
                Some(stretch) => stretch,
                None => {
                    room.grow_to(count, A::ZERO);
                    self.matrix.read(row, column, &mut room);
                    &room
                }
            };
            let (whole, rest) = stretch.as_chunks::<WIDTH>();
            for (i, from) in whole.iter().enumerate() {
                panels[(i * steps + step) * WIDTH..][..WIDTH].copy_from_slice(from);
            }
            if !rest.is_empty() {
                let panel = &mut panels[(whole.len() * steps + step) * WIDTH..];
                panel[..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

impl<A: Accumulator> Operand<'_, A> {
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
