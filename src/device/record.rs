//! A driver that writes down what it is asked, so that a test can say: this step allocates nothing,
//! waits once, and starts so many kernels.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::device::driver::*;
use crate::device::gpu::lock;

/// One driver call. Numbers are bytes unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Call {
    Alloc(usize),
    Free,
    AllocPinned(usize),
    FreePinned,
    Upload(usize),
    Download(usize),
    UploadAsync(usize),
    DownloadAsync(usize),
    Copy(usize),
    Fill(usize),
    /// Name of the PTX.
    Load(String),
    Unload,
    /// Name of the kernel.
    Function(String),
    /// Name of the kernel.
    Launch(String),
    Stream,
    DestroyStream,
    Synchronize,
    Event,
    DestroyEvent,
    Record,
    WaitEvent,
    /// A wait for the second event.
    Elapsed,
    BeginCapture,
    EndCapture,
    /// Number of kernels that the graph starts.
    LaunchGraph(usize),
    DestroyGraph,
}

impl Call {
    /// True for calls that give or take memory, of the device or pinned.
    pub fn is_memory(&self) -> bool {
        matches!(self, Call::Alloc(_) | Call::Free | Call::AllocPinned(_) | Call::FreePinned)
    }

    /// True for calls in which the host waits for the device: [`Driver::download`] does.
    pub fn is_wait(&self) -> bool {
        matches!(self, Call::Synchronize | Call::Download(_) | Call::Elapsed)
    }
}

#[derive(Default)]
struct Book {
    calls: Vec<Call>,
    kernels: HashMap<Function, String>,
    /// Kernels of captures, and of the graphs that became of them.
    capturing: HashMap<Stream, usize>,
    graphs: HashMap<Graph, usize>,
}

/// Wraps a driver and logs every call, whether it succeeds or not.
pub struct RecordingDriver {
    inner: Arc<dyn Driver>,
    book: Mutex<Book>,
}

impl RecordingDriver {
    /// A wrapper with an empty log.
    pub fn new(inner: Arc<dyn Driver>) -> RecordingDriver {
        RecordingDriver { inner, book: Mutex::default() }
    }

    /// The calls since the last `take`, in order.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.book).calls)
    }

    fn log(&self, call: Call) -> &dyn Driver {
        lock(&self.book).calls.push(call);
        &*self.inner
    }
}

impl fmt::Debug for RecordingDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordingDriver({:?})", self.inner)
    }
}

impl Driver for RecordingDriver {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }
    fn alloc(&self, bytes: usize) -> DriverResult<u64> {
        self.log(Call::Alloc(bytes)).alloc(bytes)
    }
    fn free(&self, ptr: u64) -> DriverResult<()> {
        self.log(Call::Free).free(ptr)
    }
    fn upload(&self, stream: Stream, dst: u64, src: &[u8]) -> DriverResult<()> {
        self.log(Call::Upload(src.len())).upload(stream, dst, src)
    }
    fn download(&self, stream: Stream, dst: &mut [u8], src: u64) -> DriverResult<()> {
        self.log(Call::Download(dst.len())).download(stream, dst, src)
    }
    fn copy(&self, stream: Stream, dst: u64, src: u64, bytes: usize) -> DriverResult<()> {
        self.log(Call::Copy(bytes)).copy(stream, dst, src, bytes)
    }
    fn fill(&self, stream: Stream, dst: u64, value: u8, bytes: usize) -> DriverResult<()> {
        self.log(Call::Fill(bytes)).fill(stream, dst, value, bytes)
    }
    fn alloc_pinned(&self, bytes: usize) -> DriverResult<*mut u8> {
        self.log(Call::AllocPinned(bytes)).alloc_pinned(bytes)
    }
    unsafe fn free_pinned(&self, ptr: *mut u8) -> DriverResult<()> {
        // SAFETY: the caller's promise.
        unsafe { self.log(Call::FreePinned).free_pinned(ptr) }
    }
    unsafe fn upload_async(
        &self,
        stream: Stream,
        dst: u64,
        src: *const u8,
        bytes: usize,
    ) -> DriverResult<()> {
        // SAFETY: the caller's promise.
        unsafe { self.log(Call::UploadAsync(bytes)).upload_async(stream, dst, src, bytes) }
    }
    unsafe fn download_async(
        &self,
        stream: Stream,
        dst: *mut u8,
        src: u64,
        bytes: usize,
    ) -> DriverResult<()> {
        // SAFETY: the caller's promise.
        unsafe { self.log(Call::DownloadAsync(bytes)).download_async(stream, dst, src, bytes) }
    }
    fn load(&self, name: &str, ptx: &str) -> DriverResult<Module> {
        self.log(Call::Load(name.to_string())).load(name, ptx)
    }
    fn unload(&self, module: Module) -> DriverResult<()> {
        self.log(Call::Unload).unload(module)
    }
    fn function(&self, module: Module, kernel: &str) -> DriverResult<Function> {
        let function = self.log(Call::Function(kernel.to_string())).function(module, kernel)?;
        lock(&self.book).kernels.insert(function, kernel.to_string());
        Ok(function)
    }
    fn launch(&self, stream: Stream, f: Function, grid: &Grid, params: &[u8]) -> DriverResult<()> {
        let mut book = lock(&self.book);
        let kernel = book.kernels.get(&f).cloned().unwrap_or_default();
        book.calls.push(Call::Launch(kernel));
        book.capturing.entry(stream).and_modify(|launches| *launches += 1);
        drop(book);
        self.inner.launch(stream, f, grid, params)
    }
    fn stream(&self) -> DriverResult<Stream> {
        self.log(Call::Stream).stream()
    }
    fn destroy_stream(&self, stream: Stream) -> DriverResult<()> {
        self.log(Call::DestroyStream).destroy_stream(stream)
    }
    fn synchronize(&self, stream: Stream) -> DriverResult<()> {
        self.log(Call::Synchronize).synchronize(stream)
    }
    fn event(&self) -> DriverResult<Event> {
        self.log(Call::Event).event()
    }
    fn destroy_event(&self, event: Event) -> DriverResult<()> {
        self.log(Call::DestroyEvent).destroy_event(event)
    }
    fn record(&self, event: Event, stream: Stream) -> DriverResult<()> {
        self.log(Call::Record).record(event, stream)
    }
    fn wait_event(&self, stream: Stream, event: Event) -> DriverResult<()> {
        self.log(Call::WaitEvent).wait_event(stream, event)
    }
    fn elapsed_ms(&self, start: Event, end: Event) -> DriverResult<f32> {
        self.log(Call::Elapsed).elapsed_ms(start, end)
    }
    fn begin_capture(&self, stream: Stream) -> DriverResult<()> {
        self.log(Call::BeginCapture).begin_capture(stream)?;
        lock(&self.book).capturing.insert(stream, 0);
        Ok(())
    }
    fn end_capture(&self, stream: Stream) -> DriverResult<Graph> {
        let ended = self.log(Call::EndCapture).end_capture(stream);
        let mut book = lock(&self.book);
        let launches = book.capturing.remove(&stream).unwrap_or(0);
        let graph = ended?;
        book.graphs.insert(graph, launches);
        Ok(graph)
    }
    fn launch_graph(&self, stream: Stream, graph: Graph) -> DriverResult<()> {
        let launches = lock(&self.book).graphs.get(&graph).copied().unwrap_or(0);
        self.log(Call::LaunchGraph(launches)).launch_graph(stream, graph)
    }
    fn destroy_graph(&self, graph: Graph) -> DriverResult<()> {
        self.log(Call::DestroyGraph).destroy_graph(graph)
    }
}
