//! A driver that executes nothing and has no memory: the code of a model runs on it and leaves
//! behind how much memory it asked for and which kernels it started.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Mutex;

use crate::device::driver::*;
use crate::device::gpu::lock;
use crate::device::host::HostAllocation;

/// First address that is handed out.
const FIRST: u64 = 1 << 32;

/// Alignment of addresses.
const ALIGN: u64 = 256;

/// What was asked of a [`DryDriver`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of device memory that were not given back.
    pub live: u64,
    /// Most bytes that were live at a time. Drivers round every allocation up, which is not
    /// counted.
    pub peak: u64,
    /// Allocations of device memory that were not given back.
    pub allocations: u64,
    /// Bytes of pinned host memory that were not given back.
    pub pinned: u64,
    /// Most pinned bytes at a time.
    pub pinned_peak: u64,
    /// Launches by kernel, those of graphs included.
    pub launches: BTreeMap<String, u64>,
}

#[derive(Default)]
struct Book {
    usage: Usage,
    handles: u64,
    top: u64,
    allocated: HashMap<u64, u64>,
    pinned: HashMap<usize, HostAllocation>,
    kernels: HashMap<Function, String>,
    capturing: HashMap<Stream, Vec<String>>,
    graphs: HashMap<Graph, Vec<String>>,
}

/// Executes nothing. Downloads give zeros; memory never runs out.
pub struct DryDriver {
    info: DriverInfo,
    book: Mutex<Book>,
}

impl DryDriver {
    /// A driver that says this of its device.
    pub fn new(info: DriverInfo) -> DryDriver {
        DryDriver { info, book: Mutex::default() }
    }

    /// What was asked up to now.
    pub fn usage(&self) -> Usage {
        lock(&self.book).usage.clone()
    }

    /// Forgets the launches, and lets the peaks start from what is live.
    pub fn restart(&self) {
        let usage = &mut lock(&self.book).usage;
        (usage.peak, usage.pinned_peak) = (usage.live, usage.pinned);
        usage.launches.clear();
    }
}

impl Book {
    fn handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    fn count(&mut self, kernel: String) {
        *self.usage.launches.entry(kernel).or_default() += 1;
    }
}

fn invalid(call: &'static str, text: &str) -> DriverError {
    DriverError { call, code: DriverError::INVALID_VALUE, text: text.to_string() }
}

impl fmt::Debug for DryDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DryDriver({})", self.info.name)
    }
}

