//! The backward pass: one (sequence, key/value head) per item, so that each gradient row has one
//! writer and its sum one order. Where sequences share keys, an item keeps the sums of its own queries
//! and a second pass adds those of each row in the order of the sequences.

use super::cpu::{KeyRows, Rows, into_rows};
use super::cpu_lanes::{Accumulator, LANES, combine, dots, load, softmax, softmax_bwd, store};
use crate::alloc::{self, Gather, Grow};
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::decoder::attention::{AttentionBwd, KvRows};
use crate::ops::support::math::dispatch_simd;
use crate::view::View;

/// Queries whose rows of scores are held at a time; also the block of the sums over queries.
const TILE: usize = 32;

/// Sums over the queries of a sequence for each of its keys, `[keys, chunks]`: those of dk and dv.
type Sums<A> = [Vec<[A; LANES]>; 2];

/// All queries and keys of one sequence for one key/value head.
struct HeadTask<'o, T> {
    query: usize,
    queries: usize,
    rows: KeyRows<'o>,
    keys: usize,
    head: usize,
    /// `[queries, query heads of the key/value head]`.
    dq: Vec<&'o mut [T]>,
    /// A row of dk and of dv for each key; none where the sums are kept.
    dkv: Vec<[&'o mut [T]; 2]>,
}

struct Shared<'a, T, A> {
    q: View<'a, T>,
    k: View<'a, T>,
    v: View<'a, T>,
    dout: View<'a, T>,
    scale: A,
    group: usize,
    /// Whether sums are kept, because sequences share keys.
    keep: bool,
}

pub(super) fn run<T: Float, A: Accumulator>(mut a: AttentionBwd<'_, T>) {
    let group = a.q.extent(1) / a.k.extent(1);
    let (scale, keep) = (A::from_f64(a.scale), a.prefix.is_some());
    let shared = Shared { q: a.q, k: a.k, v: a.v, dout: a.dout, scale, group, keep };
    let (kv_heads, kv_rows) = (a.k.extent(1), a.kv_rows());
    let mut tasks = tasks(&a.cu_seqlens, &kv_rows, &a.kv_len, kv_heads);
    let pairs = tasks.iter().fold(0usize, |sum, s| sum.saturating_add(s.queries * s.keys));
    let work = (pairs / tasks.len().max(1)).saturating_mul(group * a.q.extent(2) * 5);
    hand_out(&mut tasks, group, into_rows(&mut a.dq));
    let dkv = into_rows(&mut a.dk).into_iter().zip(into_rows(&mut a.dv));
    let dkv = dkv.map(|(dk, dv)| [dk, dv]);
    if a.prefix.is_none() {
        hand_out_keys(&mut tasks, kv_heads, dkv);
        parallel::for_each(tasks, work, |_, task| drop(propagate(task, &shared)));
        return;
    }
    let terms = Terms::of(&tasks, kv_heads, a.k.extent(0));
    let mut sums: Vec<Sums<A>> = tasks.iter().map(|_| Sums::default()).gathered();
    let items = tasks.into_iter().zip(&mut sums).gathered();
    parallel::for_each(items, work, |_, (task, sums)| *sums = propagate(task, &shared));
    let mut rows = dkv.gathered();
    let work = (kv_heads * a.q.extent(2)).saturating_mul(4);
    parallel::for_each(rows.chunks_mut(kv_heads).gathered(), work, |row, heads| {
        for (head, row_of_head) in heads.iter_mut().enumerate() {
            terms.add_up(&sums, row, head, row_of_head);
        }
    });
}

fn tasks<'o, T>(
    cu_seqlens: &View<'_, i64>,
    kv_rows: &KvRows<'o>,
    kv_len: &View<'_, i64>,
    kv_heads: usize,
) -> Vec<HeadTask<'o, T>> {
    let mut tasks = alloc::room(kv_len.extent(0) * kv_heads);
    for b in 0..kv_len.extent(0) {
        for head in 0..kv_heads {
            let (query, end) = (cu_seqlens.at(b) as usize, cu_seqlens.at(b + 1) as usize);
            tasks.put(HeadTask {
                query,
                queries: end - query,
                rows: KeyRows::of(kv_rows, b),
                keys: kv_len.at(b) as usize,
                head,
                dq: Vec::new(),
                dkv: Vec::new(),
            });
        }
    }
    tasks
}

