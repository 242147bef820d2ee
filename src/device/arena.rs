//! Memory that results come from and go back to without a driver call: one allocation of a GPU,
//! handed out in ranges.
//!
//! A stream runs its work in order, so a range may be handed out again as soon as the host lets go
//! of it: whatever used it was launched before whatever uses it next. What must not happen is that
//! a graph writes ranges that somebody else holds now; a graph therefore brings its own arena.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::{Buffer, Device, Gpu};
use crate::dtype::Element;
use crate::error::{Error, Result};

/// Ranges start at multiples of this, as the driver's allocations do.
const ALIGNMENT: usize = 256;

/// Ranges of one allocation. Before [`Arena::reserve`] every range is an allocation of its own,
/// which the emulator guards byte by byte; where it would lie in one allocation is worked out
/// as well, so that [`Arena::peak`] is what to reserve.
pub struct Arena {
    gpu: Arc<Gpu>,
    state: Mutex<State>,
}

struct State {
    ranges: FreeList,
    /// Where the reserved allocation begins.
    base: Option<u64>,
    /// Before that: the offset of each allocation.
    offsets: HashMap<u64, usize>,
}

/// Free ranges by their offset, no two of them neighbors.
struct FreeList {
    free: BTreeMap<usize, usize>,
    /// Bytes that are out.
    live: usize,
    /// End of the highest range that was ever handed out.
    high: usize,
}

impl FreeList {
    fn new(bytes: usize) -> FreeList {
        FreeList { free: BTreeMap::from([(0, bytes)]), live: 0, high: 0 }
    }

    /// The first range that is large enough, so that the same calls always get the same ranges.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let (&at, &size) = self.free.iter().find(|&(_, &size)| size >= bytes)?;
        self.free.remove(&at);
        if size > bytes {
            self.free.insert(at + bytes, size - bytes);
        }
        self.live += bytes;
        self.high = self.high.max(at + bytes);
        Some(at)
    }

    fn give(&mut self, mut at: usize, mut bytes: usize) {
        self.live -= bytes;
        if let Some((&before, &size)) = self.free.range(..at).next_back()
            && before + size == at
        {
            self.free.remove(&before);
            (at, bytes) = (before, bytes + size);
        }
        if let Some(size) = self.free.remove(&(at + bytes)) {
            bytes += size;
        }
        self.free.insert(at, bytes);
    }
}

impl Arena {
    /// An arena that has reserved nothing.
    pub fn new(gpu: &Arc<Gpu>) -> Arc<Arena> {
        let ranges = FreeList::new(usize::MAX / ALIGNMENT * ALIGNMENT);
        let state = State { ranges, base: None, offsets: HashMap::new() };
        Arc::new(Arena { gpu: gpu.clone(), state: Mutex::new(state) })
    }

    /// The GPU whose memory this is.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Takes one allocation that all later ranges come from.
    ///
    /// # Errors
    /// `OutOfMemory`; `InvalidArgument` if ranges are out or memory is reserved already.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        let mut state = self.lock();
        if state.base.is_some() || state.ranges.live > 0 {
            let got = format!("an arena with {} bytes in use", state.ranges.live);
            return Err(Error::invalid("arena", "bytes", got, "an arena that nothing is out of"));
        }
        let bytes = rounded(bytes);
        state.base = Some(self.gpu.alloc("arena", bytes)?);
        state.ranges = FreeList::new(bytes);
        Ok(())
    }

    /// Bytes to reserve for everything that was done so far.
    pub fn peak(&self) -> usize {
        self.lock().ranges.high
    }

    /// Forgets the peak, if nothing is out: [`Arena::peak`] is of what is done from here on.
    pub fn restart(&self) {
        let ranges = &mut self.lock().ranges;
        if ranges.live == 0 {
            ranges.high = 0;
        }
    }

    /// Bytes that are out.
    pub fn live(&self) -> usize {
        self.lock().ranges.live
    }

    pub(crate) fn take(&self, bytes: usize) -> Result<u64> {
        let mut state = self.lock();
        let Some(at) = state.ranges.take(rounded(bytes)) else {
            let what = "activations: the arena is full".to_string();
            return Err(Error::OutOfMemory { what, bytes: bytes as u64 });
        };
        if let Some(base) = state.base {
            return Ok(base + at as u64);
        }
        let ptr = self.gpu.alloc("activations", bytes.max(1));
        match &ptr {
            Ok(ptr) => drop(state.offsets.insert(*ptr, at)),
            Err(_) => state.ranges.give(at, rounded(bytes)),
        }
        ptr
    }

    /// Takes back what [`Arena::take`] gave.
    pub(crate) fn give(&self, ptr: u64, bytes: usize) {
        let mut state = self.lock();
        let at = match state.base {
            Some(base) => (ptr - base) as usize,
            None => {
                let Some(at) = state.offsets.remove(&ptr) else { return };
                let _ = self.gpu.synchronize();
                self.gpu.free(ptr);
                at
            }
        };
        state.ranges.give(at, rounded(bytes));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT).max(ALIGNMENT)
}

impl Drop for Arena {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(base) = state.base {
            let _ = self.gpu.synchronize();
            self.gpu.free(base);
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        write!(f, "Arena({} bytes out, {} at most)", state.ranges.live, state.ranges.high)
    }
}

/// Where results are put: host memory, or an arena of a GPU.
#[derive(Clone, Debug)]
pub enum Allocator {
    /// Host memory.
    Host,
    /// An arena.
    Gpu(Arc<Arena>),
}

impl Allocator {
    /// An allocator of its own on `device`.
    pub fn new(device: &Device) -> Allocator {
        match device {
            Device::Cpu => Allocator::Host,
            Device::Gpu(gpu) => Allocator::Gpu(Arena::new(gpu)),
        }
    }

    /// The arena, on a GPU.
    pub fn arena(&self) -> Option<Arc<Arena>> {
        match self {
            Allocator::Host => None,
            Allocator::Gpu(arena) => Some(arena.clone()),
        }
    }

    /// Room for `len` elements: zeros in host memory, whatever was there on a GPU.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        match self {
            Allocator::Host => Buffer::new(&Device::Cpu, len),
            Allocator::Gpu(arena) => Buffer::in_arena(arena, len),
        }
    }

    /// A copy of host data.
    pub fn copy_of<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        match self {
            Allocator::Host => Buffer::of(&Device::Cpu, data),
            Allocator::Gpu(arena) => {
                let mut memory = Buffer::in_arena(arena, data.len())?;
                memory.upload(data)?;
                Ok(memory)
            }
        }
    }

    /// Zeros.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let mut memory = self.alloc(len)?;
        if matches!(self, Allocator::Gpu(_)) {
            memory.clear()?;
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_reused_and_merged() {
        let mut ranges = FreeList::new(1024);
        let at: Vec<_> = (0..4).map(|_| ranges.take(256)).collect();
        assert_eq!(at, [Some(0), Some(256), Some(512), Some(768)]);
        assert_eq!(ranges.take(1), None);
        ranges.give(256, 256);
        ranges.give(768, 256);
        assert_eq!(ranges.free, [(256, 256), (768, 256)].into());
        assert_eq!(ranges.take(512), None, "two halves are no whole");
        ranges.give(512, 256);
        assert_eq!(ranges.free, [(256, 768)].into());
        assert_eq!((ranges.take(768), ranges.high), (Some(256), 1024));
        ranges.give(0, 256);
        ranges.give(256, 768);
        assert_eq!(ranges.free, [(0, 1024)].into());
    }
}