impl Driver for DryDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }
    fn alloc(&self, bytes: usize) -> DriverResult<u64> {
        let book = &mut *lock(&self.book);
        let (at, bytes) = (FIRST.max(book.top), bytes as u64);
        let end = at.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGN));
        let (Some(end), true) = (end, bytes > 0) else {
            return Err(invalid("cuMemAlloc", "not a number of bytes"));
        };
        book.top = end;
        book.allocated.insert(at, bytes);
        let usage = &mut book.usage;
        (usage.live, usage.allocations) = (usage.live + bytes, usage.allocations + 1);
        usage.peak = usage.peak.max(usage.live);
        Ok(at)
    }
    fn free(&self, ptr: u64) -> DriverResult<()> {
        let book = &mut *lock(&self.book);
        let bytes = book.allocated.remove(&ptr);
        let bytes = bytes.ok_or_else(|| invalid("cuMemFree", "no allocation there"))?;
        book.usage.live -= bytes;
        book.usage.allocations -= 1;
        Ok(())
    }
    fn upload(&self, _: Stream, _: u64, _: &[u8]) -> DriverResult<()> {
        Ok(())
    }
    fn download(&self, _: Stream, dst: &mut [u8], _: u64) -> DriverResult<()> {
        dst.fill(0);
        Ok(())
    }
    fn copy(&self, _: Stream, _: u64, _: u64, _: usize) -> DriverResult<()> {
        Ok(())
    }
    fn fill(&self, _: Stream, _: u64, _: u8, _: usize) -> DriverResult<()> {
        Ok(())
    }
    /// The memory is there, because the host looks at it; the system backs it at its first use.
    fn alloc_pinned(&self, bytes: usize) -> DriverResult<*mut u8> {
        let book = &mut *lock(&self.book);
        let block = HostAllocation::new(bytes).ok_or_else(|| DriverError {
            code: DriverError::OUT_OF_MEMORY,
            ..invalid("cuMemHostAlloc", "no such amount of host memory")
        })?;
        let ptr = block.ptr();
        book.pinned.insert(ptr as usize, block);
        book.usage.pinned += bytes as u64;
        book.usage.pinned_peak = book.usage.pinned_peak.max(book.usage.pinned);
        Ok(ptr)
    }
    unsafe fn free_pinned(&self, ptr: *mut u8) -> DriverResult<()> {
        let book = &mut *lock(&self.book);
        let block = book.pinned.remove(&(ptr as usize));
        let block = block.ok_or_else(|| invalid("cuMemFreeHost", "not pinned memory"))?;
        book.usage.pinned -= block.bytes() as u64;
        Ok(())
    }
    unsafe fn upload_async(&self, _: Stream, _: u64, _: *const u8, _: usize) -> DriverResult<()> {
        Ok(())
    }
    /// Gives zeros, as a download does.
    unsafe fn download_async(
        &self,
        _: Stream,
        dst: *mut u8,
        _: u64,
        bytes: usize,
    ) -> DriverResult<()> {
        // SAFETY: the caller promises `bytes` bytes that nobody refers to.
        unsafe { std::ptr::write_bytes(dst, 0, bytes) };
        Ok(())
    }
    fn load(&self, _: &str, _: &str) -> DriverResult<Module> {
        Ok(Module(lock(&self.book).handle()))
    }
    fn unload(&self, _: Module) -> DriverResult<()> {
        Ok(())
    }
    fn function(&self, _: Module, kernel: &str) -> DriverResult<Function> {
        let book = &mut *lock(&self.book);
        let function = Function(book.handle());
        book.kernels.insert(function, kernel.to_string());
        Ok(function)
    }
    fn launch(&self, stream: Stream, f: Function, _: &Grid, _: &[u8]) -> DriverResult<()> {
        let book = &mut *lock(&self.book);
        let kernel = book.kernels.get(&f).cloned();
        let kernel = kernel.ok_or_else(|| invalid("cuLaunchKernel", "no such function"))?;
        match book.capturing.get_mut(&stream) {
            Some(kernels) => kernels.push(kernel),
            None => book.count(kernel),
        }
        Ok(())
    }
    fn stream(&self) -> DriverResult<Stream> {
        Ok(Stream(lock(&self.book).handle()))
    }
    fn destroy_stream(&self, _: Stream) -> DriverResult<()> {
        Ok(())
    }
    fn synchronize(&self, _: Stream) -> DriverResult<()> {
        Ok(())
    }
    fn event(&self) -> DriverResult<Event> {
        Ok(Event(lock(&self.book).handle()))
    }
    fn destroy_event(&self, _: Event) -> DriverResult<()> {
        Ok(())
    }
    fn record(&self, _: Event, _: Stream) -> DriverResult<()> {
        Ok(())
    }
    fn wait_event(&self, _: Stream, _: Event) -> DriverResult<()> {
        Ok(())
    }
    fn elapsed_ms(&self, _: Event, _: Event) -> DriverResult<f32> {
        Ok(0.0)
    }
    fn begin_capture(&self, stream: Stream) -> DriverResult<()> {
        lock(&self.book).capturing.insert(stream, Vec::new());
        Ok(())
    }
    fn end_capture(&self, stream: Stream) -> DriverResult<Graph> {
        let book = &mut *lock(&self.book);
        let kernels = book.capturing.remove(&stream);
        let kernels = kernels.ok_or_else(|| DriverError {
            code: DriverError::ILLEGAL_STATE,
            ..invalid("cuStreamEndCapture", "the stream is in no capture")
        })?;
        let graph = Graph(book.handle());
        book.graphs.insert(graph, kernels);
        Ok(graph)
    }
    fn launch_graph(&self, _: Stream, graph: Graph) -> DriverResult<()> {
        let book = &mut *lock(&self.book);
        let kernels = book.graphs.get(&graph).cloned();
        let kernels = kernels.ok_or_else(|| invalid("cuGraphLaunch", "no such graph"))?;
        kernels.into_iter().for_each(|kernel| book.count(kernel));
        Ok(())
    }
    fn destroy_graph(&self, graph: Graph) -> DriverResult<()> {
        lock(&self.book).graphs.remove(&graph);
        Ok(())
    }
}