/// Which sequences a row of keys belongs to, in order, and as which key.
struct Terms {
    kv_heads: usize,
    /// `[S + 1]` offsets of the rows' terms.
    first: Vec<usize>,
    /// (sequence, key).
    terms: Vec<(usize, usize)>,
}

impl Terms {
    fn of<T>(tasks: &[HeadTask<'_, T>], kv_heads: usize, rows: usize) -> Terms {
        let sequences = || {
            let one_head = tasks.iter().step_by(kv_heads).enumerate();
            let asking = one_head.filter(|(_, task)| task.queries > 0);
            asking.flat_map(|(b, task)| (0..task.keys).map(move |j| (b, j, task.rows.row(j))))
        };
        let mut first = alloc::filled(0usize, rows + 1);
        sequences().for_each(|(_, _, row)| first[row + 1] += 1);
        for row in 0..rows {
            first[row + 1] += first[row];
        }
        let mut terms = alloc::filled((0, 0), first[rows]);
        let mut next = alloc::copied(&first);
        for (b, j, row) in sequences() {
            terms[next[row]] = (b, j);
            next[row] += 1;
        }
        Terms { kv_heads, first, terms }
    }

    /// dk and dv of a row and head: 0 where no query sees it.
    fn add_up<T: Float, A: Accumulator>(
        &self,
        sums: &[Sums<A>],
        row: usize,
        head: usize,
        out: &mut [&mut [T]; 2],
    ) {
        let chunks = out[0].len().div_ceil(LANES);
        let mut total = alloc::filled([A::ZERO; LANES], chunks);
        for (which, out) in out.iter_mut().enumerate() {
            let terms = &self.terms[self.first[row]..self.first[row + 1]];
            for (n, &(b, j)) in terms.iter().enumerate() {
                let sum = &sums[b * self.kv_heads + head][which][j * chunks..(j + 1) * chunks];
                match n {
                    0 => total.copy_from_slice(sum),
                    _ => add(&mut total, sum),
                }
            }
            store(&total, 1.0, out);
            total.fill([A::ZERO; LANES]);
        }
    }
}

fn add<A: Accumulator>(total: &mut [[A; LANES]], sum: &[[A; LANES]]) {
    for (total, sum) in total.iter_mut().zip(sum) {
        for l in 0..LANES {
            total[l] = total[l].add(sum[l]);
        }
    }
}

/// Gives each task its rows of dq; rows come in the order (query, head), tasks in the order
/// (sequence, head).
fn hand_out<'o, T>(tasks: &mut [HeadTask<'o, T>], group: usize, rows: Vec<&'o mut [T]>) {
    let mut rows = rows.into_iter();
    for sequence in tasks.chunk_by_mut(|a, b| a.head < b.head) {
        for _ in 0..sequence[0].queries {
            for task in sequence.iter_mut() {
                task.dq.put_all(rows.by_ref().take(group));
            }
        }
    }
}

