//! Host memory at a fixed place, for drivers that have no pinned memory of their own.

use std::alloc::{Layout, alloc_zeroed, dealloc};

/// `bytes` zeroed bytes, aligned to 256.
#[derive(Debug)]
pub(super) struct HostAllocation {
    at: *mut u8,
    layout: Layout,
}

// SAFETY: the block is owned memory without a reference into it.
unsafe impl Send for HostAllocation {}

impl HostAllocation {
    /// `None` for no bytes, or if there is no memory.
    pub fn new(bytes: usize) -> Option<HostAllocation> {
        let layout = Layout::from_size_align(bytes, 256).ok().filter(|l| l.size() > 0)?;
        // SAFETY: the layout has bytes.
        let at = unsafe { alloc_zeroed(layout) };
        (!at.is_null()).then_some(HostAllocation { at, layout })
    }

    pub fn ptr(&self) -> *mut u8 {
        self.at
    }

    pub fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for HostAllocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.at, self.layout) };
    }
}
