//! C[i, j] = Σ_p L[i, p] · R[j, p], the loop behind every product of rows with rows: each element is the sum of
//! its [`lanes`](super::lanes). The left side is copied once per call, as f32 or f64. The right one is read
//! a few rows and steps at a time by the job that uses them; a single row of the left side reads it in place, as
//! fast as memory gives it.

use super::lanes::{COLUMNS, HEIGHT, LANES, Pair, Stretch, carry};
use super::operand::Matrix;
use super::product::{Position, Right, RowOrder, Segment, Sink};
use super::scratch::Scratch;
use super::tile::{Accumulator, Tile};
use crate::alloc::{self, Gather, Grow};
use crate::device::parallel;

/// A part of the sum, both of whose operands have rows of steps.
pub(crate) type Rows<'s, A> = Segment<&'s dyn Matrix<A>, &'s dyn Matrix<A>>;

/// Most steps that are read and swept at a time: 12 rows of them are as much as the first-level cache holds.
const PIECE: usize = 640;
/// Most steps of a sum whose lanes stay in registers: 12 rows of them stay in the second-level cache. With 14,336
/// it is slower than lanes in memory.
const SHORT: usize = 8192;
/// Pieces are multiples of it, so that they begin with a block of a 4-bit matrix.
const ALIGN: usize = 128;
/// Columns that sweep a tile of rows while it is in the first-level cache.
const BLOCK: usize = 2 * COLUMNS;
/// Most columns of a job.
const STRIP: usize = 8 * BLOCK;
/// Most rows of a job: their steps of a piece and the lanes of a block stay in the second-level cache.
const BAND: usize = 256;
/// Elements whose lanes a job adds up at a time, unless a block has more.
const SPAN: usize = 2048;
/// Most rows that the right side is read in place for, if it can be. Pieces of many rows of a matrix are slow to
/// fetch, and with few rows there is little else to do.
const FEW: usize = 4 * HEIGHT;
/// Rows whose left side is copied at a time, as long as it has no more elements than [`COPIED`].
const CHUNK: usize = 2 * BAND;
const COPIED: usize = 1 << 25;
/// Jobs a chunk is cut into where it has that much to do.
const JOBS: usize = 16;

