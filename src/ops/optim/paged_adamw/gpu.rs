//! AdamW whose moments are in pinned host memory: while one chunk is updated, the chunk before goes
//! back to the host and the next one comes.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::adamw::AdamWTensor;
use crate::device::{CopyStream, DeviceBuffer, Gpu, LaunchArgs, PinnedBuffer, Ptr, shipped};
use crate::error::Result;
use crate::ops::optim::adamw::gpu::Step;
use crate::ops::optim::adamw::{AdamWOutcome, AdamWSettings};
use crate::ops::optim::paged_adamw::PagedTensor;

/// Chunks in flight. Each has an event for "is there" and one for "is updated".
const SLOTS: usize = 2;

/// The moments, and the way they take.
pub(crate) struct Paged {
    gpu: Arc<Gpu>,
    // Before the memory, so that no copy is under way when that falls.
    copies: CopyStream,
    m: PinnedBuffer<f32>,
    v: PinnedBuffer<f32>,
    /// First moments of a chunk, then second ones.
    slots: [DeviceBuffer<f32>; SLOTS],
    chunk: usize,
}

impl Paged {
    pub fn new(gpu: &Arc<Gpu>, total: usize, chunk: usize) -> Result<Paged> {
        let slot = || DeviceBuffer::new(gpu, chunk.saturating_mul(2));
        Ok(Paged {
            copies: CopyStream::new(gpu, 2 * SLOTS)?,
            m: PinnedBuffer::new(gpu, total)?,
            v: PinnedBuffer::new(gpu, total)?,
            slots: [slot()?, slot()?],
            gpu: gpu.clone(),
            chunk,
        })
    }

    /// The moments of a range of elements, after all steps.
    pub fn read(&self, at: usize, m: &mut [f32], v: &mut [f32]) -> Result<()> {
        self.copies.synchronize()?;
        self.m.read(at, m)?;
        self.v.read(at, v)
    }

    pub fn write(&mut self, at: usize, m: &[f32], v: &[f32]) -> Result<()> {
        self.copies.synchronize()?;
        self.m.write(at, m)?;
        self.v.write(at, v)
    }

    pub fn step(
        &mut self,
        tensors: Vec<PagedTensor<'_>>,
        settings: &AdamWSettings,
    ) -> Result<AdamWOutcome> {
        // A step that broke off may have left an update behind that uses a slot.
        self.copies.follow_gpu(SLOTS)?;
        let gpu = self.gpu.clone();
        let mut launch = LaunchArgs::new(&gpu, &shipped::ADAMW);
        let step = Step::new(&mut launch, &[], settings)?;
        let mut all = Vec::with_capacity(tensors.len());
        for t in tensors {
            all.push(AdamWTensor {
                count: t.grad.numel(),
                grad: launch.input(&t.grad)?,
                mask: launch.opt_input(&t.mask)?,
                param: launch.update(t.param)?,
                ..AdamWTensor::zeroed()
            });
        }
        // No chunk is written unless all gradients may be used, which the kernels look at.
        step.launch(&mut launch, &["adamw_check"], &mut all.clone())?;
        let total = self.m.len();
        let chunks: Vec<Range<usize>> =
            (0..total).step_by(self.chunk).map(|at| at..total.min(at + self.chunk)).collect();
        for (k, chunk) in chunks.iter().enumerate().take(SLOTS) {
            self.bring(k % SLOTS, chunk)?;
        }
        for (k, chunk) in chunks.iter().enumerate() {
            let (slot, mut parts) = (k % SLOTS, self.parts(&all, k % SLOTS, chunk)?);
            self.copies.hold_gpu(slot)?;
            step.launch(&mut launch, &["adamw"], &mut parts)?;
            self.copies.follow_gpu(SLOTS + slot)?;
            self.take_back(slot, chunk)?;
            if let Some(next) = chunks.get(k + SLOTS) {
                self.bring(slot, next)?;
            }
        }
        let outcome = step.outcome(&launch)?;
        launch.finish().map(|()| outcome)
    }

    /// Addresses of a slot's first and second moments.
    fn slot(&self, slot: usize) -> Result<[u64; 2]> {
        let m = self.slots[slot].view(&[1])?.as_ptr() as u64;
        Ok([m, m + (self.chunk * size_of::<f32>()) as u64])
    }

    fn bring(&mut self, slot: usize, chunk: &Range<usize>) -> Result<()> {
        let ([m, v], part) = (self.slot(slot)?, [chunk.start, chunk.len()]);
        self.copies.upload(&self.m, part, m)?;
        self.copies.upload(&self.v, part, v)?;
        self.copies.mark(slot)
    }

    fn take_back(&mut self, slot: usize, chunk: &Range<usize>) -> Result<()> {
        let ([m, v], part) = (self.slot(slot)?, [chunk.start, chunk.len()]);
        self.copies.download(&mut self.m, part, m)?;
        self.copies.download(&mut self.v, part, v)
    }

    /// The parts of tensors whose moments are in a chunk, with their moments in a slot.
    fn parts(
        &self,
        all: &[AdamWTensor],
        slot: usize,
        chunk: &Range<usize>,
    ) -> Result<Vec<AdamWTensor>> {
        let ([m, v], mut parts, mut start) = (self.slot(slot)?, Vec::new(), 0);
        let size = size_of::<f32>();
        for t in all {
            let end = start + t.count as usize;
            let (first, last) = (start.max(chunk.start), end.min(chunk.end));
            if first < last {
                let (skipped, place) = (first - start, first - chunk.start);
                parts.push(AdamWTensor {
                    param: t.param.byte_add(skipped * size),
                    grad: t.grad.byte_add(skipped * size),
                    m: Ptr::new(m).byte_add(place * size),
                    v: Ptr::new(v).byte_add(place * size),
                    mask: if t.mask.is_null() { t.mask } else { t.mask.byte_add(skipped) },
                    count: (last - first) as i64,
                    ..AdamWTensor::zeroed()
                });
            }
            start = end;
        }
        Ok(parts)
    }
}
