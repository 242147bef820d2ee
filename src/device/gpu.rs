//! One GPU as ops see it: a driver, a stream, the loaded kernels and the scratch memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use crate::device::driver::{Driver, DriverInfo, DriverResult, Function, Grid, Module, Stream};
use crate::device::link::{Block, Link};
use crate::device::module::{self, KernelSet};
use crate::error::{Error, Result};

/// A GPU with one stream. Launches never allocate once the scratch memory has its size, and never
/// synchronise: only staging of host memory does.
pub struct Gpu {
    pub(super) link: Arc<Link>,
    owns_stream: bool,
    kernel_set: KernelSet,
    kernels: Mutex<HashMap<String, Function>>,
    modules: Mutex<Vec<Module>>,
    scratch: Mutex<Scratch>,
}

/// Bytes before the scratch memory that hold tickets.
const TICKETS: usize = 256;

/// Memory for partial results, reused by every launch of the stream in order.
#[derive(Default)]
struct Scratch {
    block: Option<Arc<Block>>,
    bytes: usize,
}

impl Gpu {
    /// A GPU on a stream of its own.
    pub fn new(driver: Arc<dyn Driver>) -> Result<Gpu> {
        KernelSet::for_capability(driver.info().capability)?;
        let link = Link::new(driver, Stream(0));
        let stream = link.call(|d| d.stream())?;
        let mut gpu = Gpu::on_stream(link.driver, stream)?;
        gpu.owns_stream = true;
        Ok(gpu)
    }

    /// A GPU whose work goes to a stream that somebody else owns.
    pub fn on_stream(driver: Arc<dyn Driver>, stream: Stream) -> Result<Gpu> {
        let kernel_set = KernelSet::for_capability(driver.info().capability)?;
        Ok(Gpu {
            link: Arc::new(Link::new(driver, stream)),
            owns_stream: false,
            kernel_set,
            kernels: Mutex::default(),
            modules: Mutex::default(),
            scratch: Mutex::default(),
        })
    }

    /// Runs the kernels of another set than the one that fits best, for tests of both.
    pub fn with_kernel_set(mut self, kernel_set: KernelSet) -> Result<Gpu> {
        kernel_set.check(self.link.driver.info().capability)?;
        self.kernel_set = kernel_set;
        Ok(self)
    }

    /// The device.
    pub fn info(&self) -> &DriverInfo {
        self.link.driver.info()
    }

    /// Which PTX is loaded.
    pub fn kernel_set(&self) -> KernelSet {
        self.kernel_set
    }

    /// The stream all work goes to.
    pub fn stream(&self) -> Stream {
        self.link.stream
    }

    /// One driver call. After a sticky error nothing reaches the driver any more.
    pub fn call<R>(&self, body: impl FnOnce(&dyn Driver) -> DriverResult<R>) -> Result<R> {
        self.link.call(body)
    }

    /// `bytes` bytes of device memory.
    pub(crate) fn alloc(&self, what: &str, bytes: usize) -> Result<u64> {
        self.link.alloc(what, bytes)
    }

    /// Gives memory back. A lost device has nothing to give it back to.
    pub(crate) fn free(&self, ptr: u64) {
        self.link.free(ptr);
    }

    /// Waits until all work of the stream is done.
    ///
    /// # Errors
    /// What the work failed with; `Unsupported` while the stream is captured.
    pub fn synchronize(&self) -> Result<()> {
        self.link.synchronize()
    }

    /// Grows the scratch memory to `bytes`, so that no launch that needs as much allocates.
    pub fn reserve_scratch(&self, bytes: usize) -> Result<()> {
        self.scratch(bytes).map(|_| ())
    }

    /// A ticket and at least `bytes` bytes that stay this launch's until the guard falls. Their content is
    /// whatever the last launch left.
    pub(crate) fn scratch(&self, bytes: usize) -> Result<ScratchGuard<'_>> {
        let mut scratch = lock(&self.scratch);
        if bytes > scratch.bytes {
            // Growing by powers of two bounds the number of growths by the logarithm of the need.
            let size = bytes.next_power_of_two().max(1 << 16);
            let block = Arc::new(Block::new(&self.link, "scratch memory", size + TICKETS)?);
            self.call(|d| d.fill(self.stream(), block.ptr, 0, TICKETS))?;
            // Earlier launches may still use the old memory.
            if scratch.block.is_some() {
                self.synchronize()?;
            }
            *scratch = Scratch { block: Some(block), bytes: size };
        }
        Ok(ScratchGuard(scratch))
    }

    /// Starts kernel `kernel` of `kernels/<op>.cu` with one parameter struct.
    pub(crate) fn launch(
        &self,
        op: &'static str,
        kernel: &str,
        grid: Grid,
        params: &impl Pod,
    ) -> Result<()> {
        let function = self.kernel(op, kernel)?;
        self.call(|d| d.launch(self.stream(), function, &grid, bytemuck::bytes_of(params)))
    }

    fn kernel(&self, op: &'static str, kernel: &str) -> Result<Function> {
        let mut kernels = lock(&self.kernels);
        if let Some(&function) = kernels.get(kernel) {
            return Ok(function);
        }
        self.link.outside(|| format!("kernel `{kernel}` has to be loaded"))?;
        let ptx = module::ptx(op, self.kernel_set)?;
        let file = format!("{op}.{}", self.kernel_set.name());
        let module = self.call(|d| d.load(&file, ptx))?;
        lock(&self.modules).push(module);
        for name in module::kernel_names(ptx) {
            let function = self.call(|d| d.function(module, name))?;
            kernels.insert(name.to_string(), function);
        }
        kernels.get(kernel).copied().ok_or_else(|| Error::Unsupported {
            op,
            reason: format!("kernels/{op}.cu has no kernel `{kernel}`"),
        })
    }

    /// The memory that launches reuse, for graphs that hold its addresses.
    pub(super) fn reused_memory(&self) -> Vec<Arc<Block>> {
        lock(&self.scratch).block.iter().cloned().collect()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.synchronize();
        *lock(&self.scratch) = Scratch::default();
        for module in std::mem::take(&mut *lock(&self.modules)) {
            let _ = self.call(|d| d.unload(module));
        }
        if self.owns_stream {
            let _ = self.call(|d| d.destroy_stream(self.stream()));
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({}, {} kernels)", self.info().name, self.kernel_set.name())
    }
}

/// Scratch memory on loan.
pub(crate) struct ScratchGuard<'a>(MutexGuard<'a, Scratch>);

impl ScratchGuard<'_> {
    /// Device address of the bytes, aligned to 256.
    pub fn ptr(&self) -> u64 {
        self.ticket() + TICKETS as u64
    }

    /// Device address of a `u32` that is 0, for kernels whose last block finishes the work; they
    /// leave it at 0.
    pub fn ticket(&self) -> u64 {
        self.0.block.as_ref().map_or(0, |block| block.ptr)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
