//! The forward pass: pieces of at most a few queries, batched so that threads get enough work.

use std::ops::Range;

use super::cpu::{KeyRows, Rows, into_rows, probe};
use super::cpu_lanes::{Accumulator, BLOCK, LANES, combine, dots, load, softmax, store};
use crate::alloc::{self, Gather, Grow};
use crate::device::parallel;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::decoder::attention::{Attention, KvRows};
use crate::ops::support::math::dispatch_simd;
use crate::view::View;

/// Rows of scores a piece holds, if one query has no more heads than that.
const TILE: usize = 32;
/// Rough scalar operations of a batch of pieces.
const BATCH: usize = 1 << 16;

/// Consecutive queries of one sequence, for some of the key/value heads.
struct Piece<'p, 'o, 'a, T> {
    /// Output rows, `[queries, heads of the piece]`.
    o: &'p mut [&'o mut [T]],
    /// logsumexp in the same order, or empty.
    lse: &'p mut [f32],
    /// First query as a row of `q`.
    query: usize,
    /// Key/value heads.
    heads: Range<usize>,
    /// Rows of the keys.
    keys: KeyRows<'a>,
    /// Keys that the first query sees; each further query sees one more.
    visible: usize,
}

/// The inputs all pieces share.
struct Shared<'a, T, A> {
    q: View<'a, T>,
    k: View<'a, T>,
    v: View<'a, T>,
    scale: A,
    /// Query heads of a key/value head.
    group: usize,
}

/// Memory of one batch.
struct Scratch<T, A> {
    q: Vec<[A; LANES]>,
    scores: Vec<A>,
    /// Largest score and sum of each row.
    sums: Vec<(A, f64)>,
    total: Vec<[A; LANES]>,
    /// Keys or values of a block.
    rows: Vec<T>,
}

pub(super) fn run<T: Float, A: Accumulator>(mut a: Attention<'_, T>) -> Result<()> {
    let (heads, d) = (a.q.extent(1), a.q.extent(2));
    let group = heads / a.k.extent(1);
    let keys = (0..a.kv_len.extent(0)).map(|b| a.kv_len.at(b) as usize).max().unwrap_or(0);
    probe::<A>(group.max(TILE).max(d.next_multiple_of(LANES)), keys)?;
    let shared = Shared { q: a.q, k: a.k, v: a.v, scale: A::from_f64(a.scale), group };
    let mut lse = alloc::filled(0f32, if a.lse.is_some() { a.q.extent(0) * heads } else { 0 });
    let mut o = into_rows(&mut a.o);
    let (mut pieces, work) = cut(&mut o, &mut lse, &shared, [a.cu_seqlens, a.kv_len], &a.kv_rows);
    let mean = work.saturating_mul(d * 2) / pieces.len().max(1);
    let batch = (BATCH / mean.max(1)).max(1);
    let batches: Vec<_> = pieces.chunks_mut(batch).gathered();
    parallel::for_each(batches, mean.saturating_mul(batch), |_, batch| {
        attend_all(batch, &shared);
    });
    if let Some(out) = a.lse {
        let rows = out.into_rows().into_iter().zip(lse.chunks(heads));
        rows.for_each(|(out, lse)| out.copy_from_slice(lse));
    }
    Ok(())
}

/// Cuts all sequences into pieces; returns them and the number of (row, key) pairs.
fn cut<'p, 'o, 'a, T: Float, A>(
    mut o: &'p mut [&'o mut [T]],
    mut lse: &'p mut [f32],
    shared: &Shared<'_, T, A>,
    [cu_seqlens, kv_len]: [View<'_, i64>; 2],
    kv_rows: &KvRows<'a>,
) -> (Vec<Piece<'p, 'o, 'a, T>>, usize) {
    let (heads, kv_heads) = (shared.q.extent(1), shared.k.extent(1));
    let tile = (TILE / shared.group).max(1);
    let (mut pieces, mut work) = (Vec::new(), 0usize);
    let sequences = kv_len.extent(0);
    for b in 0..sequences {
        let (first, end) = (cu_seqlens.at(b) as usize, cu_seqlens.at(b + 1) as usize);
        let hidden = kv_len.at(b) as usize - (end - first);
        for query in (first..end).step_by(tile) {
            let queries = tile.min(end - query);
            let visible = hidden + query - first + 1;
            work = work.saturating_add((queries * heads).saturating_mul(visible));
            // The heads of a single query are rows one after another and can go apart; that
            // pays where there are too few sequences to keep all threads busy.
            let split = if queries == 1 && sequences < 64 { 1 } else { kv_heads };
            for h in (0..kv_heads).step_by(split) {
                let rows = queries * split * shared.group;
                pieces.put(Piece {
                    o: o.split_off_mut(..rows).expect("a row for each query and head"),
                    lse: lse.split_off_mut(..rows).unwrap_or_default(),
                    query,
                    heads: h..h + split,
                    keys: KeyRows::of(kv_rows, b),
                    visible,
                });
            }
        }
    }
    (pieces, work)
}

