//! Packing buffers that are kept between calls, a few for each thread.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

use crate::alloc::{Grow, asking};

/// Buffers kept for a thread; a call nests at most this deep.
const KEPT: usize = 4;
/// Largest buffer kept, in elements: allocating a larger one is a small part of the product that
/// fills it.
const KEPT_LEN: usize = 1 << 22;
/// Stores: one for every worker of a pool, and one for the threads that call.
const STORES: usize = 64;

/// Buffers of one element type. Not thread-local: a destructor of a thread-local must be announced to the
/// C library, which ends the process where it has no memory for that.
pub(crate) type Stores<A> = [Mutex<Vec<Vec<A>>>; STORES];

/// An element type with its stores.
pub(crate) trait Stored: Copy + 'static {
    /// What an untouched element holds.
    const EMPTY: Self;
    /// All stores of the type.
    fn stores() -> &'static Stores<Self>;
}

macro_rules! stored {
    ($($t:ty),*) => {$(
        impl Stored for $t {
            const EMPTY: $t = 0.0;
            fn stores() -> &'static Stores<$t> {
                static ALL: Stores<$t> = [const { Mutex::new(Vec::new()) }; STORES];
                &ALL
            }
        }
    )*};
}
stored!(f32, f64);

/// The calling thread's store, unless another thread has it in hand: two pools share them, and so do
/// all threads that call.
fn store<A: Stored>() -> Option<MutexGuard<'static, Vec<Vec<A>>>> {
    let worker = rayon::current_thread_index().map_or(0, |index| 1 + index % (STORES - 1));
    A::stores()[worker].try_lock().ok()
}

/// A buffer with unspecified contents that begins with a cache line, handed back on drop. It is out of the
/// thread's store while in use: a thread that waits in rayon may run another product meanwhile.
pub(crate) struct Scratch<A: Stored> {
    buffer: Vec<A>,
    start: usize,
    len: usize,
}

/// Bytes of a cache line, and of the longest vector register.
const LINE: usize = 64;

impl<A: Stored> Scratch<A> {
    pub(crate) fn take(len: usize) -> Scratch<A> {
        let mut buffer = store().and_then(|mut store| store.pop()).unwrap_or_default();
        let room = len + LINE / size_of::<A>();
        if buffer.len() < room {
            buffer.grow_to(room, A::EMPTY);
        }
        let start = buffer.as_ptr().addr().wrapping_neg() % LINE / size_of::<A>();
        Scratch { buffer, start, len }
    }
}

impl<A: Stored> Drop for Scratch<A> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let Some(mut store) = store() else { return };
        if store.len() < KEPT && buffer.len() <= KEPT_LEN && asking(|| store.try_reserve(1)).is_ok()
        {
            store.push(buffer);
        }
    }
}

impl<A: Stored> Deref for Scratch<A> {
    type Target = [A];
    fn deref(&self) -> &[A] {
        &self.buffer[self.start..][..self.len]
    }
}

impl<A: Stored> DerefMut for Scratch<A> {
    fn deref_mut(&mut self) -> &mut [A] {
        &mut self.buffer[self.start..][..self.len]
    }
}
