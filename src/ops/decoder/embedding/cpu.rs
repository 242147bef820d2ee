//! Embedding on the CPU: rows copied; the gradient sorted by id, then one table row per item.

use crate::alloc::{Gather, Grow};
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::decoder::embedding::{Embedding, EmbeddingBwd};
use crate::view::View;

/// Columns summed at a time.
const LANES: usize = 16;

pub(crate) fn embedding<T: Float>(a: Embedding<'_, T>) {
    let (ids, table) = (a.ids, a.table);
    let d = table.extent(1);
    parallel::for_each(a.y.into_rows(), d, |t, y| y.copy_from_slice(table.row(ids.at(t) as usize)));
}

/// One row of the table's gradient with the tokens that add to it, in ascending order.
struct Target<'o, 't> {
    row: &'o mut [f32],
    tokens: &'t [(i32, usize)],
}

pub(crate) fn embedding_bwd<T: Float>(a: EmbeddingBwd<'_, T>) {
    let (dy, d) = (a.dy, a.dy.extent(1));
    let mut sorted: Vec<(i32, usize)> = (0..a.ids.extent(0)).map(|t| (a.ids.at(t), t)).gathered();
    sorted.sort_unstable();
    let mut groups = sorted.chunk_by(|a, b| a.0 == b.0).peekable();
    let mut targets = Vec::new();
    for (id, row) in a.dtable.into_rows().into_iter().enumerate() {
        if let Some(tokens) = groups.next_if(|group| group[0].0 as usize == id) {
            targets.put(Target { row, tokens });
        }
    }
    let mean = sorted.len() / targets.len().max(1);
    parallel::for_each(targets, d * mean, |_, target| add_rows(target, &dy));
}

fn add_rows<T: Float>(target: Target<'_, '_>, dy: &View<'_, T>) {
    for (block, columns) in target.row.chunks_mut(LANES).enumerate() {
        let mut sum = [0f64; LANES];
        sum.iter_mut().zip(&*columns).for_each(|(s, c)| *s = *c as f64);
        for &(_, t) in target.tokens {
            let dy = &dy.row(t)[block * LANES..][..columns.len()];
            sum.iter_mut().zip(dy).for_each(|(s, g)| *s += g.to_f64());
        }
        columns.iter_mut().zip(sum).for_each(|(c, s)| *c = s as f32);
    }
}