/// Forms the sum of the chain for every row and column and hands it to `sink`.
pub(crate) fn dots<A: Accumulator>(
    rows: &RowOrder,
    columns: usize,
    chain: &[Rows<'_, A>],
    sink: &Sink<'_, A>,
) {
    let depth: usize = chain.iter().map(|segment| segment.depth).sum();
    let limit = (COPIED / depth.max(1)).clamp(JOBS * HEIGHT, CHUNK);
    let tiles = rows.tiles(HEIGHT);
    let mut tiles = tiles.as_slice();
    while let Some(head) = tiles.first() {
        let taken = tiles.partition_point(|t| t.start + t.height - head.start <= limit);
        let (now, later) = tiles.split_at(taken);
        chunk(rows, now, columns, chain, sink);
        tiles = later;
    }
}

/// As many rows as are copied at a time.
fn chunk<A: Accumulator>(
    rows: &RowOrder,
    tiles: &[Tile],
    columns: usize,
    chain: &[Rows<'_, A>],
    sink: &Sink<'_, A>,
) {
    let count = height(tiles);
    let strip = columns.div_ceil(JOBS).next_multiple_of(BLOCK).min(STRIP);
    let strips = columns.div_ceil(strip);
    let most = JOBS.div_ceil(strips).min(tiles.len().div_ceil(4 * HEIGHT));
    let bands = cut(tiles, most.max(count.div_ceil(BAND)));
    let lefts: Vec<Left<A>> =
        chain.iter().map(|segment| Left::of(segment, rows, &bands)).gathered();
    let depth: usize = chain.iter().map(|segment| segment.depth).sum();
    let work = strip * depth * (count / bands.len() / 8 + 1);
    parallel::for_each(alloc::filled((), strips * bands.len()), work, |job, ()| {
        let (tiles, column) = (bands[job / strips], job % strips * strip);
        let band = (tiles[0].start - bands[0][0].start, height(tiles));
        let columns = (column, strip.min(columns - column));
        Job { rows, tiles, band, columns, chain, lefts: &lefts }.run(sink);
    });
}

/// Rows of neighboring tiles.
fn height(tiles: &[Tile]) -> usize {
    tiles.iter().map(|tile| tile.height).sum()
}

/// Tiles in up to `count` bands of about the same length.
fn cut(tiles: &[Tile], count: usize) -> Vec<&[Tile]> {
    tiles.chunks(tiles.len().div_ceil(count)).gathered()
}

/// Steps with the zeros that continue a row to whole vectors.
fn padded(steps: usize) -> usize {
    steps.next_multiple_of(LANES)
}

/// (first, steps) of the pieces of a segment.
fn pieces(depth: usize) -> impl ExactSizeIterator<Item = (usize, usize)> {
    let even = depth.div_ceil(depth.div_ceil(PIECE).max(1));
    let steps = even.next_multiple_of(ALIGN).clamp(ALIGN, PIECE);
    (0..depth).step_by(steps).map(move |first| (first, steps.min(depth - first)))
}

/// Elements from `first` on of a row of the matrix, then zeros.
fn read_padded<A: Accumulator>(
    matrix: &dyn Matrix<A>,
    row: usize,
    (first, steps): (usize, usize),
    out: &mut [A],
) {
    let (out, zeros) = out.split_at_mut(steps);
    matrix.read(row, first, out);
    zeros.fill(A::ZERO);
}

/// The left side of a segment as f32 or f64: band by band, in a band piece by piece, in a piece row by row. Of few
/// rows there is one band and one piece.
struct Left<A: Accumulator> {
    copy: Scratch<A>,
    few: bool,
}

impl<A: Accumulator> Left<A> {
    fn of(segment: &Rows<'_, A>, rows: &RowOrder, bands: &[&[Tile]]) -> Left<A> {
        let count: usize = bands.iter().map(|band| height(band)).sum();
        let (few, depth) = (count <= FEW, segment.depth);
        let mut copy = Scratch::take(count * padded(depth));
        let (mut jobs, mut rest) = (Vec::new(), &mut copy[..]);
        let whole = few.then_some((0, depth)).filter(|_| depth > 0);
        for band in bands {
            let cut = pieces(depth).filter(|_| !few);
            for piece in whole.into_iter().chain(cut) {
                let (to, after) = rest.split_at_mut(height(band) * padded(piece.1));
                jobs.put((band[0].start, piece, to));
                rest = after;
            }
        }
        parallel::for_each(jobs, count / bands.len() * depth.min(PIECE), |_, job| {
            let (start, piece, to) = job;
            for (i, to) in to.chunks_exact_mut(padded(piece.1)).enumerate() {
                read_padded(segment.left, rows.row(start + i), piece, to);
            }
        });
        Left { copy, few }
    }

    /// Rows of a band from a step on, and how far they are apart. Before the band are `before` rows, in it `count`.
    fn rows(
        &self,
        (before, count): (usize, usize),
        depth: usize,
        row: usize,
        (first, steps): (usize, usize),
    ) -> (&[A], usize) {
        let (band, steps) = (&self.copy[before * padded(depth)..], padded(steps));
        match self.few {
            true => (&band[row * padded(depth) + first..], padded(depth)),
            false => (&band[count * first + row * steps..], steps),
        }
    }
}

/// Steps (first, how many) of a segment that are read at a time, and where a job keeps its rows of the right side.
struct Cut {
    segment: usize,
    piece: (usize, usize),
    at: usize,
}

/// Some rows and columns of a product, for one thread.
struct Job<'s, A: Accumulator> {
    rows: &'s RowOrder,
    tiles: &'s [Tile],
    /// Rows of the copied left sides before this band, and in it.
    band: (usize, usize),
    /// First column and number of columns.
    columns: (usize, usize),
    chain: &'s [Rows<'s, A>],
    lefts: &'s [Left<A>],
}

