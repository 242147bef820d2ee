//! Packing buffers that a thread keeps between calls.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Buffers a thread keeps; a call nests at most this deep.
const KEPT: usize = 4;
/// Largest buffer kept, in elements: allocating a larger one is a small part of the product that
/// fills it.
const KEPT_LEN: usize = 1 << 22;

/// Buffers of one element type.
pub(crate) type Store<A> = LocalKey<RefCell<Vec<Vec<A>>>>;

/// An element type with a store per thread.
pub(crate) trait Stored: Copy + 'static {
    /// What an untouched element holds.
    const EMPTY: Self;
    /// The calling thread's store.
    fn store() -> &'static Store<Self>;
}

macro_rules! stored {
    ($($t:ty),*) => {$(
        impl Stored for $t {
            const EMPTY: $t = 0.0;
            fn store() -> &'static Store<$t> {
                thread_local! {
                    static STORE: RefCell<Vec<Vec<$t>>> = const { RefCell::new(Vec::new()) };
                }
                &STORE
            }
        }
    )*};
}
stored!(f32, f64);

/// A buffer with unspecified contents, handed back on drop. It is out of the thread's store while
/// in use: a thread that waits in rayon may run another product meanwhile.
pub(crate) struct Scratch<A: Stored> {
    buffer: Vec<A>,
    len: usize,
}

impl<A: Stored> Scratch<A> {
    pub(crate) fn take(len: usize) -> Scratch<A> {
        let mut buffer = A::store().with_borrow_mut(Vec::pop).unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, A::EMPTY);
        }
        Scratch { buffer, len }
    }
}

impl<A: Stored> Drop for Scratch<A> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        A::store().with_borrow_mut(|store| {
            if store.len() < KEPT && buffer.len() <= KEPT_LEN {
                store.push(buffer);
            }
        });
    }
}

impl<A: Stored> Deref for Scratch<A> {
    type Target = [A];
    fn deref(&self) -> &[A] {
        &self.buffer[..self.len]
    }
}

impl<A: Stored> DerefMut for Scratch<A> {
    fn deref_mut(&mut self) -> &mut [A] {
        &mut self.buffer[..self.len]
    }
}
