//! One GPU as ops see it: a driver, a stream, the loaded kernels and the scratch memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::NoUninit;

use crate::device::context::{Allocation, Context};
use crate::device::driver::{Driver, DriverInfo, DriverResult, Function, Grid, Module, Stream};
use crate::device::kernels::{self, KernelSet, Kernels};
use crate::device::scratch::{PoolGuard, ScratchPool};
use crate::error::{Error, Result};

/// Bytes of scratch memory for results that go to the host.
const RESULTS: usize = 4096;

/// A GPU with one stream. Launches never allocate once the scratch memory has its size, and never
/// synchronize: only copies of host memory do.
pub struct Gpu {
    pub(super) context: Arc<Context>,
    owns_stream: bool,
    kernel_set: KernelSet,
    kernels: Arc<Loaded>,
    /// Memory of launches, and of ops that are made of other ops. Who holds both took the second
    /// first.
    scratch: Mutex<ScratchPool>,
    workspace: Mutex<ScratchPool>,
}

/// The kernels that were loaded, for all streams of a device.
struct Loaded {
    context: Arc<Context>,
    /// The kernels of each PTX text, by its address: texts live as long as the program.
    sources: Mutex<HashMap<usize, Source>>,
    modules: Mutex<Vec<Module>>,
}

/// The kernels of one PTX text by name.
type Source = HashMap<&'static str, Kernel>;

/// A loaded kernel.
#[derive(Clone, Copy)]
struct Kernel {
    function: Function,
    /// Bytes of its parameter struct; `None` if it takes anything else.
    params: Option<usize>,
}

impl Loaded {
    fn new(context: &Arc<Context>) -> Arc<Loaded> {
        let (sources, modules) = (Mutex::default(), Mutex::default());
        Arc::new(Loaded { context: context.clone(), sources, modules })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for module in std::mem::take(&mut *lock(&self.modules)) {
            let _ = self.context.call(|d| d.unload(module));
        }
    }
}

impl Gpu {
    /// A GPU on a stream of its own.
    pub fn new(driver: Arc<dyn Driver>) -> Result<Gpu> {
        KernelSet::for_capability(driver.info().capability)?;
        let context = Context::new(driver, Stream(0));
        let stream = context.call(|d| d.stream())?;
        let mut gpu = Gpu::on_stream(context.driver, stream)?;
        gpu.owns_stream = true;
        Ok(gpu)
    }

    /// A GPU whose work goes to a stream that somebody else owns.
    pub fn on_stream(driver: Arc<dyn Driver>, stream: Stream) -> Result<Gpu> {
        let kernel_set = KernelSet::for_capability(driver.info().capability)?;
        let context = Arc::new(Context::new(driver, stream));
        Ok(Gpu {
            kernels: Loaded::new(&context),
            context,
            owns_stream: false,
            kernel_set,
            scratch: Mutex::default(),
            workspace: Mutex::default(),
        })
    }

    /// A GPU on another stream of this device, which somebody else owns. Loaded kernels are shared,
    /// scratch memory is not.
    pub fn for_stream(&self, stream: Stream) -> Gpu {
        Gpu {
            context: Arc::new(Context::new(self.context.driver.clone(), stream)),
            owns_stream: false,
            kernel_set: self.kernel_set,
            kernels: self.kernels.clone(),
            scratch: Mutex::default(),
            workspace: Mutex::default(),
        }
    }

    /// Runs the kernels of another set than the one that fits best, for tests of both.
    pub fn with_kernel_set(mut self, kernel_set: KernelSet) -> Result<Gpu> {
        kernel_set.check(self.context.driver.info().capability)?;
        self.kernel_set = kernel_set;
        self.kernels = Loaded::new(&self.context);
        Ok(self)
    }

    /// The device.
    pub fn info(&self) -> &DriverInfo {
        self.context.driver.info()
    }

    /// Which PTX is loaded.
    pub fn kernel_set(&self) -> KernelSet {
        self.kernel_set
    }

    /// The stream all work goes to.
    pub fn stream(&self) -> Stream {
        self.context.stream
    }

    /// One driver call. After a sticky error nothing reaches the driver any more.
    pub fn call<R>(&self, body: impl FnOnce(&dyn Driver) -> DriverResult<R>) -> Result<R> {
        self.context.call(body)
    }

