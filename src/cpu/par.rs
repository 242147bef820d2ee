//! Parallel loops whose results cannot depend on the number of threads: every item is computed
//! whole by one thread, and reductions go over fixed chunks in index order.

use rayon::prelude::*;

/// Work (in rough scalar operations) below which a loop stays on the calling thread; a rayon
/// hand-over costs a few microseconds.
const SERIAL_WORK: usize = 1 << 16;

/// Runs `body(i, item)` for each item; `work` is the rough number of scalar operations per item.
pub(crate) fn for_each<T: Send>(items: Vec<T>, work: usize, body: impl Fn(usize, T) + Sync + Send) {
    if items.len().saturating_mul(work) < SERIAL_WORK || items.len() < 2 {
        items.into_iter().enumerate().for_each(|(i, item)| body(i, item));
    } else {
        let grain = (SERIAL_WORK / work.max(1)).clamp(1, items.len());
        items.into_par_iter().enumerate().with_min_len(grain).for_each(|(i, item)| body(i, item));
    }
}

/// `body(i)` for `i` in `0..n`, results in index order.
pub(crate) fn map<R: Send>(
    n: usize,
    work: usize,
    body: impl Fn(usize) -> R + Sync + Send,
) -> Vec<R> {
    if n.saturating_mul(work) < SERIAL_WORK || n < 2 {
        (0..n).map(body).collect()
    } else {
        let grain = (SERIAL_WORK / work.max(1)).clamp(1, n);
        (0..n).into_par_iter().with_min_len(grain).map(body).collect()
    }
}
