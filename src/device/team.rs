//! Another's threads for the parallel loops: those of a program that has a pool of its own, as torch has,
//! whose threads would else compete with ours for the cores.

use std::any::Any;
use std::ffi::{c_uint, c_void};
use std::mem::needs_drop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::alloc::{filled, room};

/// Calls `body(data)` on every thread of a team, the caller's among them, and returns when all have
/// returned; on fewer threads, or on none, if it has no more. `threads` is 0, the team's own number, and
/// `flags` 0. This is the type of `GOMP_parallel` of the OpenMP runtimes of GNU and LLVM.
pub type Team = unsafe extern "C" fn(
    body: Option<unsafe extern "C" fn(*mut c_void)>,
    data: *mut c_void,
    threads: c_uint,
    flags: c_uint,
);

/// The team's address, NULL for rayon's pool.
static TEAM: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Takes the threads of `team` for the loops of the CPU device in the whole process, from the next loop
/// on; `None` takes rayon's again. Results do not depend on it, nor on how many threads there are.
///
/// # Safety
/// `team` does what [`Team`] says and stays callable until another one is set and the loops that began
/// under it are done.
pub unsafe fn set_team(team: Option<Team>) {
    let address = team.map_or(std::ptr::null_mut(), |team| team as *mut c_void);
    TEAM.store(address, Ordering::Release);
}

/// The team that loops run on, if one is set.
pub(crate) fn team() -> Option<Team> {
    let address = TEAM.load(Ordering::Acquire);
    // SAFETY: what `set_team` stored was a `Team`.
    (!address.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Team>(address) })
}

/// A number that no other living thread has. `std::thread::current` is not there in a thread's last destructors, and
/// takes memory in its first call.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here) as usize)
}

/// A loop that the threads of a team share: the caller takes pieces from the front and the others from the
/// back, until they meet. So one thread meets in the next loop what it left in its cache in this one.
struct Loop<'a> {
    caller: usize,
    /// Pieces taken from the front in the lower half, from the back in the upper one.
    taken: AtomicU64,
    count: usize,
    grain: usize,
    body: &'a (dyn Fn(usize) + Sync),
    /// What a body panicked with: no unwinding passes through the team.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Loop<'_> {
    /// A piece that nobody took.
    fn take(&self, front: bool) -> Option<usize> {
        let pieces = self.count.div_ceil(self.grain) as u64;
        let halves = |taken: u64| (taken & u64::from(u32::MAX), taken >> 32);
        let one = if front { 1 } else { 1 << 32 };
        let left = |taken| {
            let (low, high) = halves(taken);
            (low + high < pieces).then(|| taken + one)
        };
        let before = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).ok()?;
        let (low, high) = halves(before);
        Some(if front { low } else { pieces - 1 - high } as usize)
    }

    fn work(&self) {
        let front = this_thread() == self.caller;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            while let Some(piece) = self.take(front) {
                let first = piece * self.grain;
                (first..self.count.min(first + self.grain)).for_each(self.body);
            }
        }));
        if let Err(payload) = outcome {
            while self.take(true).is_some() {}
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }
}

unsafe extern "C" fn enter(data: *mut c_void) {
    // SAFETY: `run` passes a loop that lives until the team has returned.
    unsafe { &*data.cast::<Loop<'_>>() }.work();
}

/// `body(i)` once for each `i` in `0..count`, `grain` of them at a time.
pub(crate) fn run(team: Team, count: usize, grain: usize, body: &(dyn Fn(usize) + Sync)) {
    // Both halves of `taken` hold as many pieces as there are.
    let grain = grain.max(1).max(count.div_ceil(u32::MAX as usize));
    let (caller, taken) = (this_thread(), AtomicU64::new(0));
    let shared = Loop { caller, taken, count, grain, body, panic: Mutex::default() };
    // SAFETY: `shared` outlives the call, at whose end no thread is in `enter` any more.
    unsafe { team(Some(enter), (&raw const shared).cast_mut().cast(), 0, 0) };
    // What a team without threads left undone.
    shared.work();
    if let Some(payload) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(payload);
    }
}

/// Items of a vector, each of which one thread takes or puts into its place.
pub(crate) struct Items<T> {
    /// Owns the memory; its length is 0.
    memory: Vec<T>,
    first: *mut T,
    /// Which items are there, for those that have to be dropped if a loop panics; of others nothing is kept.
    is_there: Vec<bool>,
    flags: *mut bool,
}

