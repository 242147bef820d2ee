//! A second stream that copies between pinned and device memory while the GPU's own stream computes.

use std::sync::Arc;

use crate::device::driver::{Event, Stream};
use crate::device::gpu::Gpu;
use crate::device::pinned::{PinnedAllocation, PinnedBuffer};
use crate::dtype::Element;
use crate::error::Result;

/// The stream, and events that order it with the GPU's own.
pub(crate) struct CopyStream {
    gpu: Arc<Gpu>,
    stream: Stream,
    events: Vec<Event>,
    /// Pinned memory that copies may be under way from or to.
    kept: Vec<Arc<PinnedAllocation>>,
}

impl CopyStream {
    /// A stream with `events` events.
    pub fn new(gpu: &Arc<Gpu>, events: usize) -> Result<CopyStream> {
        let stream = gpu.call(|d| d.stream())?;
        // What is made so far goes back if an event cannot be had.
        let mut made =
            CopyStream { gpu: gpu.clone(), stream, events: Vec::new(), kept: Vec::new() };
        for _ in 0..events {
            made.events.push(gpu.call(|d| d.event())?);
        }
        Ok(made)
    }

    /// Copies `count` elements from `at` on to device memory.
    ///
    /// # Errors
    /// `InvalidArgument` beyond the end; `Driver` if the copy is refused.
    pub fn upload<T: Element>(
        &mut self,
        src: &PinnedBuffer<T>,
        [at, count]: [usize; 2],
        dst: u64,
    ) -> Result<()> {
        let (ptr, bytes) = (src.part(at, count)? as *const u8, count * size_of::<T>());
        self.keep(src.memory());
        // SAFETY: inside the memory, which is kept until the stream has passed.
        self.gpu.call(|d| unsafe { d.upload_async(self.stream, dst, ptr, bytes) })
    }

    /// Copies device memory to `count` elements from `at` on.
    ///
    /// # Errors
    /// As [`upload`](CopyStream::upload).
    pub fn download<T: Element>(
        &mut self,
        dst: &mut PinnedBuffer<T>,
        [at, count]: [usize; 2],
        src: u64,
    ) -> Result<()> {
        let (ptr, bytes) = (dst.part(at, count)? as *mut u8, count * size_of::<T>());
        self.keep(dst.memory());
        // SAFETY: as above; no reference into pinned memory exists.
        self.gpu.call(|d| unsafe { d.download_async(self.stream, ptr, src, bytes) })
    }

    /// Marks this stream's present end.
    pub fn mark(&self, event: usize) -> Result<()> {
        self.gpu.call(|d| d.record(self.events[event], self.stream))
    }

    /// Whatever the GPU's stream is given from here on comes after the mark.
    pub fn hold_gpu(&self, event: usize) -> Result<()> {
        self.gpu.call(|d| d.wait_event(self.gpu.stream(), self.events[event]))
    }

    /// Whatever this stream is given from here on comes after the present end of the GPU's.
    ///
    /// # Errors
    /// `Unsupported` while the GPU's stream is captured, which this one is not.
    pub fn follow_gpu(&self, event: usize) -> Result<()> {
        self.gpu.context.outside(|| "a second stream waits for the first".to_string())?;
        self.gpu.call(|d| d.record(self.events[event], self.gpu.stream()))?;
        self.gpu.call(|d| d.wait_event(self.stream, self.events[event]))
    }

    /// Waits until all copies are done.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu.call(|d| d.synchronize(self.stream))
    }

    fn keep(&mut self, memory: &Arc<PinnedAllocation>) {
        if !self.kept.iter().any(|kept| Arc::ptr_eq(kept, memory)) {
            self.kept.push(memory.clone());
        }
    }
}

impl Drop for CopyStream {
    fn drop(&mut self) {
        if self.synchronize().is_err() {
            // Memory that the device may still write to is not given back.
            self.kept.drain(..).for_each(std::mem::forget);
        }
        for &event in &self.events {
            let _ = self.gpu.call(|d| d.destroy_event(event));
        }
        let _ = self.gpu.call(|d| d.destroy_stream(self.stream));
    }
}