/// Gives each task its rows of dk and dv and clears the rows of no sequence.
fn hand_out_keys<'o, T: Float>(
    tasks: &mut [HeadTask<'o, T>],
    kv_heads: usize,
    mut rows: impl Iterator<Item = [&'o mut [T]; 2]>,
) {
    let clear = |rows: &mut dyn Iterator<Item = [&'o mut [T]; 2]>| {
        rows.flatten().for_each(|row| row.fill(T::from_f32(0.0)));
    };
    let mut order: Vec<usize> = (0..tasks.len()).step_by(kv_heads).gathered();
    order.retain(|&s| tasks[s].keys > 0);
    order.sort_unstable_by_key(|&s| tasks[s].rows.row(0));
    let mut next = 0;
    for s in order {
        let sequence = &mut tasks[s..s + kv_heads];
        let start = sequence[0].rows.row(0);
        let gap = (start - next) * kv_heads;
        clear(&mut rows.by_ref().take(gap));
        for _ in 0..sequence[0].keys {
            sequence.iter_mut().for_each(|task| task.dkv.put_all(rows.next()));
        }
        next = start + sequence[0].keys;
    }
    clear(&mut rows);
}

/// Rows of scores of one tile of queries, `[TILE, stride]`, and the lanes of one query.
struct Tile<A> {
    /// Keys, rounded up to whole lanes.
    stride: usize,
    p: Vec<A>,
    ds: Vec<A>,
    q: Vec<[A; LANES]>,
    dout: Vec<[A; LANES]>,
    dq: Vec<[A; LANES]>,
}

impl<A: Accumulator> Tile<A> {
    fn new(rows: usize, keys: usize, chunks: usize) -> Tile<A> {
        let stride = keys.next_multiple_of(LANES);
        let scores = || alloc::filled(A::ZERO, rows * stride);
        let row = || alloc::filled([A::ZERO; LANES], chunks);
        Tile { stride, p: scores(), ds: scores(), q: row(), dout: row(), dq: row() }
    }

    /// Row `r`: p and ds over the `seen` keys of a query, and its dq.
    #[inline(always)]
    fn fill<T: Float>(
        &mut self,
        r: usize,
        [q, dout]: [&[T]; 2],
        [k, v]: [Rows<'_, T>; 2],
        seen: usize,
        scale: A,
    ) {
        let range = r * self.stride..(r + 1) * self.stride;
        let (p, ds) = (&mut self.p[range.clone()], &mut self.ds[range]);
        load(q, &mut self.q);
        load(dout, &mut self.dout);
        dots(&self.q, k, 0, seen, p);
        dots(&self.dout, v, 0, seen, ds);
        let (_, sum) = softmax(p, seen, scale);
        softmax_bwd(p, ds, seen, 1.0 / sum, scale);
        self.dq.fill([A::ZERO; LANES]);
        combine(ds, 1, k, 0, seen, &mut self.dq);
    }
}

dispatch_simd! {
    fn propagate<T: Float, A: Accumulator>(task: HeadTask<'_, T>, shared: &Shared<'_, T, A>) -> Sums<A> = propagate_body
}

#[inline(always)]
fn propagate_body<T: Float, A: Accumulator>(
    mut task: HeadTask<'_, T>,
    shared: &Shared<'_, T, A>,
) -> Sums<A> {
    if task.queries == 0 {
        task.dkv.iter_mut().flatten().for_each(|row| row.fill(T::from_f32(0.0)));
        return Sums::default();
    }
    let HeadTask { query, queries, rows, keys, head, .. } = task;
    let (group, chunks) = (shared.group, shared.q.extent(2).div_ceil(LANES));
    let mut dk = alloc::filled([A::ZERO; LANES], keys * chunks);
    let mut dv = alloc::copied(&dk);
    let [mut pad_k, mut pad_v, mut pad_q, mut pad_dout]: [Vec<T>; 4] = Default::default();
    let k = Rows::new(shared.k, head, rows, 0..keys, &mut pad_k);
    let v = Rows::new(shared.v, head, rows, 0..keys, &mut pad_v);
    let mut tile = Tile::new(TILE.min(queries), keys, chunks);
    for (g, first) in (0..group).flat_map(|g| (0..queries).step_by(TILE).map(move |i| (g, i))) {
        let (h, count) = (head * group + g, TILE.min(queries - first));
        // Keys that the first query of the tile sees.
        let seen = keys - queries + first + 1;
        for r in 0..count {
            let at = query + first + r;
            let x = [shared.q.row2(at, h), shared.dout.row2(at, h)];
            tile.fill(r, x, [k, v], seen + r, shared.scale);
            store(&tile.dq, 1.0, task.dq[(first + r) * group + g]);
        }
        let rows = KeyRows::From(query + first);
        let q = Rows::new(shared.q, h, rows, 0..count, &mut pad_q);
        let dout = Rows::new(shared.dout, h, rows, 0..count, &mut pad_dout);
        for j in 0..seen + count - 1 {
            // The first query of the tile that sees key j.
            let r = (j + 1).saturating_sub(seen);
            let (at, lanes) = (r * tile.stride + j, j * chunks..(j + 1) * chunks);
            combine(&tile.ds[at..], tile.stride, q, r, count - r, &mut dk[lanes.clone()]);
            combine(&tile.p[at..], tile.stride, dout, r, count - r, &mut dv[lanes]);
        }
    }
    if shared.keep {
        return [dk, dv];
    }
    let totals = dk.chunks(chunks).zip(dv.chunks(chunks));
    for ([dk_row, dv_row], (dk, dv)) in task.dkv.iter_mut().zip(totals) {
        store(dk, 1.0, dk_row);
        store(dv, 1.0, dv_row);
    }
    Sums::default()
}
