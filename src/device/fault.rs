//! A driver that fails on request, for tests of error paths: it counts the calls that reach it,
//! fails chosen ones, and keeps book of what is alive.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::driver::*;

/// Which calls fail, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Index of the first call that fails, from 0.
    pub at: u64,
    /// Status it fails with.
    pub code: i32,
    /// Every later call fails as well.
    pub for_ever: bool,
}

/// What is alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Allocations that were not freed.
    pub allocations: i64,
    /// Modules that were not unloaded.
    pub modules: i64,
    /// Streams that were not destroyed.
    pub streams: i64,
    /// Events that were not destroyed.
    pub events: i64,
    /// Graphs that were not destroyed.
    pub graphs: i64,
    /// Allocations of pinned host memory that were not freed.
    pub pinned: i64,
}

#[derive(Default)]
struct Book {
    calls: Vec<&'static str>,
    fault: Option<Fault>,
    live: Live,
}

/// Wraps a driver; [`Driver`] calls are counted from 0 in the order in which they come.
pub struct FaultDriver {
    inner: Arc<dyn Driver>,
    book: Mutex<Book>,
}

impl FaultDriver {
    /// A wrapper that fails nothing yet.
    pub fn new(inner: Arc<dyn Driver>) -> FaultDriver {
        FaultDriver { inner, book: Mutex::default() }
    }

    /// Fails calls from now on, counted from the wrapper's first call.
    pub fn set(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
    }

    /// Names of all calls so far.
    pub fn calls(&self) -> Vec<&'static str> {
        self.lock().calls.clone()
    }

    /// What was made and not given back. A refused call changes nothing.
    pub fn live(&self) -> Live {
        self.lock().live
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, fails it if asked to, else makes it and enters it into the books.
    fn pass<R>(
        &self,
        call: &'static str,
        make: impl FnOnce(&dyn Driver) -> DriverResult<R>,
        enter: impl FnOnce(&mut Live),
    ) -> DriverResult<R> {
        let mut book = self.lock();
        let index = book.calls.len() as u64;
        book.calls.push(call);
        if let Some(fault) = book.fault
            && (index == fault.at || (fault.for_ever && index > fault.at))
        {
            return Err(DriverError {
                call,
                code: fault.code,
                text: format!("injected at call {index}"),
            });
        }
        let made = make(&*self.inner)?;
        enter(&mut book.live);
        Ok(made)
    }
}

impl fmt::Debug for FaultDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultDriver({:?})", self.inner)
    }
}

