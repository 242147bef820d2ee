//! Host memory that the device copies from and to on its own, so that nobody waits for a copy.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::gpu::Gpu;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{Dims, Place, View, ViewMut};

/// `len` elements of pinned host memory, zeros at first.
///
/// The host looks at it through copies only, which wait for the stream if the stream still uses the
/// memory: one wait after a step serves all reads of its results and all writes of the next inputs.
pub struct PinnedBuffer<T> {
    block: Arc<PinnedBlock>,
    len: usize,
    element: PhantomData<T>,
}

/// The memory of a buffer, which graphs keep as well.
pub(crate) struct PinnedBlock {
    gpu: Arc<Gpu>,
    ptr: *mut u8,
    /// The wait that ends the last use.
    used: AtomicU64,
}

// SAFETY: no reference into the memory exists; it is copied from and to, by whoever holds the buffer
// exclusively or by the stream.
unsafe impl Send for PinnedBlock {}
// SAFETY: as above; the counter is atomic.
unsafe impl Sync for PinnedBlock {}

impl PinnedBlock {
    /// The stream was given a copy from or to the memory.
    pub fn use_now(&self) {
        self.used.store(self.gpu.link.next_wait(), Ordering::SeqCst);
    }

    /// Waits if the stream may still use the memory.
    fn settle(&self) -> Result<()> {
        let used = self.used.load(Ordering::SeqCst);
        if used == 0 || self.gpu.link.has_waited(used) { Ok(()) } else { self.gpu.synchronize() }
    }
}

impl Drop for PinnedBlock {
    fn drop(&mut self) {
        // Memory that the device may still write to is not given back.
        if self.settle().is_ok() {
            // SAFETY: the stream has passed, and graphs that use the memory would hold the block.
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
        gpu.link.outside(|| format!("{what} of {bytes} bytes"))?;
        let ptr = gpu.call(|d| d.alloc_pinned(bytes.min(isize::MAX as u64) as usize));
        let ptr = ptr.map_err(|error| match error {
            Error::Driver { code: crate::device::DriverError::OUT_OF_MEMORY, .. } => {
                Error::OutOfMemory { what: what.to_string(), bytes }
            }
            other => other,
        })?;
        let block = Arc::new(PinnedBlock { gpu: gpu.clone(), ptr, used: AtomicU64::new(0) });
        Ok(PinnedBuffer { block, len, element: PhantomData })
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
        self.block.settle()?;
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
        self.block.settle()?;
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
        let (src, bytes) = self.copied("upload", at, dst.dims(), dst.place())?;
        if bytes == 0 {
            return Ok(());
        }
        let (gpu, dst) = (&self.block.gpu, dst.as_mut_ptr() as u64);
        // SAFETY: the bytes are inside the block, which is kept until the stream has passed, and
        // by a capture's graph.
        self.given(gpu.call(|d| unsafe { d.upload_async(gpu.stream(), dst, src, bytes) }))
    }

    /// Gives the stream a copy of contiguous device memory to elements from `at` on.
    ///
    /// # Errors
    /// As [`upload`](PinnedBuffer::upload).
    pub fn download(&mut self, at: usize, src: View<'_, T>) -> Result<()> {
        let (dst, bytes) = self.copied("download", at, src.dims(), src.place())?;
        if bytes == 0 {
            return Ok(());
        }
        let (gpu, src) = (&self.block.gpu, src.as_ptr() as u64);
        // SAFETY: as above; no reference into pinned memory exists.
        self.given(gpu.call(|d| unsafe { d.download_async(gpu.stream(), dst, src, bytes) }))
    }

    pub(super) fn block(&self) -> &Arc<PinnedBlock> {
        &self.block
    }

    fn given(&self, copy: Result<()>) -> Result<()> {
        copy?;
        if self.block.gpu.link.is_capturing() {
            self.block.gpu.link.keep_pinned(&self.block);
        } else {
            self.block.use_now();
        }
        Ok(())
    }

    /// Where a copy of the view begins, and its length.
    fn copied(
        &self,
        op: &'static str,
        at: usize,
        dims: &Dims,
        place: Place,
    ) -> Result<(*mut u8, usize)> {
        let here = Place::Device(self.block.gpu.info().ordinal);
        if place != here {
            return Err(Error::invalid(
                op,
                "view",
                format!("{place:?} memory"),
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
        // SAFETY: inside the block.
        Ok(unsafe { (self.block.ptr as *mut T).add(at) })
    }
}

impl<T> fmt::Debug for PinnedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBuffer({} elements)", self.len)
    }
}