dispatch_simd! {
    fn attend_all<T: Float, A: Accumulator>(pieces: &mut [Piece<'_, '_, '_, T>], shared: &Shared<'_, T, A>) = attend_all_body
}

#[inline(always)]
fn attend_all_body<T: Float, A: Accumulator>(
    pieces: &mut [Piece<'_, '_, '_, T>],
    shared: &Shared<'_, T, A>,
) {
    let mut scratch: Scratch<T, A> = Scratch {
        q: Vec::new(),
        scores: Vec::new(),
        sums: Vec::new(),
        total: Vec::new(),
        rows: Vec::new(),
    };
    // A loop, not a closure: a closure would be compiled without the wide vector units.
    for piece in pieces {
        attend(piece, shared, &mut scratch);
    }
}

#[inline(always)]
fn attend<T: Float, A: Accumulator>(
    piece: &mut Piece<'_, '_, '_, T>,
    shared: &Shared<'_, T, A>,
    scratch: &mut Scratch<T, A>,
) {
    let Shared { group, scale, .. } = *shared;
    let columns = piece.heads.len() * group;
    let queries = piece.o.len() / columns;
    let chunks = shared.q.extent(2).div_ceil(LANES);
    let keys = piece.visible + queries - 1;
    let stride = keys.next_multiple_of(LANES);
    let rows = group * queries;
    for head in piece.heads.clone() {
        scratch.q.grow_to(rows * chunks, [A::ZERO; LANES]);
        scratch.scores.grow_to(rows * stride, A::ZERO);
        scratch.total.clear();
        scratch.total.grow_to(rows * chunks, [A::ZERO; LANES]);
        for (r, q) in scratch.q.chunks_mut(chunks).enumerate() {
            load(shared.q.row2(piece.query + r / group, head * group + r % group), q);
        }
        let visible = |r: usize| piece.visible + r / group;
        // Keys that lie apart are copied, a block at a time.
        for start in (0..keys).step_by(BLOCK) {
            let block = start..keys.min(start + BLOCK);
            let k = Rows::new(shared.k, head, piece.keys, block, &mut scratch.rows);
            for (r, q) in scratch.q.chunks(chunks).enumerate() {
                let end = visible(r).min(start + BLOCK);
                if start < end {
                    let out = &mut scratch.scores[r * stride + start..(r + 1) * stride];
                    dots(q, k, 0, end - start, out);
                }
            }
        }
        scratch.sums.clear();
        for (r, scores) in scratch.scores.chunks_mut(stride).enumerate() {
            scratch.sums.put(softmax(scores, visible(r), scale));
        }
        for start in (0..keys).step_by(BLOCK) {
            let block = start..keys.min(start + BLOCK);
            let v = Rows::new(shared.v, head, piece.keys, block, &mut scratch.rows);
            for (r, total) in scratch.total.chunks_mut(chunks).enumerate() {
                let end = visible(r).min(start + BLOCK);
                if start < end {
                    let weights = &scratch.scores[r * stride + start..];
                    combine(weights, 1, v, 0, end - start, total);
                }
            }
        }
        let totals = scratch.total.chunks(chunks).zip(&scratch.sums);
        for (r, (total, &(largest, sum))) in totals.enumerate() {
            let row = r / group * columns + (head - piece.heads.start) * group + r % group;
            store(total, 1.0 / sum, piece.o[row]);
            if let Some(lse) = piece.lse.get_mut(row) {
                *lse = (largest.to_f64() + sum.ln()) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};

    /// The body compiled for this machine's vector units gives the bits of the portable one.
    #[test]
    fn wide_and_portable_code_agree() {
        let mut rng = Rng::new(2, Purpose::User, [0; 3]);
        for (d, keys) in [(16, 24), (40, 130), (64, 70)] {
            let mut data =
                |rows: usize| -> Vec<f32> { (0..rows * d).map(|_| rng.normal() as f32).collect() };
            let (q, k, v) = (data(6), data(keys), data(keys));
            let shared = Shared {
                q: View::new(&q, &[3, 2, d as i64]).unwrap(),
                k: View::new(&k, &[keys as i64, 1, d as i64]).unwrap(),
                v: View::new(&v, &[keys as i64, 1, d as i64]).unwrap(),
                scale: 0.3f32,
                group: 2,
            };
            let run = |wide: bool| {
                let (mut o, mut lse) = (vec![0f32; 6 * d], [0f32; 6]);
                let mut rows: Vec<_> = o.chunks_mut(d).collect();
                let (heads, visible) = (0..1, keys - 2);
                let (o_rows, lse_rows) = (&mut rows[..], &mut lse[..]);
                let keys = KeyRows::From(0);
                let piece = Piece { o: o_rows, lse: lse_rows, query: 0, heads, keys, visible };
                match wide {
                    true => attend_all(&mut [piece], &shared),
                    false => attend_all_body(&mut [piece], &shared),
                }
                o.extend(lse);
                o.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            };
            assert_eq!(run(true), run(false), "D = {d}");
        }
    }
}
