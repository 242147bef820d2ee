//! Host memory that the device copies from and to on its own, so that nobody waits for a copy.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::gpu::Gpu;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{Dims, Location, View, ViewMut};

/// `len` elements of pinned host memory, zeros at first.
///
/// The host looks at it through copies only, which wait for the stream if the stream still uses the
/// memory: one wait after a step serves all reads of its results and all writes of the next inputs.
pub struct PinnedBuffer<T> {
    memory: Arc<PinnedAllocation>,
    len: usize,
    element: PhantomData<T>,
}

/// The memory of a [`PinnedBuffer`]; a graph that copies from it or to it owns it, too.
pub(crate) struct PinnedAllocation {
    gpu: Arc<Gpu>,
    ptr: *mut u8,
    /// The wait that ends the last use.
    used: AtomicU64,
}

// SAFETY: no reference into the memory exists; it is copied from and to, by whoever holds the buffer
// exclusively or by the stream.
unsafe impl Send for PinnedAllocation {}
// SAFETY: as above; the counter is atomic.
unsafe impl Sync for PinnedAllocation {}

impl PinnedAllocation {
    /// The stream was given a copy from or to the memory.
    pub fn use_now(&self) {
        self.used.store(self.gpu.context.next_wait(), Ordering::SeqCst);
    }

    /// Waits if the stream may still use the memory.
    fn settle(&self) -> Result<()> {
        let used = self.used.load(Ordering::SeqCst);
        if used == 0 || self.gpu.context.has_waited(used) { Ok(()) } else { self.gpu.synchronize() }
    }
}

impl Drop for PinnedAllocation {
    fn drop(&mut self) {
        // Memory that the device may still write to is not given back.
        if self.settle().is_ok() {
            // SAFETY: the stream has passed, and graphs that use the memory would hold it.
            let _ = self.gpu.call(|d| unsafe { d.free_pinned(self.ptr) });
        }
    }
}

impl<T: Element> PinnedBuffer<T> {
    /// Zeros.
    ///
    /// # Errors
    /// `OutOfMemory`; `Unsupported` while the GPU's stream is captured.
    pub fn new(gpu: &Arc<Gpu>, len: usize) -> Result<PinnedBuffer<T>> {
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64).max(1);
        let what = "pinned host memory";
        gpu.context.outside(|| format!("{what} of {bytes} bytes"))?;
        let ptr = gpu.call(|d| d.alloc_pinned(bytes.min(isize::MAX as u64) as usize));
        let ptr = ptr.map_err(|error| match error {
            Error::Driver { code: crate::device::DriverError::OUT_OF_MEMORY, .. } => {
                Error::OutOfMemory { what: what.to_string(), bytes }
            }
            other => other,
        })?;
        let memory = Arc::new(PinnedAllocation { gpu: gpu.clone(), ptr, used: AtomicU64::new(0) });
        Ok(PinnedBuffer { memory, len, element: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites elements from `at` on, after all copies that the stream was given.
    ///
    /// # Errors
    /// `InvalidArgument` beyond the end; what a wait may return.
    pub fn write(&mut self, at: usize, data: &[T]) -> Result<()> {
        let ptr = self.part(at, data.len())?;
        self.memory.settle()?;
        // SAFETY: inside the buffer, which is held exclusively; the stream has passed.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), ptr, data.len()) };
        Ok(())
    }

    /// Copies elements from `at` on, after all copies that the stream was given.
    ///
    /// # Errors
    /// As [`write`](PinnedBuffer::write).
    pub fn read(&self, at: usize, out: &mut [T]) -> Result<()> {
        let ptr = self.part(at, out.len())?;
        self.memory.settle()?;
        // SAFETY: inside the buffer; any bytes are a valid element.
        unsafe { std::ptr::copy_nonoverlapping(ptr, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// A copy of all elements; as [`read`](PinnedBuffer::read).
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); self.len];
        self.read(0, &mut data)?;
        Ok(data)
    }

    /// Gives the stream a copy of elements from `at` on to contiguous device memory. Nobody waits.
    ///
    /// # Errors
    /// `InvalidArgument` beyond the end, or for a view of other memory or with gaps.
    pub fn upload(&self, at: usize, dst: ViewMut<'_, T>) -> Result<()> {
        let (src, bytes) = self.copied("upload", at, dst.dims(), dst.location())?;
        if bytes == 0 {
            return Ok(());
        }
        let (gpu, dst) = (&self.memory.gpu, dst.as_mut_ptr() as u64);
        // SAFETY: the bytes are inside the memory, which is kept until the stream has passed, and
        // by a capture's graph.
        self.given(gpu.call(|d| unsafe { d.upload_async(gpu.stream(), dst, src, bytes) }))
    }

    /// Gives the stream a copy of contiguous device memory to elements from `at` on.
    ///
    /// # Errors
    /// As [`upload`](PinnedBuffer::upload).
    pub fn download(&mut self, at: usize, src: View<'_, T>) -> Result<()> {
        let (dst, bytes) = self.copied("download", at, src.dims(), src.location())?;
        if bytes == 0 {
            return Ok(());
        }
        let (gpu, src) = (&self.memory.gpu, src.as_ptr() as u64);
        // SAFETY: as above; no reference into pinned memory exists.
        self.given(gpu.call(|d| unsafe { d.download_async(gpu.stream(), dst, src, bytes) }))
    }

    pub(super) fn memory(&self) -> &Arc<PinnedAllocation> {
        &self.memory
    }

    fn given(&self, copy: Result<()>) -> Result<()> {
        copy?;
        if self.memory.gpu.context.is_capturing() {
            self.memory.gpu.context.keep_pinned(&self.memory);
        } else {
            self.memory.use_now();
        }
        Ok(())
    }

    /// Where a copy of the view begins, and its length.
    fn copied(
        &self,
        op: &'static str,
        at: usize,
        dims: &Dims,
        location: Location,
    ) -> Result<(*mut u8, usize)> {
        let here = Location::Device(self.memory.gpu.info().ordinal);
        if location != here {
            return Err(Error::invalid(
                op,
                "view",
                format!("{location:?} memory"),
                format!("{here:?}"),
            ));
        }
        if !dims.is_contiguous() {
            return Err(Error::invalid(op, "view", format!("{dims:?}"), "a view without gaps"));
        }
        let count = dims.numel() as usize;
        Ok((self.part(at, count)? as *mut u8, count * size_of::<T>()))
    }

    /// The first of `count` elements from `at` on.
    pub(super) fn part(&self, at: usize, count: usize) -> Result<*mut T> {
        if at.checked_add(count).is_none_or(|end| end > self.len) {
            let got = format!("{count} from {at} on");
            let expected = format!("at most {} elements", self.len);
            return Err(Error::invalid("pinned_buffer", "data", got, expected));
        }
        // SAFETY: inside the memory.
        Ok(unsafe { (self.memory.ptr as *mut T).add(at) })
    }
}

impl<T> fmt::Debug for PinnedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBuffer({} elements)", self.len)
    }
}
