//! The state that every owner of device memory or kernels shares: the driver, the stream, whether the
//! device is lost, and what cannot be done while the stream is captured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::device::driver::{Driver, DriverError, DriverResult, Stream};
use crate::device::gpu::lock;
use crate::device::graph::Captured;
use crate::device::pinned::PinnedAllocation;
use crate::error::{Error, Result};

/// One stream of one device.
pub(super) struct Context {
    pub driver: Arc<dyn Driver>,
    pub stream: Stream,
    lost: OnceLock<String>,
    /// `Some` while the stream's work is recorded instead of done.
    capture: Mutex<Option<Captured>>,
    /// Waits for the stream that were begun, and the last of them that ended.
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Context {
    pub fn new(driver: Arc<dyn Driver>, stream: Stream) -> Context {
        Context {
            driver,
            stream,
            lost: OnceLock::new(),
            capture: Mutex::default(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }
    }

    /// One driver call. After a sticky error nothing reaches the driver any more.
    pub fn call<R>(&self, body: impl FnOnce(&dyn Driver) -> DriverResult<R>) -> Result<R> {
        if let Some(reason) = self.lost.get() {
            return Err(Error::DeviceLost { reason: reason.clone() });
        }
        body(&*self.driver).map_err(|error| self.translate(error))
    }

    fn translate(&self, error: DriverError) -> Error {
        let reason = error.to_string();
        if error.is_sticky() {
            let _ = self.lost.set(reason.clone());
            return Error::DeviceLost { reason };
        }
        Error::Driver { call: error.call, code: error.code, reason: error.text }
    }

    /// `bytes` bytes of device memory.
    pub fn alloc(&self, what: &str, bytes: usize) -> Result<u64> {
        self.outside(|| format!("{what} needs {bytes} bytes of device memory"))?;
        self.call(|d| d.alloc(bytes)).map_err(|error| match error {
            Error::Driver { code: DriverError::OUT_OF_MEMORY, .. } => {
                Error::OutOfMemory { what: what.to_string(), bytes: bytes as u64 }
            }
            other => other,
        })
    }

    /// Gives memory back: now, or with the graph whose work may use it. A lost device has nothing
    /// to give it back to.
    pub fn free(&self, ptr: u64) {
        if let Some(captured) = &mut *lock(&self.capture) {
            captured.freed.push(ptr);
            return;
        }
        let _ = self.call(|d| d.free(ptr));
    }

    /// Waits until all work of the stream is done.
    pub fn synchronize(&self) -> Result<()> {
        self.outside(|| "a wait for the stream".to_string())?;
        let wait = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        self.call(|d| d.synchronize(self.stream))?;
        self.ended.fetch_max(wait, Ordering::SeqCst);
        Ok(())
    }

    /// The wait after which what the stream was given up to now is done.
    pub fn next_wait(&self) -> u64 {
        self.begun.load(Ordering::SeqCst) + 1
    }

    /// True if that wait has ended.
    pub fn has_waited(&self, wait: u64) -> bool {
        self.ended.load(Ordering::SeqCst) >= wait
    }

    /// True while the stream is captured.
    pub fn is_capturing(&self) -> bool {
        lock(&self.capture).is_some()
    }

    /// An error while the stream is captured; `need` says what for. The driver would refuse too,
    /// but spoil the capture and not say what to do.
    pub fn outside(&self, need: impl FnOnce() -> String) -> Result<()> {
        if !self.is_capturing() {
            return Ok(());
        }
        let reason = format!(
            "{}, which a capture cannot give: operands have to be in device memory, results \
             have to stay there, and the same calls have to have run once before",
            need()
        );
        Err(Error::Unsupported { op: "capture", reason })
    }

    /// Begins to record the stream's work.
    pub fn begin_capture(&self) -> Result<()> {
        self.outside(|| "another capture".to_string())?;
        self.call(|d| d.begin_capture(self.stream))?;
        *lock(&self.capture) = Some(Captured::default());
        Ok(())
    }

    /// Nothing is recorded any more; what was to be kept for the graph.
    pub fn leave_capture(&self) -> Captured {
        lock(&self.capture).take().unwrap_or_default()
    }

    /// Keeps pinned memory as long as the graph that copies from it or to it.
    pub fn keep_pinned(&self, memory: &Arc<PinnedAllocation>) {
        if let Some(captured) = &mut *lock(&self.capture) {
            captured.pinned.push(memory.clone());
        }
    }
}

/// Device memory that several owners share; it is freed with the last of them.
pub(super) struct Allocation {
    context: Arc<Context>,
    pub ptr: u64,
    pub bytes: usize,
}

impl Allocation {
    pub fn new(context: &Arc<Context>, what: &str, bytes: usize) -> Result<Allocation> {
        Ok(Allocation { ptr: context.alloc(what, bytes)?, context: context.clone(), bytes })
    }

    /// Takes over memory that was allocated elsewhere.
    pub fn adopt(context: &Arc<Context>, ptr: u64) -> Allocation {
        Allocation { context: context.clone(), ptr, bytes: 0 }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.context.free(self.ptr);
    }
}