impl Driver for FaultDriver {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }
    fn alloc(&self, bytes: usize) -> DriverResult<u64> {
        self.pass("alloc", |d| d.alloc(bytes), |live| live.allocations += 1)
    }
    fn free(&self, ptr: u64) -> DriverResult<()> {
        self.pass("free", |d| d.free(ptr), |live| live.allocations -= 1)
    }
    fn upload(&self, stream: Stream, dst: u64, src: &[u8]) -> DriverResult<()> {
        self.pass("upload", |d| d.upload(stream, dst, src), |_| ())
    }
    fn download(&self, stream: Stream, dst: &mut [u8], src: u64) -> DriverResult<()> {
        self.pass("download", |d| d.download(stream, dst, src), |_| ())
    }
    fn copy(&self, stream: Stream, dst: u64, src: u64, bytes: usize) -> DriverResult<()> {
        self.pass("copy", |d| d.copy(stream, dst, src, bytes), |_| ())
    }
    fn fill(&self, stream: Stream, dst: u64, value: u8, bytes: usize) -> DriverResult<()> {
        self.pass("fill", |d| d.fill(stream, dst, value, bytes), |_| ())
    }
    fn alloc_pinned(&self, bytes: usize) -> DriverResult<*mut u8> {
        self.pass("alloc_pinned", |d| d.alloc_pinned(bytes), |live| live.pinned += 1)
    }
    unsafe fn free_pinned(&self, ptr: *mut u8) -> DriverResult<()> {
        // SAFETY: the caller's promise.
        self.pass("free_pinned", |d| unsafe { d.free_pinned(ptr) }, |live| live.pinned -= 1)
    }
    unsafe fn upload_async(
        &self,
        stream: Stream,
        dst: u64,
        src: *const u8,
        bytes: usize,
    ) -> DriverResult<()> {
        // SAFETY: the caller's promise.
        let make = |d: &dyn Driver| unsafe { d.upload_async(stream, dst, src, bytes) };
        self.pass("upload_async", make, |_| ())
    }
    unsafe fn download_async(
        &self,
        stream: Stream,
        dst: *mut u8,
        src: u64,
        bytes: usize,
    ) -> DriverResult<()> {
        // SAFETY: the caller's promise.
        let make = |d: &dyn Driver| unsafe { d.download_async(stream, dst, src, bytes) };
        self.pass("download_async", make, |_| ())
    }
    fn load(&self, name: &str, ptx: &str) -> DriverResult<Module> {
        self.pass("load", |d| d.load(name, ptx), |live| live.modules += 1)
    }
    fn unload(&self, module: Module) -> DriverResult<()> {
        self.pass("unload", |d| d.unload(module), |live| live.modules -= 1)
    }
    fn function(&self, module: Module, kernel: &str) -> DriverResult<Function> {
        self.pass("function", |d| d.function(module, kernel), |_| ())
    }
    fn launch(&self, stream: Stream, f: Function, grid: &Grid, params: &[u8]) -> DriverResult<()> {
        self.pass("launch", |d| d.launch(stream, f, grid, params), |_| ())
    }
    fn stream(&self) -> DriverResult<Stream> {
        self.pass("stream", |d| d.stream(), |live| live.streams += 1)
    }
    fn destroy_stream(&self, stream: Stream) -> DriverResult<()> {
        self.pass("destroy_stream", |d| d.destroy_stream(stream), |live| live.streams -= 1)
    }
    fn synchronize(&self, stream: Stream) -> DriverResult<()> {
        self.pass("synchronize", |d| d.synchronize(stream), |_| ())
    }
    fn event(&self) -> DriverResult<Event> {
        self.pass("event", |d| d.event(), |live| live.events += 1)
    }
    fn destroy_event(&self, event: Event) -> DriverResult<()> {
        self.pass("destroy_event", |d| d.destroy_event(event), |live| live.events -= 1)
    }
    fn record(&self, event: Event, stream: Stream) -> DriverResult<()> {
        self.pass("record", |d| d.record(event, stream), |_| ())
    }
    fn elapsed_ms(&self, start: Event, end: Event) -> DriverResult<f32> {
        self.pass("elapsed_ms", |d| d.elapsed_ms(start, end), |_| ())
    }
    fn wait_event(&self, stream: Stream, event: Event) -> DriverResult<()> {
        self.pass("wait_event", |d| d.wait_event(stream, event), |_| ())
    }
    fn begin_capture(&self, stream: Stream) -> DriverResult<()> {
        self.pass("begin_capture", |d| d.begin_capture(stream), |_| ())
    }
    /// A capture that cannot be turned into a graph has ended all the same.
    fn end_capture(&self, stream: Stream) -> DriverResult<Graph> {
        let ended = self.pass("end_capture", |d| d.end_capture(stream), |live| live.graphs += 1);
        if ended.is_err()
            && let Ok(graph) = self.inner.end_capture(stream)
        {
            self.inner.destroy_graph(graph)?;
        }
        ended
    }
    fn launch_graph(&self, stream: Stream, graph: Graph) -> DriverResult<()> {
        self.pass("launch_graph", |d| d.launch_graph(stream, graph), |_| ())
    }
    fn destroy_graph(&self, graph: Graph) -> DriverResult<()> {
        self.pass("destroy_graph", |d| d.destroy_graph(graph), |live| live.graphs -= 1)
    }
}
