//! C[i, j] = Σ_p L[i, p] · R[p, j], the one loop behind every matrix op. The right side is packed a
//! panel at a time by whoever uses the panel, so a quantised matrix is only ever expanded into
//! 16 KiB; the left side is packed once per call.

use std::marker::PhantomData;

use super::operand::{DEPTH, Operand, TILES_PER_JOB};
use super::scratch::Scratch;
use super::tile::{HEIGHT, Lane, Sweep, Tile, WIDTH, sweep};
use crate::cpu::par;
use crate::view::View;

/// Rows whose left side is packed at a time: packing a panel costs about as much as carrying six
/// rows through it, which this many rows make small.
const CHUNK_ROWS: usize = 512;
/// Bound of the packed left side in elements.
const CHUNK_LEN: usize = 1 << 25;
/// Jobs a chunk is cut into where it has that much to do.
const JOBS: usize = 16;

/// The rows of a product in packed order, cut into register tiles. Rows of one group lie together.
pub(crate) struct Rows {
    order: Vec<usize>,
    tiles: Vec<Tile>,
}

impl Rows {
    /// Rows `0 .. count`, all of group 0.
    pub(crate) fn all(count: usize) -> Rows {
        Rows::picked((0..count).collect())
    }

    /// These rows, all of group 0.
    pub(crate) fn picked(order: Vec<usize>) -> Rows {
        let mut tiles = Vec::with_capacity(order.len().div_ceil(HEIGHT));
        cut(0, order.len(), Some(0), &mut tiles);
        Rows { order, tiles }
    }

    /// Row `i` in group `group[i]`, or in none if that is -1.
    pub(crate) fn grouped(group: &View<'_, i32>) -> Rows {
        let group = group.to_vec();
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by_key(|&row| group[row]);
        let (mut tiles, mut start) = (Vec::new(), 0);
        for run in order.chunk_by(|&a, &b| group[a] == group[b]) {
            cut(start, run.len(), usize::try_from(group[run[0]]).ok(), &mut tiles);
            start += run.len();
        }
        Rows { order, tiles }
    }
}

/// Cuts a run of rows into the fewest tiles, heights as even as can be.
fn cut(start: usize, count: usize, group: Option<usize>, tiles: &mut Vec<Tile>) {
    let pieces = count.div_ceil(HEIGHT);
    for piece in 0..pieces {
        let (from, to) = (piece * count / pieces, (piece + 1) * count / pieces);
        tiles.push(Tile { start: start + from, height: to - from, group });
    }
}

/// A stretch of the chain: `depth` steps of L · R.
pub(crate) struct Link<'s, A> {
    /// Left side, a lane per row.
    pub left: Operand<'s, A>,
    /// Right side, a lane per column.
    pub right: Right<'s, A>,
    /// Steps.
    pub depth: usize,
}

/// The right side of a link.
pub(crate) enum Right<'s, A> {
    /// One for all rows.
    Shared(Operand<'s, A>),
    /// One per group; rows of no group skip the link.
    PerGroup(Vec<Operand<'s, A>>),
}

/// Where a stretch of finished sums belongs.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Row of the product.
    pub row: usize,
    /// The same row in packed order.
    pub packed: usize,
    /// The row's group.
    pub group: Option<usize>,
    /// First column.
    pub column: usize,
}

/// Takes finished sums. Every element of the product is handed over once; calls for different
/// elements run side by side.
pub(crate) type Sink<'s, A> = dyn Fn(Place, &[A]) + Sync + 's;

/// Sums the chain for every row and column and hands the sums to `sink`.
pub(crate) fn product<A: Lane>(
    rows: &Rows,
    columns: usize,
    chain: &[Link<'_, A>],
    sink: &Sink<'_, A>,
) {
    let depth: usize = chain.iter().map(|link| link.depth).sum();
    let limit = (CHUNK_LEN / depth.max(1)).clamp(JOBS * HEIGHT, CHUNK_ROWS);
    let mut tiles = rows.tiles.as_slice();
    while let Some(head) = tiles.first() {
        let taken = tiles.partition_point(|t| t.start + t.height - head.start <= limit);
        let (now, later) = tiles.split_at(taken);
        let lefts: Vec<Scratch<A>> =
            chain.iter().map(|link| pack_left(link, now, &rows.order)).collect();
        let panels = columns.div_ceil(WIDTH);
        let splits = JOBS.div_ceil(panels.max(1)).min(now.len().div_ceil(2 * HEIGHT));
        let work = WIDTH * depth * (now.len() * HEIGHT / splits / 16 + 1);
        par::for_each(vec![(); panels * splits], work, |job, ()| {
            let (panel, split) = (job / splits, job % splits);
            let (from, to) = (split * now.len() / splits, (split + 1) * now.len() / splits);
            let part = Part { rows, tiles: &now[from..to], packed_from: now[0].start, chain };
            part.run(&lefts, panel * WIDTH, WIDTH.min(columns - panel * WIDTH), sink);
        });
        tiles = later;
    }
}

fn pack_left<A: Lane>(link: &Link<'_, A>, tiles: &[Tile], order: &[usize]) -> Scratch<A> {
    let count: usize = tiles.iter().map(|t| t.height).sum();
    let mut packed = Scratch::take(count * link.depth);
    let (mut jobs, mut rest) = (Vec::new(), &mut packed[..]);
    for tiles in tiles.chunks(TILES_PER_JOB) {
        let count: usize = tiles.iter().map(|t| t.height).sum();
        let (out, after) = rest.split_at_mut(count * link.depth);
        jobs.push((tiles, out));
        rest = after;
    }
    par::for_each(jobs, TILES_PER_JOB * HEIGHT * link.depth, |_, (tiles, out)| {
        link.left.pack_tiles(tiles, order, link.depth, out);
    });
    packed
}

/// Some tiles of a product, swept by one thread.
struct Part<'s, A> {
    rows: &'s Rows,
    tiles: &'s [Tile],
    /// Packed row at which the packed left sides begin.
    packed_from: usize,
    chain: &'s [Link<'s, A>],
}

