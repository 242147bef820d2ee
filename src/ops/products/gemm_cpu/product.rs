//! C[i, j] = Σ_p L[i, p] · R[p, j], the one loop behind every matrix op. The right operand is packed one
//! panel at a time by the job that uses it, so a quantized matrix is only ever expanded into
//! 16 KiB; the left side is packed once per call.

use std::marker::PhantomData;

use super::operand::{DEPTH, Operand, STRIP, TILES_PER_JOB};
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
    /// Panels of 16 KiB of f32 stay in the first-level cache. When few rows share the cost of
    /// fetching long matrix rows, long stretches of memory matter more: at 4096 columns, 2 KiB at
    /// a time take 7.4 ms and 512 bytes 10.
    fn of<A: Accumulator>(chain: &[Segment<'_, A>], rows: usize, columns: usize) -> Grain {
        let few = rows <= 2 * HEIGHT;
        let across = chain.iter().all(|segment| match &segment.right {
            Right::Shared(right) => right.has_contiguous_columns(),
            Right::PerGroup(rights) => rights.iter().all(Operand::has_contiguous_columns),
        });
        if !across {
            let long = few && chain.iter().any(|segment| segment.depth >= 2 * DEPTH);
            return Grain { columns: WIDTH, depth: if long { DEPTH } else { DEPTH / 4 } };
        }
        let (widest, len) = if few { (STRIP, 1 << 14) } else { (4 * WIDTH, 1 << 13) };
        // Half as many strips as jobs leaves no thread idle.
        let columns = (columns * 2 / JOBS).next_multiple_of(WIDTH).clamp(2 * WIDTH, widest);
        Grain { columns, depth: len / columns }
    }
}

/// The rows of a product in packed order, cut into register tiles. Rows of one group lie together.
pub(crate) struct RowOrder {
    order: Vec<usize>,
    tiles: Vec<Tile>,
}

impl RowOrder {
    /// Rows `0 .. count`, all of group 0.
    pub(crate) fn all(count: usize) -> RowOrder {
        RowOrder::picked((0..count).gathered())
    }

    /// These rows, all of group 0.
    pub(crate) fn picked(order: Vec<usize>) -> RowOrder {
        let mut tiles = alloc::room(order.len().div_ceil(HEIGHT));
        cut(0, order.len(), Some(0), &mut tiles);
        RowOrder { order, tiles }
    }

    /// Row `i` in group `group[i]`, or in none if that is -1.
    pub(crate) fn grouped(group: &View<'_, i32>) -> RowOrder {
        let group = group.to_vec();
        let mut order: Vec<usize> = (0..group.len()).gathered();
        // Unstable sorting takes no memory; the row makes it stable.
        order.sort_unstable_by_key(|&row| (group[row], row));
        let (mut tiles, mut start) = (Vec::new(), 0);
        for run in order.chunk_by(|&a, &b| group[a] == group[b]) {
            cut(start, run.len(), usize::try_from(group[run[0]]).ok(), &mut tiles);
            start += run.len();
        }
        RowOrder { order, tiles }
    }
}

/// Cuts a run of rows into the fewest tiles, heights as even as can be.
fn cut(start: usize, count: usize, group: Option<usize>, tiles: &mut Vec<Tile>) {
    let pieces = count.div_ceil(HEIGHT);
    for piece in 0..pieces {
        let (from, to) = (piece * count / pieces, (piece + 1) * count / pieces);
        tiles.put(Tile { start: start + from, height: to - from, group });
    }
}

/// Part of the chain that every output sums: `depth` steps of L · R.
pub(crate) struct Segment<'s, A> {
    /// Left operand, one lane per row.
    pub left: Operand<'s, A>,
    /// Right operand, one lane per column.
    pub right: Right<'s, A>,
    /// Steps.
    pub depth: usize,
}

/// The right side of a segment.
pub(crate) enum Right<'s, A> {
    /// One for all rows.
    Shared(Operand<'s, A>),
    /// One per group; rows of no group skip the segment.
    PerGroup(Vec<Operand<'s, A>>),
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
    chain: &[Segment<'_, A>],
    sink: &Sink<'_, A>,
) {
    let depth: usize = chain.iter().map(|segment| segment.depth).sum();
    let limit = (CHUNK_LEN / depth.max(1)).clamp(JOBS * HEIGHT, CHUNK_ROWS);
    let mut tiles = rows.tiles.as_slice();
    while let Some(head) = tiles.first() {
        let taken = tiles.partition_point(|t| t.start + t.height - head.start <= limit);
        let (now, later) = tiles.split_at(taken);
        let lefts: Vec<Scratch<A>> =
            chain.iter().map(|segment| pack_left(segment, now, &rows.order)).gathered();
        let grain = Grain::of(chain, now.len() * HEIGHT, columns);
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

fn pack_left<A: Accumulator>(
    segment: &Segment<'_, A>,
    tiles: &[Tile],
    order: &[usize],
) -> Scratch<A> {
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
    chain: &'s [Segment<'s, A>],
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
                let (row, group) = (self.rows.order[packed], tile.group);
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
        right: &Operand<'_, A>,
        left: &[A],
        tiles: &[Tile],
        room: &mut [A],
        strip: &mut Strip<'_, A>,
    ) {
        let origin = tiles[0].start;
        let left = &left[(origin - self.packed_from) * depth..];
        let panels = strip.columns.1.div_ceil(WIDTH);
        let one = tiles.len() == 1 && tiles[0].height == 1 && panels == 1;
        for first in (0..depth).step_by(self.grain.depth) {
            let steps = self.grain.depth.min(depth - first);
            if one {
                let (x, row) = (&left[first..][..steps], origin - strip.start);
                let sums = &mut strip.sums[row * WIDTH..][..WIDTH];
                if right.carry_row(strip.columns, first, x, room, sums) {
                    continue;
                }
            }
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