impl<A: Accumulator> Job<'_, A> {
    fn run(&self, sink: &Sink<'_, A>) {
        let most = if A::in_registers().is_some() { SHORT } else { PIECE };
        let short = self.chain.iter().all(|segment| (1..=most).contains(&segment.depth));
        let short = short && !self.lefts[0].few;
        let pitch = self.columns.1.next_multiple_of(if short { BLOCK } else { COLUMNS });
        let mut sums = Scratch::take(self.band.1 * pitch);
        if short {
            self.finish(&mut sums, pitch);
        } else {
            self.fill_spans(&mut sums, pitch);
        }
        let mut sums = sums.chunks_exact(pitch);
        for tile in self.tiles {
            for (packed, sums) in (tile.start..tile.start + tile.height).zip(&mut sums) {
                let (row, group) = (self.rows.row(packed), tile.group);
                let column = self.columns.0;
                sink(Position { row, packed, group, column }, &sums[..self.columns.1]);
            }
        }
    }

    /// The sums `[rows][pitch]`, block of columns by block of columns and in a block tile by tile: lanes stay in
    /// registers, or in the first-level cache.
    fn finish(&self, sums: &mut [A], pitch: usize) {
        let mut cuts = Vec::new();
        let mut room = 0;
        for (segment, &Segment { depth, .. }) in self.chain.iter().enumerate() {
            for piece in pieces(depth) {
                cuts.put(Cut { segment, piece, at: room });
                room += BLOCK * padded(piece.1);
            }
        }
        let mut scratch = Scratch::take(HEIGHT * BLOCK * LANES + room);
        let (lanes, room) = scratch.split_at_mut(HEIGHT * BLOCK * LANES);
        for column in (0..pitch).step_by(BLOCK) {
            let read = |cut: &Cut, right: &dyn Matrix<A>, room: &mut [A]| {
                for c in (0..BLOCK).step_by(COLUMNS) {
                    let room = &mut room[cut.at + c * padded(cut.piece.1)..];
                    read_rows(right, self.right_rows(column + c), cut.piece, room);
                }
            };
            for cut in &cuts {
                if let Right::Shared(right) = self.chain[cut.segment].right {
                    read(cut, right, room);
                }
            }
            for tiles in self.tiles.chunk_by(|a, b| a.group == b.group) {
                for cut in &cuts {
                    let right = &self.chain[cut.segment].right;
                    if let (Right::PerGroup(rights), Some(group)) = (right, tiles[0].group) {
                        read(cut, rights[group], room);
                    }
                }
                let sums = &mut sums[column..];
                self.finish_tiles(tiles, &cuts, (&mut *lanes, room), (sums, pitch));
            }
        }
    }

    /// The sums of neighboring tiles of one group and a block of columns, whose rows of the right side are in `room`.
    fn finish_tiles(
        &self,
        tiles: &[Tile],
        cuts: &[Cut],
        (lanes, room): (&mut [A], &[A]),
        (sums, pitch): (&mut [A], usize),
    ) {
        let mut pairs = alloc::room(cuts.len());
        for &Tile { start, height, group } in tiles {
            let row = start - self.tiles[0].start;
            pairs.clear();
            for cut in cuts {
                let Segment { right, depth, .. } = &self.chain[cut.segment];
                if matches!(right, Right::PerGroup(_)) && group.is_none() {
                    continue;
                }
                let (x, apart) = self.lefts[cut.segment].rows(self.band, *depth, row, cut.piece);
                pairs.put(Pair { x, apart, w: &room[cut.at..], steps: padded(cut.piece.1) });
            }
            let sums = &mut sums[row * pitch..];
            match A::in_registers() {
                Some(finish) => finish(&pairs, height, BLOCK, (sums, pitch)),
                None => finish_in_lanes(&pairs, height, lanes, (sums, pitch)),
            }
        }
    }

    /// The sums `[rows][pitch]`, as many columns at a time as have room for the lanes of all rows.
    fn fill_spans(&self, sums: &mut [A], pitch: usize) {
        let count = self.band.1;
        let span = (SPAN / count / BLOCK * BLOCK).clamp(BLOCK, STRIP).min(pitch);
        let (lanes, room) = (count * span * LANES, self.chain.len() * BLOCK * PIECE);
        let mut scratch = Scratch::take(lanes + room + count * span);
        let (lanes, rest) = scratch.split_at_mut(lanes);
        let (room, parts) = rest.split_at_mut(room);
        for column in (0..pitch).step_by(span) {
            let width = span.min(pitch - column);
            let (lanes, parts) = (&mut lanes[..count * width * LANES], &mut parts[..count * width]);
            self.fill(Span { column, width, lanes }, room);
            A::sum_lanes(lanes, parts);
            for (sums, part) in sums.chunks_exact_mut(pitch).zip(parts.chunks_exact(width)) {
                sums[column..][..width].copy_from_slice(part);
            }
        }
    }

    /// All chains of a span.
    fn fill(&self, mut span: Span<'_, A>, room: &mut [A]) {
        let one = self.band.1 == 1 && self.lefts[0].few;
        if one || self.chain[0].depth == 0 {
            span.lanes.fill(A::ZERO);
        }
        for (i, segment) in self.chain.iter().enumerate() {
            for tiles in self.tiles.chunk_by(|a, b| a.group == b.group) {
                let right = match (&segment.right, tiles[0].group) {
                    (Right::Shared(right), _) => *right,
                    (Right::PerGroup(rights), Some(group)) => rights[group],
                    (Right::PerGroup(_), None) => continue,
                };
                if one {
                    self.carry_row(i, right, room, &mut span);
                } else {
                    self.carry_tiles(i, right, tiles, room, &mut span);
                }
            }
        }
    }

    /// Rows of the right side that are columns from `column` of this job on: beyond its end the last one again,
    /// whose sums nobody looks at.
    fn right_rows(&self, column: usize) -> [usize; COLUMNS] {
        let (first, count) = self.columns;
        std::array::from_fn(|j| first + (column + j).min(count - 1))
    }

    /// One row: the right side is read in place where it can be.
    fn carry_row(&self, i: usize, right: &dyn Matrix<A>, room: &mut [A], span: &mut Span<'_, A>) {
        let (depth, x) = (self.chain[i].depth, &self.lefts[i].copy);
        let whole = depth / LANES * LANES;
        for (group, lanes) in span.lanes.chunks_exact_mut(COLUMNS * LANES).enumerate() {
            let rows = self.right_rows(span.column + group * COLUMNS);
            let mut done = 0;
            if right.carry(rows, &x[..whole], lanes) {
                done = whole;
            } else if let Some(w) = lend(right, rows, whole) {
                carry(Stretch::one(x, w, lanes));
                done = whole;
            }
            while done < depth {
                let piece = (done, PIECE.min(depth - done));
                carry(Stretch::one(&x[done..], read_rows(right, rows, piece, room), lanes));
                done += piece.1;
            }
        }
    }

    /// Neighboring tiles of one group: a piece of a block of columns sweeps all of them.
    fn carry_tiles(
        &self,
        i: usize,
        right: &dyn Matrix<A>,
        tiles: &[Tile],
        room: &mut [A],
        span: &mut Span<'_, A>,
    ) {
        let depth = self.chain[i].depth;
        let in_place = self.lefts[i].few && depth.is_multiple_of(LANES);
        for block in (0..span.width).step_by(BLOCK) {
            let groups = (span.width - block).min(BLOCK) / COLUMNS;
            let rows: [_; BLOCK / COLUMNS] =
                std::array::from_fn(|g| self.right_rows(span.column + block + g * COLUMNS));
            if in_place && let [Some(a), Some(b)] = rows.map(|rows| lend(right, rows, depth)) {
                self.sweep(i, (0, depth), tiles, (block, &[a, b][..groups]), span);
                continue;
            }
            for piece in pieces(depth) {
                let mut w = [[&[][..]; COLUMNS]; BLOCK / COLUMNS];
                let rooms = room.chunks_exact_mut(COLUMNS * PIECE);
                for ((w, rows), room) in w.iter_mut().zip(rows).zip(rooms).take(groups) {
                    *w = read_rows(right, rows, piece, room);
                }
                self.sweep(i, piece, tiles, (block, &w[..groups]), span);
            }
        }
    }

    /// Carries tiles through a piece of one or two groups of columns.
    fn sweep(
        &self,
        i: usize,
        piece: (usize, usize),
        tiles: &[Tile],
        (block, w): (usize, &[[&[A]; COLUMNS]]),
        span: &mut Span<'_, A>,
    ) {
        let (pitch, fresh) = (span.width, i == 0 && piece.0 == 0);
        for tile in tiles {
            let row = tile.start - self.tiles[0].start;
            let (x, apart) = self.lefts[i].rows(self.band, self.chain[i].depth, row, piece);
            for (group, &w) in w.iter().enumerate() {
                let lanes = &mut span.lanes[(row * pitch + block + group * COLUMNS) * LANES..];
                carry(Stretch { x, height: tile.height, apart, w, lanes, pitch, fresh });
            }
        }
    }
}

