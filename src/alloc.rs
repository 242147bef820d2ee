//! Memory whose size comes from a caller. The standard library ends the process where it cannot have it;
//! here the computation unwinds to the op's boundary, [`or_out_of_memory`], which turns that into
//! [`Error::OutOfMemory`]. Unwinding, because such memory is taken deep inside loops over rows, and a
//! `Result` there would be in every signature for an event that ends the op anyway.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

thread_local!(static ASKING: Cell<bool> = const { Cell::new(false) });

/// Runs `ask`, which takes a refusal of memory as an answer. For programs with an allocator that keeps a reserve, as
/// the C library has: while [`is_asking`] is true it need not touch the reserve, because the caller can do without.
///
/// # Example
/// ```
/// let mut values: Vec<u8> = Vec::new();
/// let refused = gradus::asking(|| values.try_reserve_exact(isize::MAX as usize)).is_err();
/// assert!(refused && !gradus::is_asking());
/// ```
pub fn asking<R>(ask: impl FnOnce() -> R) -> R {
    ASKING.set(true);
    let answer = ask();
    ASKING.set(false);
    answer
}

/// Whether this thread is within [`asking`]: an allocator that is asked for memory meanwhile may refuse, and nothing
/// ends.
pub fn is_asking() -> bool {
    ASKING.get()
}

/// Memory could not be had: the payload of an unwinding.
struct Refused {
    bytes: u64,
}

/// Boundaries that are open in the process, whatever the thread: rayon's workers have their caller's.
static BOUNDARIES: AtomicUsize = AtomicUsize::new(0);

fn refuse(elements: usize, size: usize) -> ! {
    let bytes = (elements as u64).saturating_mul(size as u64);
    if BOUNDARIES.load(Ordering::Relaxed) == 0 {
        panic_any(format!("out of memory: {bytes} bytes"));
    }
    // Without the panic hook: this is a status, no panic.
    resume_unwind(Box::new(Refused { bytes }))
}

/// What `body` gives, or `OutOfMemory` for `op`.
pub(crate) fn or_out_of_memory<R>(op: &'static str, body: impl FnOnce() -> R) -> Result<R> {
    BOUNDARIES.fetch_add(1, Ordering::Relaxed);
    // What an unwound body leaves behind are its own buffers, and outputs that are unspecified.
    let outcome = catch_unwind(AssertUnwindSafe(body));
    BOUNDARIES.fetch_sub(1, Ordering::Relaxed);
    outcome.map_err(|payload| refusal(op, payload))
}

/// What an unwinding ended with: the error of `op`, or a bug, which goes on. Compiled once, not for every body.
fn refusal(op: &'static str, payload: Box<dyn Any + Send>) -> Error {
    match payload.downcast::<Refused>() {
        Ok(refused) => Error::OutOfMemory { what: op.to_string(), bytes: refused.bytes },
        Err(bug) => resume_unwind(bug),
    }
}

fn reserve<T>(values: &mut Vec<T>, more: usize, exact: bool) {
    let had = asking(|| match exact {
        true => values.try_reserve_exact(more),
        false => values.try_reserve(more),
    });
    if had.is_err() {
        refuse(values.len().saturating_add(more), size_of::<T>());
    }
}

/// An empty vector with room for `n` values.
pub(crate) fn room<T>(n: usize) -> Vec<T> {
    let mut values = Vec::new();
    reserve(&mut values, n, true);
    values
}

/// `n` times `value`.
pub(crate) fn filled<T: Clone>(value: T, n: usize) -> Vec<T> {
    let mut values = room(n);
    values.resize(n, value);
    values
}

/// A copy.
pub(crate) fn copied<T: Copy>(from: &[T]) -> Vec<T> {
    let mut values = room(from.len());
    values.extend_from_slice(from);
    values
}

/// `collect` into a vector. What knows its length and what does not are two functions, so that each loop is compiled
/// once.
pub(crate) trait Gather: Iterator + Sized {
    /// Of an iterator that knows how many there are.
    fn gathered(self) -> Vec<Self::Item>
    where
        Self: ExactSizeIterator,
    {
        let mut values = Vec::new();
        values.put_all(self);
        values
    }

    /// Of one that finds out.
    fn sifted(self) -> Vec<Self::Item> {
        let mut values = Vec::new();
        self.for_each(|value| values.put(value));
        values
    }
}

impl<I: Iterator> Gather for I {}

/// What makes a vector longer.
pub(crate) trait Grow<T> {
    /// `push`.
    fn put(&mut self, value: T);
    /// `extend`.
    fn put_all(&mut self, values: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>);
    /// `resize`.
    fn grow_to(&mut self, n: usize, value: T)
    where
        T: Clone;
}

impl<T> Grow<T> for Vec<T> {
    fn put(&mut self, value: T) {
        if self.len() == self.capacity() {
            reserve(self, 1, false);
        }
        self.push(value);
    }

    fn put_all(&mut self, values: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>) {
        let values = values.into_iter();
        reserve(self, values.len(), self.is_empty());
        // The room is there.
        self.extend(values);
    }

    fn grow_to(&mut self, n: usize, value: T)
    where
        T: Clone,
    {
        reserve(self, n.saturating_sub(self.len()), false);
        self.resize(n, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOO_MANY: usize = isize::MAX as usize / 16;

    #[test]
    fn what_cannot_be_had_is_an_error() {
        let error = or_out_of_memory("op", || filled(0u64, TOO_MANY)).unwrap_err();
        assert_eq!(error.code(), 3);
        assert_eq!(error.to_string(), format!("out of memory: op needs {} bytes", TOO_MANY * 8));
        let rows = || (0..TOO_MANY).map(|i| i as u64).gathered();
        assert_eq!(or_out_of_memory("op", rows).unwrap_err().code(), 3);
        let grown = or_out_of_memory("op", || vec![1u8].grow_to(isize::MAX as usize, 0));
        assert_eq!(grown.unwrap_err().code(), 3);
        // Also from a worker thread.
        let nested = || rayon::join(|| filled(0u64, TOO_MANY).len(), || 1);
        assert_eq!(or_out_of_memory("op", nested).unwrap_err().code(), 3);
        assert_eq!(
            or_out_of_memory("op", || (0..9).filter(|i| i % 2 == 0).sifted()).unwrap(),
            [0, 2, 4, 6, 8]
        );
    }

    #[test]
    fn a_bug_goes_on_as_a_panic() {
        let through = catch_unwind(|| or_out_of_memory("op", || panic!("a bug")));
        assert_eq!(*through.unwrap_err().downcast::<&str>().unwrap(), "a bug");
    }
}