    /// `bytes` bytes of device memory.
    pub(crate) fn alloc(&self, what: &str, bytes: usize) -> Result<u64> {
        self.context.alloc(what, bytes)
    }

    /// Gives memory back. A lost device has nothing to give it back to.
    pub(crate) fn free(&self, ptr: u64) {
        self.context.free(ptr);
    }

    /// Waits until all work of the stream is done.
    ///
    /// # Errors
    /// What the work failed with; `Unsupported` while the stream is captured.
    pub fn synchronize(&self) -> Result<()> {
        self.context.synchronize()
    }

    /// Grows the scratch memory to `bytes` and what results for the host take, so that no launch
    /// that needs as much allocates.
    pub fn reserve_scratch(&self, bytes: usize) -> Result<()> {
        self.lock_scratch().take(bytes.saturating_add(RESULTS)).map(|_| ())
    }

    /// Grows the memory of ops that are made of other ops, such as `linear_logprob`, to `bytes` bytes.
    pub fn reserve_workspace(&self, bytes: usize) -> Result<()> {
        self.lock_workspace().take(bytes).map(|_| ())
    }

    /// The scratch memory, for one op.
    pub(super) fn lock_scratch(&self) -> PoolGuard<'_> {
        PoolGuard::new(&self.context, &self.scratch)
    }

    /// The workspace, for one op that is made of others.
    pub(super) fn lock_workspace(&self) -> PoolGuard<'_> {
        PoolGuard::new(&self.context, &self.workspace)
    }

    /// Starts a kernel with one parameter struct, whose size has to be the kernel's.
    pub(crate) fn launch(
        &self,
        kernels: &Kernels,
        kernel: &str,
        grid: Grid,
        params: &impl NoUninit,
    ) -> Result<()> {
        self.launch_bytes(kernels, kernel, grid, bytemuck::bytes_of(params))
    }

    /// Starts a kernel with the bytes of its parameter struct.
    pub(super) fn launch_bytes(
        &self,
        kernels: &Kernels,
        kernel: &str,
        grid: Grid,
        bytes: &[u8],
    ) -> Result<()> {
        let found = self.kernel(kernels, kernel)?;
        let op = kernels.name();
        let Some(expected) = found.params else {
            let reason = format!("kernel `{kernel}` does not take exactly one parameter struct");
            return Err(Error::Unsupported { op, reason });
        };
        if bytes.len() != expected {
            let expected = format!("{expected} bytes, as kernel `{kernel}` takes");
            return Err(Error::invalid(op, "params", format!("{} bytes", bytes.len()), expected));
        }
        self.call(|d| d.launch(self.stream(), found.function, &grid, bytes))
    }

    fn kernel(&self, kernels: &Kernels, kernel: &str) -> Result<Kernel> {
        let mut sources = lock(&self.kernels.sources);
        let (set, ptx) = kernels.ptx(self.kernel_set)?;
        let source = match sources.entry(ptx.as_ptr() as usize) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => place.insert(self.load(kernels.name(), kernel, set, ptx)?),
        };
        source.get(kernel).copied().ok_or_else(|| Error::Unsupported {
            op: kernels.name(),
            reason: format!("its PTX for {} has no kernel `{kernel}`", set.name()),
        })
    }

    /// Loads a PTX text because `kernel` is wanted.
    fn load(
        &self,
        op: &'static str,
        kernel: &str,
        set: KernelSet,
        ptx: &'static str,
    ) -> Result<Source> {
        self.context.outside(|| format!("kernel `{kernel}` has to be loaded"))?;
        let module = self.call(|d| d.load(&format!("{op}.{}", set.name()), ptx))?;
        lock(&self.kernels.modules).push(module);
        let load = |entry: kernels::Entry| {
            let function = self.call(|d| d.function(module, entry.name))?;
            Ok((entry.name, Kernel { function, params: entry.params }))
        };
        kernels::entries(ptx).map(load).collect()
    }

    /// The memory that launches reuse, for graphs that hold its addresses.
    pub(super) fn pooled_memory(&self) -> Vec<Arc<Allocation>> {
        lock(&self.scratch).allocations().chain(lock(&self.workspace).allocations()).collect()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.synchronize();
        *lock(&self.scratch) = ScratchPool::default();
        *lock(&self.workspace) = ScratchPool::default();
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
