//! C[i, j] = Σ_p L[i, p] · R[p, j] as chains, the loop behind every gradient. The right operand is packed one
//! panel at a time by the job that uses it, so a quantized matrix is only ever expanded into
//! 64 KiB; the left side is packed once per call.

use std::marker::PhantomData;

use super::operand::{Operand, STRIP, Stack, TILES_PER_JOB};
use super::scratch::Scratch;
use super::tile::{Accumulator, HEIGHT, Sweep, Tile, WIDTH, sweep};
use crate::alloc::{self, Gather, Grow};
use crate::device::parallel;
use crate::view::View;

/// Rows whose left side is packed at a time: packing a panel costs about as much as carrying six
/// rows through it, which this many rows make small.
const CHUNK_ROWS: usize = 512;
/// Bound of the packed left side in elements.
const CHUNK_LEN: usize = 1 << 25;
/// Jobs a chunk is cut into where it has that much to do.
const JOBS: usize = 16;

/// What is packed and swept at a time.
#[derive(Clone, Copy)]
struct Grain {
    /// Columns, a multiple of [`WIDTH`].
    columns: usize,
    /// Steps.
    depth: usize,
}

impl Grain {
    /// Panels of 32 KiB of f32, or of 64 where few rows share the cost of fetching them.
    fn of(rows: usize, columns: usize) -> Grain {
        let few = rows <= 2 * HEIGHT;
        let (widest, len) = if few { (STRIP, 1 << 14) } else { (4 * WIDTH, 1 << 13) };
        // Half as many strips as jobs leaves no thread idle.
        let columns = (columns * 2 / JOBS).next_multiple_of(WIDTH).clamp(2 * WIDTH, widest);
        Grain { columns, depth: len / columns }
    }
}

/// The rows of a product in packed order. Rows of one group lie together.
pub(crate) struct RowOrder {
    order: Vec<usize>,
    /// Rows and group of each run of rows of one group.
    runs: Vec<(usize, Option<usize>)>,
}

impl RowOrder {
    /// Rows `0 .. count`, all of group 0.
    pub(crate) fn all(count: usize) -> RowOrder {
        RowOrder::picked((0..count).gathered())
    }

    /// These rows, all of group 0.
    pub(crate) fn picked(order: Vec<usize>) -> RowOrder {
        let mut runs = alloc::room(1);
        runs.put((order.len(), Some(0)));
        RowOrder { order, runs }
    }

    /// Row `i` in group `group[i]`, or in none if that is -1.
    pub(crate) fn grouped(group: &View<'_, i32>) -> RowOrder {
        let group = group.to_vec();
        let mut order: Vec<usize> = (0..group.len()).gathered();
        // Unstable sorting takes no memory; the row makes it stable.
        order.sort_unstable_by_key(|&row| (group[row], row));
        let runs = order
            .chunk_by(|&a, &b| group[a] == group[b])
            .map(|run| (run.len(), usize::try_from(group[run[0]]).ok()))
            .sifted();
        RowOrder { order, runs }
    }

    /// The row at a place in packed order.
    pub(crate) fn row(&self, packed: usize) -> usize {
        self.order[packed]
    }

    /// Register tiles of up to `height` rows of one group, in packed order: the fewest, as even as can be.
    pub(crate) fn tiles(&self, height: usize) -> Vec<Tile> {
        let (mut tiles, mut start) = (alloc::room(self.order.len().div_ceil(height)), 0);
        for &(count, group) in &self.runs {
            let pieces = count.div_ceil(height);
            for piece in 0..pieces {
                let (from, to) = (piece * count / pieces, (piece + 1) * count / pieces);
                tiles.put(Tile { start: start + from, height: to - from, group });
            }
            start += count;
        }
        tiles
    }
}

/// Part of the sum that every output is: `depth` steps of L · R.
pub(crate) struct Segment<L, R> {
    /// Left operand, one lane per row.
    pub left: L,
    /// Right operand, one lane per column.
    pub right: Right<R>,
    /// Steps.
    pub depth: usize,
}

/// A part of a chain.
pub(crate) type Link<'s, A> = Segment<Operand<'s, A>, Stack<'s, A>>;

/// The right side of a segment.
pub(crate) enum Right<R> {
    /// One for all rows.
    Shared(R),
    /// One per group; rows of no group skip the segment.
    PerGroup(Vec<R>),
}

/// Where a stretch of finished sums belongs.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    /// Row of the product.
    pub row: usize,
    /// Number of that row in packed order.
    pub packed: usize,
    /// The row's group.
    pub group: Option<usize>,
    /// First column.
    pub column: usize,
}

/// Takes finished sums. Every element of the product is handed over once; calls for different
/// elements run side by side.
pub(crate) type Sink<'s, A> = dyn Fn(Position, &[A]) + Sync + 's;