// SAFETY: no two threads are at one place: the callers of `take` and `put` promise it.
unsafe impl<T: Send> Sync for Items<T> {}

impl<T> Items<T> {
    fn new(mut memory: Vec<T>, n: usize, is_there: bool) -> Items<T> {
        let mut is_there = if needs_drop::<T>() { filled(is_there, n) } else { Vec::new() };
        // SAFETY: no longer than it was.
        unsafe { memory.set_len(0) };
        Items { first: memory.as_mut_ptr(), memory, flags: is_there.as_mut_ptr(), is_there }
    }

    /// All are there.
    pub fn full(items: Vec<T>) -> Items<T> {
        let n = items.len();
        Items::new(items, n, true)
    }

    /// Places for `n`.
    pub fn empty(n: usize) -> Items<T> {
        Items::new(room(n), n, false)
    }

    /// # Safety
    /// The item `i` is there, and no other call is for it.
    pub unsafe fn take(&self, i: usize) -> T {
        // SAFETY: the caller's promise.
        unsafe {
            self.mark(i, false);
            self.first.add(i).read()
        }
    }

    /// # Safety
    /// There is a place `i`, and no other call is for it.
    pub unsafe fn put(&self, i: usize, item: T) {
        // SAFETY: the caller's promise.
        unsafe {
            self.first.add(i).write(item);
            self.mark(i, true);
        }
    }

    unsafe fn mark(&self, i: usize, is_there: bool) {
        if needs_drop::<T>() {
            // SAFETY: as many flags as items; no other call is for this one.
            unsafe { self.flags.add(i).write(is_there) };
        }
    }

    /// # Safety
    /// `n` items are there, and none behind them.
    pub unsafe fn into_vec(mut self, n: usize) -> Vec<T> {
        self.is_there.clear();
        // SAFETY: the caller's promise.
        unsafe { self.memory.set_len(n) };
        std::mem::take(&mut self.memory)
    }
}

impl<T> Drop for Items<T> {
    fn drop(&mut self) {
        for i in (0..self.is_there.len()).filter(|&i| self.is_there[i]) {
            // SAFETY: it is there, and nobody else is here.
            unsafe { self.first.add(i).drop_in_place() };
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Four threads, as OpenMP would have them.
    pub(crate) unsafe extern "C" fn four(
        body: Option<unsafe extern "C" fn(*mut c_void)>,
        data: *mut c_void,
        _: c_uint,
        _: c_uint,
    ) {
        let (address, body) = (data as usize, body.unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                // SAFETY: as `run` asks: the data outlives the scope.
                scope.spawn(move || unsafe { body(address as *mut c_void) });
            }
        });
    }

    unsafe extern "C" fn absent(
        _: Option<unsafe extern "C" fn(*mut c_void)>,
        _: *mut c_void,
        _: c_uint,
        _: c_uint,
    ) {
    }

    #[test]
    fn every_index_is_visited_once() {
        for team in [four as Team, absent] {
            for (count, grain) in [(0, 1), (1, 1), (7, 3), (1000, 16), (5, 100)] {
                let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                run(team, count, grain, &|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{count} {grain}");
            }
        }
    }

    #[test]
    fn a_panic_of_a_body_reaches_the_caller_and_not_the_team() {
        let caught = catch_unwind(|| run(four, 100, 1, &|i| assert!(i != 37, "index {i}")));
        let payload = caught.unwrap_err();
        assert_eq!(payload.downcast_ref::<String>().unwrap(), "index 37");
        run(four, 100, 1, &|_| {});
    }

    #[test]
    fn what_a_loop_leaves_is_dropped_once() {
        use std::rc::Rc;
        let one = Rc::new(());
        let items = Items::full(vec![one.clone(), one.clone(), one.clone()]);
        // SAFETY: the item is there.
        drop(unsafe { items.take(1) });
        assert_eq!(Rc::strong_count(&one), 3);
        drop(items);
        assert_eq!(Rc::strong_count(&one), 1);
        let places = Items::empty(3);
        // SAFETY: there is a place.
        unsafe { places.put(2, one.clone()) };
        drop(places);
        assert_eq!(Rc::strong_count(&one), 1);
        let places = Items::empty(2);
        // SAFETY: two places, both filled.
        let all = unsafe {
            places.put(1, one.clone());
            places.put(0, one.clone());
            places.into_vec(2)
        };
        assert_eq!((all.len(), Rc::strong_count(&one)), (2, 3));
    }
}
