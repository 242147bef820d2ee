//! The library's allocator: the system's, with a small reserve behind it.
//!
//! Everything whose size comes from a caller is allocated fallibly, and a failure is
//! `GRADUS_OUT_OF_MEMORY`. What is left are the few small pieces that the standard library and rayon
//! allocate on their own account (a queue's block, a name in an error text), which cannot be refused:
//! Rust's answer to a failure there is to abort. Those pieces come from the reserve while the system
//! has none; they live no longer than a call, so the reserve fills up again. Who asks for memory and takes no for an
//! answer does not get it from here, or there would be none left to say so with.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

use gradus::Error;

/// Blocks of one size; a bit of `taken` for each.
#[repr(C, align(4096))]
struct Blocks<const SIZE: usize, const WORDS: usize> {
    memory: UnsafeCell<[[[MaybeUninit<u8>; SIZE]; 64]; WORDS]>,
    taken: [AtomicU64; WORDS],
}

// SAFETY: a block is its taker's until it is given back; the bits are atomic.
unsafe impl<const SIZE: usize, const WORDS: usize> Sync for Blocks<SIZE, WORDS> {}

impl<const SIZE: usize, const WORDS: usize> Blocks<SIZE, WORDS> {
    const fn new() -> Self {
        Blocks {
            memory: UnsafeCell::new([[[MaybeUninit::uninit(); SIZE]; 64]; WORDS]),
            taken: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    fn start(&self) -> *mut u8 {
        self.memory.get().cast()
    }

    /// A free block, or null.
    fn take(&self) -> *mut u8 {
        for (word, taken) in self.taken.iter().enumerate() {
            let mut seen = taken.load(Ordering::Relaxed);
            while seen != u64::MAX {
                let bit = seen.trailing_ones() as usize;
                let with = seen | 1 << bit;
                match taken.compare_exchange(seen, with, Ordering::Acquire, Ordering::Relaxed) {
                    // SAFETY: the block's number is below 64·WORDS.
                    Ok(_) => return unsafe { self.start().add((word * 64 + bit) * SIZE) },
                    Err(now) => seen = now,
                }
            }
        }
        std::ptr::null_mut()
    }

    /// The number of the block at an address, if it is one.
    fn number(&self, at: *mut u8) -> Option<usize> {
        let offset = (at as usize).wrapping_sub(self.start() as usize);
        (offset < SIZE * 64 * WORDS).then_some(offset / SIZE)
    }

    fn give_back(&self, number: usize) {
        self.taken[number / 64].fetch_and(!(1 << (number % 64)), Ordering::Release);
    }
}

/// Names, texts, list heads: most pieces are below 1 KiB. A queue of rayon grows by blocks of some
/// KiB, and what it keeps for each thread is one piece.
static SMALL: Blocks<1024, 4> = Blocks::new();
static LARGE: Blocks<16384, 1> = Blocks::new();

fn from_reserve(layout: Layout) -> *mut u8 {
    if gradus::is_asking() || layout.align() > 1024 {
        return std::ptr::null_mut();
    }
    let small = if layout.size() <= 1024 { SMALL.take() } else { std::ptr::null_mut() };
    if small.is_null() && layout.size() <= 16384 { LARGE.take() } else { small }
}

/// True if the block was one of the reserve's and is free again.
fn to_reserve(at: *mut u8) -> bool {
    if let Some(number) = SMALL.number(at) {
        SMALL.give_back(number);
    } else if let Some(number) = LARGE.number(at) {
        LARGE.give_back(number);
    } else {
        return false;
    }
    true
}

/// An empty vector with room for what a caller's list makes of it.
pub(crate) fn room<T>(op: &'static str, count: usize) -> gradus::Result<Vec<T>> {
    let mut values = Vec::new();
    add_room(op, &mut values, count)?;
    Ok(values)
}

/// Room for more.
pub(crate) fn add_room<T>(
    op: &'static str,
    values: &mut Vec<T>,
    more: usize,
) -> gradus::Result<()> {
    gradus::asking(|| values.try_reserve(more))
        .map_err(|_| refused::<T>(op, values.len().saturating_add(more)))
}

/// `OutOfMemory` for so many values.
pub(crate) fn refused<T>(op: &'static str, count: usize) -> Error {
    let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
    Error::OutOfMemory { what: op.to_string(), bytes }
}

struct WithReserve;

#[global_allocator]
static ALLOCATOR: WithReserve = WithReserve;

// SAFETY: blocks are the system's or the reserve's, and go back to where they came from.
unsafe impl GlobalAlloc for WithReserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let at = unsafe { System.alloc(layout) };
        if at.is_null() { from_reserve(layout) } else { at }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let at = unsafe { System.alloc_zeroed(layout) };
        if !at.is_null() {
            return at;
        }
        let at = from_reserve(layout);
        if !at.is_null() {
            // SAFETY: the block has at least so many bytes.
            unsafe { at.write_bytes(0, layout.size()) };
        }
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if !to_reserve(at) {
            // SAFETY: not the reserve's, so the system's.
            unsafe { System.dealloc(at, layout) };
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let reserved = SMALL.number(at).is_some() || LARGE.number(at).is_some();
        if !reserved {
            // SAFETY: the system's.
            let moved = unsafe { System.realloc(at, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: the caller promises that the size is legal with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: `size` is not 0.
        let moved = unsafe { self.alloc(wanted) };
        if !moved.is_null() {
            // SAFETY: both blocks have the smaller of the two sizes; the old one is given back once.
            unsafe {
                at.copy_to_nonoverlapping(moved, layout.size().min(size));
                self.dealloc(at, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_and_go() {
        static BLOCKS: Blocks<64, 2> = Blocks::new();
        let all: Vec<usize> = (0..128).map(|_| BLOCKS.take() as usize).collect();
        let mut sorted = all.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 128, "no block is given twice");
        assert!(BLOCKS.take().is_null());
        assert_eq!(BLOCKS.number((all[5] + 63) as *mut u8), Some(5));
        assert_eq!(BLOCKS.number((BLOCKS.start() as usize + 128 * 64) as *mut u8), None);
        assert_eq!(BLOCKS.number((BLOCKS.start() as usize - 1) as *mut u8), None);
        BLOCKS.give_back(77);
        assert_eq!(BLOCKS.take() as usize, all[77]);
    }

    #[test]
    fn a_block_of_the_reserve_moves_with_its_contents() {
        let layout = Layout::from_size_align(100, 8).unwrap();
        let at = from_reserve(layout);
        assert_eq!(at as usize % 1024, 0);
        // SAFETY: 100 bytes of the reserve, moved and given back by the allocator that knows it.
        unsafe {
            (0..100).for_each(|i| at.add(i).write(i as u8));
            let moved = ALLOCATOR.realloc(at, layout, 50_000);
            assert!(SMALL.number(moved).is_none() && LARGE.number(moved).is_none());
            assert!((0..100).all(|i| moved.add(i).read() == i as u8));
            ALLOCATOR.dealloc(moved, Layout::from_size_align(50_000, 8).unwrap());
        }
        assert!(from_reserve(Layout::from_size_align(16385, 8).unwrap()).is_null());
        assert!(from_reserve(Layout::from_size_align(8, 2048).unwrap()).is_null());
    }
}
