//! Parallel loops whose results cannot depend on the number of threads: every item is computed
//! whole by one thread, and reductions go over fixed chunks in index order. The threads are rayon's, or
//! those of the [`team`] that the program set.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use crate::alloc;
use crate::device::team;
use crate::device::team::{Items, Team};
use crate::error::{Error, Result};

/// Work (in rough scalar operations) below which a loop stays on the calling thread; a rayon
/// hand-over costs a few microseconds.
const SERIAL_WORK: usize = 1 << 16;

/// Work below which a loop stays on the calling thread where there is a [`Team`]. Its threads are awake, but what a short loop works on lies in the caller's cache, and
/// moving it to another core takes longer than the loop: a product of 272 x 1536 x 16 took 0.22 ms on one
/// thread and 0.39 ms on two.
const TEAM_WORK: usize = 1 << 20;

/// Whether `count` items of `work` operations each stay on the calling thread.
fn is_small(count: usize, work: usize, team: Option<Team>) -> bool {
    let limit = if team.is_some() { TEAM_WORK } else { SERIAL_WORK };
    count < 2 || count.saturating_mul(work) < limit
}

/// The pool of [`start`].
static POOL: OnceLock<ThreadPool> = OnceLock::new();

/// Starts threads for parallel loops, for callers to whom a thread that cannot be had must be an error:
/// rayon's own pool starts with the first loop, panics there, and never starts again.
pub(crate) fn start() -> Result<()> {
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if POOL.get().is_some() {
        return Ok(());
    }
    // What rayon keeps for each thread is one piece of memory that it does not ask for fallibly.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    alloc::or_out_of_memory("the thread pool", || alloc::room::<[u64; 64]>(threads))?;
    let pool = ThreadPoolBuilder::new().spawn_handler(spawn).build().map_err(|error| {
        Error::OutOfMemory {
            what: format!("the thread pool ({error})"),
            bytes: (threads as u64) << 21,
        }
    })?;
    // A worker's first theft registers a destructor with the C library, which ends the process if it has no memory
    // for that. Each has one behind it before a call can come that is to survive without memory.
    pool.broadcast(|_| ());
    let _ = POOL.set(pool);
    Ok(())
}

/// Starts one worker. Not by `std::thread`, which ends the process where it has no memory for its own part.
#[cfg(unix)]
fn spawn(worker: ThreadBuilder) -> io::Result<()> {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        // `pthread_t` is a number or a pointer.
        fn pthread_create(
            thread: *mut usize,
            attributes: *const c_void,
            start: extern "C" fn(*mut c_void) -> *mut c_void,
            argument: *mut c_void,
        ) -> c_int;
        fn pthread_detach(thread: usize) -> c_int;
    }
    extern "C" fn start(worker: *mut c_void) -> *mut c_void {
        // SAFETY: the box that `spawn` gave away, once.
        unsafe { Box::from_raw(worker.cast::<ThreadBuilder>()) }.run();
        std::ptr::null_mut()
    }
    let (mut thread, worker) = (0, Box::into_raw(Box::new(worker)));
    // SAFETY: a place for the thread, default attributes, and a box that the thread takes over.
    match unsafe { pthread_create(&mut thread, std::ptr::null(), start, worker.cast()) } {
        0 => {
            // SAFETY: just created, and nobody waits for it.
            unsafe { pthread_detach(thread) };
            Ok(())
        }
        error => {
            // SAFETY: no thread was created, so the box is still here.
            drop(unsafe { Box::from_raw(worker) });
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

#[cfg(not(unix))]
fn spawn(worker: ThreadBuilder) -> io::Result<()> {
    std::thread::Builder::new().spawn(|| worker.run()).map(drop)
}

/// `body(i)` once for each `i` in `0..count`, each of `work` operations: on the calling thread, or on the threads of
/// the team or of rayon. Not generic, so that what it takes to share a loop is compiled once and not for every loop.
fn run(count: usize, work: usize, body: &(dyn Fn(usize) + Sync)) {
    let team = team::team();
    if is_small(count, work, team) {
        return (0..count).for_each(body);
    }
    let grain = (SERIAL_WORK / work.max(1)).clamp(1, count);
    if let Some(team) = team {
        return team::run(team, count, grain, body);
    }
    let share = || (0..count).into_par_iter().with_min_len(grain).for_each(body);
    match POOL.get() {
        // The pool of [`start`], unless the caller is in one.
        Some(pool) if rayon::current_thread_index().is_none() => pool.install(share),
        _ => share(),
    }
}

/// Runs `body(i, item)` for each item; `work` is the rough number of scalar operations per item.
pub(crate) fn for_each<T: Send>(items: Vec<T>, work: usize, body: impl Fn(usize, T) + Sync + Send) {
    let (count, items) = (items.len(), Items::full(items));
    // SAFETY: `run` has each index once.
    run(count, work, &|i| body(i, unsafe { items.take(i) }));
}

/// `body(i)` for `i` in `0..n`, results in index order.
pub(crate) fn map<R: Send>(
    n: usize,
    work: usize,
    body: impl Fn(usize) -> R + Sync + Send,
) -> Vec<R> {
    let results = Items::empty(n);
    // SAFETY: `run` has each index once.
    run(n, work, &|i| unsafe { results.put(i, body(i)) });
    // SAFETY: each index has its result.
    unsafe { results.into_vec(n) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::team::set_team;
    use crate::device::team::tests::four;

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