impl<A: Lane> Part<'_, A> {
    fn run(&self, lefts: &[Scratch<A>], column: usize, count: usize, sink: &Sink<'_, A>) {
        let (Some(head), Some(tail)) = (self.tiles.first(), self.tiles.last()) else { return };
        let len = (tail.start + tail.height - head.start) * WIDTH;
        let mut scratch = Scratch::take(len + DEPTH * WIDTH);
        let (sums, panel) = scratch.split_at_mut(len);
        sums.fill(A::ZERO);
        for (link, left) in self.chain.iter().zip(lefts) {
            match &link.right {
                Right::Shared(right) => {
                    self.follow(link, right, left, self.tiles, (column, count), panel, sums);
                }
                Right::PerGroup(rights) => {
                    for tiles in self.tiles.chunk_by(|a, b| a.group == b.group) {
                        let Some(group) = tiles[0].group else { continue };
                        let right = &rights[group];
                        let sums = &mut sums[(tiles[0].start - head.start) * WIDTH..];
                        self.follow(link, right, left, tiles, (column, count), panel, sums);
                    }
                }
            }
        }
        for tile in self.tiles {
            for packed in tile.start..tile.start + tile.height {
                let row = self.rows.order[packed];
                let sums = &sums[(packed - head.start) * WIDTH..][..count];
                sink(Place { row, packed, group: tile.group, column }, sums);
            }
        }
    }

    /// Carries `tiles`, whose sums are `sums`, through one link.
    #[allow(clippy::too_many_arguments)]
    fn follow(
        &self,
        link: &Link<'_, A>,
        right: &Operand<'_, A>,
        left: &[A],
        tiles: &[Tile],
        (column, columns): (usize, usize),
        panel: &mut [A],
        sums: &mut [A],
    ) {
        let origin = tiles[0].start;
        let left = &left[(origin - self.packed_from) * link.depth..];
        for first in (0..link.depth).step_by(DEPTH) {
            let panel = &mut panel[..DEPTH.min(link.depth - first) * WIDTH];
            right.pack_panel(column, columns, first, panel);
            let depth = link.depth;
            sweep(Sweep { tiles, left, origin, depth, first, panel, columns, sums: &mut *sums });
        }
    }
}

/// Rows of an output that jobs write side by side.
pub(crate) struct Cells<'a, T> {
    rows: Vec<*mut T>,
    columns: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: the rows are exclusive borrows; `update` asks its callers to keep apart.
unsafe impl<T: Send> Sync for Cells<'_, T> {}

impl<'a, T> Cells<'a, T> {
    /// Over disjoint rows of `columns` elements each.
    pub(crate) fn new(rows: impl IntoIterator<Item = &'a mut [T]>, columns: usize) -> Cells<'a, T> {
        let rows = rows.into_iter().map(|row| row[..columns].as_mut_ptr()).collect();
        Cells { rows, columns, life: PhantomData }
    }

    /// Calls `f` with each element from (row, column) on and its counterpart in `with`.
    ///
    /// # Safety
    /// No other call touches one of these elements at the same time.
    pub(crate) unsafe fn update<A: Copy>(
        &self,
        row: usize,
        column: usize,
        with: &[A],
        f: impl Fn(usize, &mut T, A),
    ) {
        assert!(column + with.len() <= self.columns, "columns beyond {}", self.columns);
        // SAFETY: the range lies in a row that was borrowed exclusively for 'a; the caller keeps
        // other calls off it.
        let cells =
            unsafe { std::slice::from_raw_parts_mut(self.rows[row].add(column), with.len()) };
        for (i, (cell, &a)) in cells.iter_mut().zip(with).enumerate() {
            f(column + i, cell, a);
        }
    }
}
