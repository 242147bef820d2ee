//! AdamW whose moments live in host memory: a device that has no room for them still trains.

pub(crate) mod gpu;

use std::fmt;
use std::sync::Arc;

use crate::check::Check;
use crate::device::{Device, Gpu};
use crate::error::{Error, Result};
use crate::ops::optim::adamw::{AdamWOutcome, AdamWSettings, check_settings, param_shape, same};
use crate::ops::optim::paged_adamw::gpu::Paged;
use crate::view::{View, ViewMut};

/// First and second moments of the parameters of one GPU, in pinned host memory.
///
/// A step streams them through device memory in chunks, two at a time: while one is updated, the one
/// before it goes back and the next one comes, on a stream of its own. Results have the bits of
/// [`adamw`](crate::ops::adamw()) with resident moments.
///
/// # Cost
/// As [`adamw`](crate::ops::adamw()), and 16 bytes per element over the bus, half of them each way.
/// Device memory: [`device_bytes`](PagedAdamW::device_bytes), whatever the size of the model.
pub struct PagedAdamW {
    device: Device,
    paged: Paged,
    counts: Vec<usize>,
    chunk: usize,
}

/// One parameter of [`PagedAdamW::step`], in device memory. All views have one shape and no gaps.
#[derive(Debug)]
pub struct PagedTensor<'a> {
    /// Parameter, updated.
    pub param: ViewMut<'a, f32>,
    /// Gradient.
    pub grad: View<'a, f32>,
    /// Elements with a 0 are skipped.
    pub mask: Option<View<'a, u8>>,
}

impl PagedAdamW {
    /// Zero moments of tensors with these numbers of elements; `chunk` elements come at a time.
    ///
    /// # Errors
    /// `InvalidArgument` for a chunk of 0; `OutOfMemory` if the host's or the device's does not do.
    pub fn new(gpu: &Arc<Gpu>, counts: &[usize], chunk: usize) -> Result<PagedAdamW> {
        Check("paged_adamw").that(chunk > 0, "chunk", chunk, "at least 1 element")?;
        let total = counts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        let got = || format!("{} tensors", counts.len());
        let expected = "fewer than 2^64 elements";
        let total =
            total.ok_or_else(|| Error::invalid("paged_adamw", "counts", got(), expected))?;
        let chunk = chunk.min(total.max(1));
        let paged = Paged::new(gpu, total, chunk)?;
        Ok(PagedAdamW { device: Device::Gpu(gpu.clone()), paged, counts: counts.into(), chunk })
    }

    /// Bytes of device memory that the moments take: two chunks.
    pub fn device_bytes(&self) -> usize {
        2 * 2 * self.chunk * size_of::<f32>()
    }

    /// One step. `outcome` is written in any case but an error; a gradient that is not finite is an
    /// outcome, and nothing is updated then.
    ///
    /// # Errors
    /// `InvalidArgument` for other tensors than those of [`new`](PagedAdamW::new), views of host
    /// memory or with gaps, or settings out of range; `Unsupported` in a capture. After an error of
    /// the driver some chunks are updated and others are not.
    pub fn step(
        &mut self,
        tensors: Vec<PagedTensor<'_>>,
        settings: &AdamWSettings,
        outcome: &mut AdamWOutcome,
    ) -> Result<()> {
        let check = Check("paged_adamw");
        check_settings(check, settings)?;
        let expected = format!("{} tensors", self.counts.len());
        check.that(tensors.len() == self.counts.len(), "tensors", tensors.len(), &expected)?;
        for (i, t) in tensors.iter().enumerate() {
            let shape = param_shape(check, &self.device, i, &t.param)?;
            same(check, &self.device, i, "grad", &t.grad, &shape)?;
            if let Some(mask) = &t.mask {
                same(check, &self.device, i, "mask", mask, &shape)?;
            }
            let host = t.param.is_host()
                || t.grad.is_host()
                || t.mask.as_ref().is_some_and(|mask| mask.is_host());
            let arg = format!("tensors[{i}]");
            check.that(!host, &arg, "host memory", "device memory")?;
            let expected = format!("{} elements", self.counts[i]);
            let count = t.param.numel() as usize;
            check.that(count == self.counts[i], &arg, count, &expected)?;
            check.disjoint(("param", &t.param), ("grad", &t.grad))?;
        }
        *outcome = self.paged.step(tensors, settings)?;
        Ok(())
    }

    /// Moments of tensor `index` after all steps, for a checkpoint.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such tensor; what a wait may return.
    pub fn moments(&self, index: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let (at, count) = self.place(index)?;
        let (mut m, mut v) = (vec![0.0; count], vec![0.0; count]);
        self.paged.read(at, &mut m, &mut v)?;
        Ok((m, v))
    }

    /// Overwrites the moments of tensor `index`, from a checkpoint.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such tensor, or for another number of elements.
    pub fn set_moments(&mut self, index: usize, m: &[f32], v: &[f32]) -> Result<()> {
        let (at, count) = self.place(index)?;
        let expected = format!("{count} elements");
        for (arg, moments) in [("m", m), ("v", v)] {
            let len = moments.len();
            Check("paged_adamw").that(len == count, arg, len, &expected)?;
        }
        self.paged.write(at, m, v)
    }

    /// First element of a tensor's moments, and their number.
    fn place(&self, index: usize) -> Result<(usize, usize)> {
        let count = self.counts.get(index).copied().ok_or_else(|| {
            let expected = format!("one of {} tensors", self.counts.len());
            Error::invalid("paged_adamw", "index", index, expected)
        })?;
        Ok((self.counts[..index].iter().sum(), count))
    }
}

impl fmt::Debug for PagedAdamW {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PagedAdamW({} tensors, chunks of {})", self.counts.len(), self.chunk)
    }
}