/// Sums the chain for every row and column and hands the sums to `sink`.
pub(crate) fn product<A: Accumulator>(
    rows: &RowOrder,
    columns: usize,
    chain: &[Link<'_, A>],
    sink: &Sink<'_, A>,
) {
    let depth: usize = chain.iter().map(|segment| segment.depth).sum();
    let limit = (CHUNK_LEN / depth.max(1)).clamp(JOBS * HEIGHT, CHUNK_ROWS);
    let tiles = rows.tiles(HEIGHT);
    let mut tiles = tiles.as_slice();
    while let Some(head) = tiles.first() {
        let taken = tiles.partition_point(|t| t.start + t.height - head.start <= limit);
        let (now, later) = tiles.split_at(taken);
        let lefts: Vec<Scratch<A>> =
            chain.iter().map(|segment| pack_left(segment, now, &rows.order)).gathered();
        let grain = Grain::of(now.len() * HEIGHT, columns);
        let strips = columns.div_ceil(grain.columns);
        let splits = JOBS.div_ceil(strips).min(now.len().div_ceil(2 * HEIGHT));
        let work = grain.columns * depth * (now.len() * HEIGHT / splits / 16 + 1);
        parallel::for_each(alloc::filled((), strips * splits), work, |job, ()| {
            let (strip, split) = (job / splits * grain.columns, job % splits);
            let (from, to) = (split * now.len() / splits, (split + 1) * now.len() / splits);
            let tiles = &now[from..to];
            let part = Part { rows, tiles, packed_from: now[0].start, chain, grain };
            part.run(&lefts, (strip, grain.columns.min(columns - strip)), sink);
        });
        tiles = later;
    }
}

fn pack_left<A: Accumulator>(segment: &Link<'_, A>, tiles: &[Tile], order: &[usize]) -> Scratch<A> {
    let count: usize = tiles.iter().map(|t| t.height).sum();
    let mut packed = Scratch::take(count * segment.depth);
    let (mut jobs, mut rest) = (Vec::new(), &mut packed[..]);
    for tiles in tiles.chunks(TILES_PER_JOB) {
        let count: usize = tiles.iter().map(|t| t.height).sum();
        let (out, after) = rest.split_at_mut(count * segment.depth);
        jobs.put((tiles, out));
        rest = after;
    }
    parallel::for_each(jobs, TILES_PER_JOB * HEIGHT * segment.depth, |_, (tiles, out)| {
        segment.left.pack_tiles(tiles, order, segment.depth, out);
    });
    packed
}

/// Some tiles and columns of a product, swept by one thread.
struct Part<'s, A> {
    rows: &'s RowOrder,
    tiles: &'s [Tile],
    /// Packed row at which the packed left sides begin.
    packed_from: usize,
    chain: &'s [Link<'s, A>],
    grain: Grain,
}

impl<A: Accumulator> Part<'_, A> {
    fn run(&self, lefts: &[Scratch<A>], columns: (usize, usize), sink: &Sink<'_, A>) {
        let (Some(head), Some(tail)) = (self.tiles.first(), self.tiles.last()) else { return };
        let (start, count) = (head.start, tail.start + tail.height - head.start);
        let panels = columns.1.div_ceil(WIDTH);
        let (len, room) = (panels * count * WIDTH, panels * self.grain.depth * WIDTH);
        let mut scratch = Scratch::take(len + room);
        let (sums, room) = scratch.split_at_mut(len);
        sums.fill(A::ZERO);
        let mut strip = Strip { start, count, columns, sums };
        for (segment, left) in self.chain.iter().zip(lefts) {
            match &segment.right {
                Right::Shared(right) => {
                    self.follow(segment.depth, right, left, self.tiles, room, &mut strip);
                }
                Right::PerGroup(rights) => {
                    for tiles in self.tiles.chunk_by(|a, b| a.group == b.group) {
                        let Some(group) = tiles[0].group else { continue };
                        self.follow(segment.depth, &rights[group], left, tiles, room, &mut strip);
                    }
                }
            }
        }
        for tile in self.tiles {
            for packed in tile.start..tile.start + tile.height {
                let (row, group) = (self.rows.row(packed), tile.group);
                for (i, sums) in strip.sums.chunks_exact(count * WIDTH).enumerate() {
                    let column = columns.0 + i * WIDTH;
                    let sums = &sums[(packed - start) * WIDTH..];
                    let sums = &sums[..WIDTH.min(columns.1 - i * WIDTH)];
                    sink(Position { row, packed, group, column }, sums);
                }
            }
        }
    }

    /// Carries `tiles` through `depth` steps of one segment.
    fn follow(
        &self,
        depth: usize,
        right: &Stack<'_, A>,
        left: &[A],
        tiles: &[Tile],
        room: &mut [A],
        strip: &mut Strip<'_, A>,
    ) {
        let origin = tiles[0].start;
        let left = &left[(origin - self.packed_from) * depth..];
        let panels = strip.columns.1.div_ceil(WIDTH);
        for first in (0..depth).step_by(self.grain.depth) {
            let steps = self.grain.depth.min(depth - first);
            let room = &mut room[..panels * steps * WIDTH];
            right.pack_panels(strip.columns, (first, steps), room);
            let sums = strip.sums.chunks_exact_mut(strip.count * WIDTH);
            for (i, (panel, sums)) in room.chunks_exact(steps * WIDTH).zip(sums).enumerate() {
                let columns = WIDTH.min(strip.columns.1 - i * WIDTH);
                let sums = &mut sums[(origin - strip.start) * WIDTH..];
                sweep(Sweep { tiles, left, origin, depth, first, panel, columns, sums });
            }
        }
    }
}

/// The sums of a part: panels of `[count][WIDTH]`.
struct Strip<'s, A> {
    /// First row in packed order.
    start: usize,
    /// Rows.
    count: usize,
    /// First column and number of columns.
    columns: (usize, usize),
    sums: &'s mut [A],
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
        let rows = rows.into_iter().map(|row| row[..columns].as_mut_ptr()).sifted();
        Cells { rows, columns, life: PhantomData }
    }

    /// Calls `f` with the place in `with`, the element as far from (row, column), and its counterpart there.
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
            f(i, cell, a);
        }
    }
}
