//! Work on all threads whose results are added up in index order.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::Scope;

use gradus::error::{Error, Result};

/// Results that are under way or wait for their turn at most, with `threads` threads: one of them may
/// be done early without its thread having to wait.
pub(crate) fn window(threads: usize) -> usize {
    threads + 1
}

/// Does pieces `0..count` of `work` and hands the results to `add` in index order. Not more than
/// [`window`] of them exist at a time, so memory does not grow with `count`; the order of `add`, and
/// with it every bit of a sum, does not depend on the threads.
///
/// # Errors
/// The error of the first piece, in index order, that failed; later ones are not begun, or not added.
pub(crate) fn in_order<R: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<R> + Sync,
    add: impl FnMut(R) -> Result<()> + Send,
) -> Result<()> {
    let line = Line { waiting: BTreeMap::new(), begun: 0, added: 0, failed: None, add };
    let line = Mutex::new(line);
    rayon::scope(|scope| {
        let first = count.min(window(rayon::current_num_threads()));
        line.lock().unwrap_or_else(PoisonError::into_inner).begun = first;
        for i in 0..first {
            begin(scope, &line, &work, i, count);
        }
    });
    let failed = line.into_inner().unwrap_or_else(PoisonError::into_inner).failed;
    failed.map_or(Ok(()), Err)
}

/// Who waits for whom.
struct Line<R, A> {
    waiting: BTreeMap<usize, Result<R>>,
    begun: usize,
    added: usize,
    failed: Option<Error>,
    add: A,
}

fn begin<'s, R, W, A>(
    scope: &Scope<'s>,
    line: &'s Mutex<Line<R, A>>,
    work: &'s W,
    index: usize,
    count: usize,
) where
    R: Send,
    W: Fn(usize) -> Result<R> + Sync,
    A: FnMut(R) -> Result<()> + Send,
{
    scope.spawn(move |scope| {
        let result = work(index);
        // Nothing under the lock goes to other threads: who waits for it cannot be needed by it.
        let mut held = line.lock().unwrap_or_else(PoisonError::into_inner);
        held.waiting.insert(index, result);
        while held.failed.is_none() {
            let turn = held.added;
            let Some(result) = held.waiting.remove(&turn) else { break };
            held.added += 1;
            if let Err(error) = result.and_then(|result| (held.add)(result)) {
                held.failed = Some(error);
            } else if held.begun < count {
                held.begun += 1;
                begin(scope, line, work, held.begun - 1, count);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// A result that counts how many of its kind there are.
    struct Counted<'a>(usize, &'a AtomicUsize);

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.1.fetch_sub(1, SeqCst);
        }
    }

    #[test]
    fn results_come_in_order_and_few_at_a_time() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (alive, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let mut seen = Vec::new();
            let work = |i: usize| {
                most.fetch_max(alive.fetch_add(1, SeqCst) + 1, SeqCst);
                // Pieces of unequal length, with work of their own for other threads.
                let (a, b) = rayon::join(|| spin(i * 7919 % 13), || spin(i % 3));
                assert_eq!(a + b, i * 7919 % 13 + i % 3);
                Ok(Counted(i, &alive))
            };
            let done = pool.install(|| {
                in_order(200, work, |piece| {
                    seen.push(piece.0);
                    Ok(())
                })
            });
            done.unwrap();
            assert_eq!(seen, (0..200).collect::<Vec<_>>());
            assert!(most.load(SeqCst) <= window(threads), "{most:?} with {threads} threads");
            assert_eq!(alive.load(SeqCst), 0);
        }
    }

    fn spin(n: usize) -> usize {
        std::thread::sleep(std::time::Duration::from_micros(20 * n as u64));
        n
    }

    #[test]
    fn the_first_failure_in_index_order_is_told() {
        let failure = |i: usize| Err(Error::config("piece", i.to_string()));
        for _ in 0..20 {
            let mut added = 0;
            let work = |i| if i == 9 || i == 10 { failure(i) } else { Ok(spin(i % 4)) };
            let error = in_order(30, work, |_| {
                added += 1;
                Ok(())
            });
            assert!(error.unwrap_err().to_string().ends_with(": 9"));
            assert_eq!(added, 9);
        }
        let error = in_order(5, Ok, |i| if i == 3 { failure(i).map(drop) } else { Ok(()) });
        assert!(error.unwrap_err().to_string().ends_with(": 3"));
        in_order(0, failure, |_| Ok(())).unwrap();
    }
}
