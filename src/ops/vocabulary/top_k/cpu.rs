//! The K likeliest tokens on the CPU: one row per item.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::vocabulary::top_k::TopK;

/// Rough scalar operations per logit.
const WORK: usize = 8;

pub(crate) fn top_k<T: Float>(a: TopK<'_, T>) {
    let (logits, vocab, k) = (a.logits, a.vocab as usize, a.ids.extent(1));
    parallel::for_each(a.ids.into_rows(), vocab * WORK, |t, ids| {
        let row = &logits.row(t)[..vocab];
        let mut order: Vec<i32> = (0..vocab as i32).gathered();
        let z = |id: i32| row[id as usize].to_f64();
        order.select_nth_unstable_by(k - 1, |&a, &b| z(b).total_cmp(&z(a)).then(a.cmp(&b)));
        ids.copy_from_slice(&order[..k]);
        ids.sort_unstable();
    });
}
