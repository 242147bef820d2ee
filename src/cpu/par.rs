//! Parallel loops whose results cannot depend on the number of threads: every item is computed
//! whole by one thread, and reductions go over fixed chunks in index order. The threads are rayon's, or
//! those of the [`team`] that the program set.

use rayon::prelude::*;

use crate::cpu::team::{self, Items, Team};

/// Work (in rough scalar operations) below which a loop stays on the calling thread; a rayon
/// hand-over costs a few microseconds.
const SERIAL_WORK: usize = 1 << 16;

/// The same for a team. Its threads are awake, but what a short loop works on lies in the caller's cache, and
/// moving it to another core takes longer than the loop: a product of 272 x 1536 x 16 took 0.22 ms on one
/// thread and 0.39 ms on two.
const TEAM_WORK: usize = 1 << 20;

/// Whether `count` items of `work` operations each stay on the calling thread.
fn is_small(count: usize, work: usize, team: Option<Team>) -> bool {
    let limit = if team.is_some() { TEAM_WORK } else { SERIAL_WORK };
    count < 2 || count.saturating_mul(work) < limit
}

/// Runs `body(i, item)` for each item; `work` is the rough number of scalar operations per item.
pub(crate) fn for_each<T: Send>(items: Vec<T>, work: usize, body: impl Fn(usize, T) + Sync + Send) {
    let team = team::team();
    if is_small(items.len(), work, team) {
        items.into_iter().enumerate().for_each(|(i, item)| body(i, item));
        return;
    }
    let grain = (SERIAL_WORK / work.max(1)).clamp(1, items.len());
    if let Some(team) = team {
        let (count, items) = (items.len(), Items::new(items.into_iter().map(Some)));
        team::run(team, count, grain, &|i| {
            if let Some(item) = items.take(i) {
                body(i, item);
            }
        });
    } else {
        items.into_par_iter().enumerate().with_min_len(grain).for_each(|(i, item)| body(i, item));
    }
}

/// `body(i)` for `i` in `0..n`, results in index order.
pub(crate) fn map<R: Send>(
    n: usize,
    work: usize,
    body: impl Fn(usize) -> R + Sync + Send,
) -> Vec<R> {
    let team = team::team();
    if is_small(n, work, team) {
        return (0..n).map(body).collect();
    }
    let grain = (SERIAL_WORK / work.max(1)).clamp(1, n);
    if let Some(team) = team {
        let results = Items::new((0..n).map(|_| None));
        team::run(team, n, grain, &|i| results.put(i, body(i)));
        results.into_vec()
    } else {
        (0..n).into_par_iter().with_min_len(grain).map(body).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::team::{set_team, tests::four};

    #[test]
    fn loops_have_the_same_results_on_the_threads_of_a_team() {
        let run = || {
            let mut rows = vec![0u64; 5000];
            for_each(rows.iter_mut().collect(), 1 << 10, |i, row| *row = (i * i) as u64);
            (rows, map(5000, 1 << 10, |i| (i as f64).sqrt()))
        };
        let own = run();
        // SAFETY: `four` is a team, and never goes away. Other tests that run meanwhile only get
        // other threads.
        unsafe { set_team(Some(four)) };
        let theirs = run();
        let caught = std::panic::catch_unwind(|| map(5000, 1 << 10, |i| assert!(i < 4000)));
        // SAFETY: none is always sound.
        unsafe { set_team(None) };
        assert_eq!(own, theirs);
        assert!(caught.is_err());
    }
}