/// The sums of a tile of [`BLOCK`] columns with lanes in memory.
fn finish_in_lanes<A: Accumulator>(
    pairs: &[Pair<'_, A>],
    height: usize,
    lanes: &mut [A],
    (sums, pitch): (&mut [A], usize),
) {
    for (i, &Pair { x, apart, w, steps }) in pairs.iter().enumerate() {
        for c in (0..BLOCK).step_by(COLUMNS) {
            let (w, lanes) = (rows_in(&w[c * steps..], steps), &mut lanes[c * LANES..]);
            carry(Stretch { x, height, apart, w, lanes, pitch: BLOCK, fresh: i == 0 });
        }
    }
    let (count, mut parts) = (height * BLOCK, [A::ZERO; HEIGHT * BLOCK]);
    A::sum_lanes(&lanes[..count * LANES], &mut parts[..count]);
    for (part, sums) in parts[..count].chunks_exact(BLOCK).zip(sums.chunks_mut(pitch)) {
        sums[..BLOCK].copy_from_slice(part);
    }
}

/// Columns of a job that are finished together, and their lanes `[rows][width]`.
struct Span<'s, A> {
    /// First column, counted in the job.
    column: usize,
    width: usize,
    lanes: &'s mut [A],
}

/// The first steps of rows in place, if they lie in memory as `A`.
fn lend<A: Accumulator>(
    right: &dyn Matrix<A>,
    rows: [usize; COLUMNS],
    steps: usize,
) -> Option<[&[A]; COLUMNS]> {
    let mut w = [&[][..]; COLUMNS];
    for (w, row) in w.iter_mut().zip(rows) {
        *w = right.lend(row, 0, steps)?;
    }
    Some(w)
}

/// Stretches of rows, continued with zeros, in `room`.
fn read_rows<'s, A: Accumulator>(
    right: &dyn Matrix<A>,
    rows: [usize; COLUMNS],
    piece: (usize, usize),
    room: &'s mut [A],
) -> [&'s [A]; COLUMNS] {
    let steps = padded(piece.1);
    let room = &mut room[..COLUMNS * steps];
    for (room, row) in room.chunks_exact_mut(steps).zip(rows) {
        read_padded(right, row, piece, room);
    }
    rows_in(room, steps)
}

/// Rows one after another.
fn rows_in<A>(room: &[A], steps: usize) -> [&[A]; COLUMNS] {
    std::array::from_fn(|j| &room[j * steps..][..steps])
}
