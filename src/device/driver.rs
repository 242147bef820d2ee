//! What gradus asks of a GPU driver. Everything above this trait (kernels, launches, memory, tests)
//! is the same for the CUDA driver and for the emulator.

use std::fmt;

/// Result of a driver call.
pub type DriverResult<T> = std::result::Result<T, DriverError>;

/// A failed driver call, in the driver's own numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverError {
    /// The driver function.
    pub call: &'static str,
    /// Its status: `CUresult` values, for every implementation.
    pub code: i32,
    /// The driver's words.
    pub text: String,
}

impl DriverError {
    /// `CUDA_ERROR_INVALID_VALUE`.
    pub const INVALID_VALUE: i32 = 1;
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    pub const OUT_OF_MEMORY: i32 = 2;
    /// `CUDA_ERROR_INVALID_PTX`.
    pub const INVALID_PTX: i32 = 218;
    /// `CUDA_ERROR_INVALID_HANDLE`.
    pub const INVALID_HANDLE: i32 = 400;
    /// `CUDA_ERROR_NOT_FOUND`.
    pub const NOT_FOUND: i32 = 500;
    /// `CUDA_ERROR_ILLEGAL_ADDRESS`.
    pub const ILLEGAL_ADDRESS: i32 = 700;
    /// `CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES`.
    pub const LAUNCH_OUT_OF_RESOURCES: i32 = 701;
    /// `CUDA_ERROR_LAUNCH_FAILED`.
    pub const LAUNCH_FAILED: i32 = 719;
    /// `CUDA_ERROR_ILLEGAL_STATE`: the stream is in a capture already, or in none.
    pub const ILLEGAL_STATE: i32 = 401;
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`: not possible in a capture, which it spoils.
    pub const CAPTURE_UNSUPPORTED: i32 = 900;
    /// `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED`: an earlier error spoiled the capture.
    pub const CAPTURE_INVALIDATED: i32 = 901;
    /// `CUDA_ERROR_STREAM_CAPTURE_ISOLATION`: a capture cannot wait for work outside of it.
    pub const CAPTURE_ISOLATION: i32 = 907;
    /// `CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD`: the capture was begun by another thread.
    pub const CAPTURE_WRONG_THREAD: i32 = 908;

    /// True for errors that end the context: every later call on it fails as well.
    pub fn is_sticky(&self) -> bool {
        matches!(self.code, 4 | 214 | 700 | 702 | 710 | 714..=719 | 721 | 999)
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} returned {}: {}", self.call, self.code, self.text)
    }
}

/// What an implementation says of its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverInfo {
    /// Product name.
    pub name: String,
    /// Index among the devices of the machine.
    pub ordinal: i32,
    /// Compute capability, for example (9, 0).
    pub capability: (u32, u32),
    /// CUDA version the driver speaks, for example (12, 4).
    pub cuda: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory: u64,
    /// Most dynamic shared memory a block may opt in to, in bytes.
    pub shared_per_block: u32,
}

/// A queue of device work in program order. 0 is the default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub u64);

/// A loaded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Module(pub u64);

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub u64);

/// A point in a stream that can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// Recorded work of a stream that can be started again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub u64);

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block along x, y, z.
    pub threads: [u32; 3],
    /// Blocks of a cluster along x; 1 = no cluster.
    pub cluster: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared: u32,
}

impl Grid {
    /// `blocks` blocks of `threads` threads along x.
    pub fn linear(blocks: u32, threads: u32) -> Grid {
        Grid { blocks: [blocks, 1, 1], threads: [threads, 1, 1], cluster: 1, shared: 0 }
    }
}

/// A GPU driver: memory, modules, launches, streams and events of one device. Calls may come from
/// any thread. Nothing panics; a sticky error is returned by every later call as well.
pub trait Driver: Send + Sync + fmt::Debug {
    /// The device.
    fn info(&self) -> &DriverInfo;

    /// `bytes` > 0 bytes of device memory, aligned to 256.
    fn alloc(&self, bytes: usize) -> DriverResult<u64>;
    /// Gives back what [`alloc`](Driver::alloc) gave, once no work uses it.
    fn free(&self, ptr: u64) -> DriverResult<()>;

    /// Copies to the device in stream order; `src` may be reused when the call returns.
    fn upload(&self, stream: Stream, dst: u64, src: &[u8]) -> DriverResult<()>;
    /// Copies to the host after the stream's earlier work; `dst` is filled when the call returns.
    fn download(&self, stream: Stream, dst: &mut [u8], src: u64) -> DriverResult<()>;
    /// Copies within the device in stream order.
    fn copy(&self, stream: Stream, dst: u64, src: u64, bytes: usize) -> DriverResult<()>;
    /// Sets `bytes` bytes in stream order.
    fn fill(&self, stream: Stream, dst: u64, value: u8, bytes: usize) -> DriverResult<()>;

    /// `bytes` > 0 bytes of host memory, zeroed and aligned to 256, that the device copies without
    /// a detour.
    fn alloc_pinned(&self, bytes: usize) -> DriverResult<*mut u8>;
    /// Gives back what [`alloc_pinned`](Driver::alloc_pinned) gave.
    ///
    /// # Safety
    /// No copy that reads or writes the memory may be under way, nor come from a graph later, and
    /// the host may not use it any more.
    unsafe fn free_pinned(&self, ptr: *mut u8) -> DriverResult<()>;
    /// Copies from pinned memory to the device in stream order, and returns at once.
    ///
    /// # Safety
    /// `src` is the start of `bytes` bytes of pinned memory, which stays until the stream has
    /// passed; in a capture, as long as its graph is started.
    unsafe fn upload_async(
        &self,
        stream: Stream,
        dst: u64,
        src: *const u8,
        bytes: usize,
    ) -> DriverResult<()>;
    /// Copies from the device to pinned memory in stream order, and returns at once.
    ///
    /// # Safety
    /// As [`upload_async`](Driver::upload_async), for `dst`; meanwhile no reference to the memory
    /// exists.
    unsafe fn download_async(
        &self,
        stream: Stream,
        dst: *mut u8,
        src: u64,
        bytes: usize,
    ) -> DriverResult<()>;

    /// Loads PTX text; `name` appears in messages.
    fn load(&self, name: &str, ptx: &str) -> DriverResult<Module>;
    /// Unloads a module.
    fn unload(&self, module: Module) -> DriverResult<()>;
    /// A kernel by name.
    fn function(&self, module: Module, kernel: &str) -> DriverResult<Function>;
    /// Starts a kernel whose one parameter is the struct with these bytes.
    fn launch(&self, stream: Stream, f: Function, grid: &Grid, params: &[u8]) -> DriverResult<()>;

    /// A stream of its own.
    fn stream(&self) -> DriverResult<Stream>;
    /// Gives a stream back.
    fn destroy_stream(&self, stream: Stream) -> DriverResult<()>;
    /// Waits for all work of the stream; errors of kernels surface here at the latest.
    fn synchronize(&self, stream: Stream) -> DriverResult<()>;

    /// A new event.
    fn event(&self) -> DriverResult<Event>;
    /// Gives an event back.
    fn destroy_event(&self, event: Event) -> DriverResult<()>;
    /// Marks the stream's present end.
    fn record(&self, event: Event, stream: Stream) -> DriverResult<()>;
    /// What is given to the stream from here on starts after the work that the event marked when
    /// it was last recorded. The host does not wait.
    fn wait_event(&self, stream: Stream, event: Event) -> DriverResult<()>;
    /// Milliseconds between two recorded events, waiting for the second.
    fn elapsed_ms(&self, start: Event, end: Event) -> DriverResult<f32>;

    /// From here to [`end_capture`](Driver::end_capture), which the same thread has to call, the
    /// stream's work is recorded instead of done. Meanwhile that thread can neither allocate, free
    /// nor load, and nobody can wait for the stream: those calls return 900 and spoil the capture,
    /// whose later calls return 901. Other threads and streams are not concerned.
    fn begin_capture(&self, stream: Stream) -> DriverResult<()>;
    /// Ends the capture, whether it succeeds or not, and makes its work ready to be started. What
    /// [`upload`](Driver::upload) was given is a copy of the graph's own.
    fn end_capture(&self, stream: Stream) -> DriverResult<Graph>;
    /// Starts the recorded work in stream order.
    fn launch_graph(&self, stream: Stream, graph: Graph) -> DriverResult<()>;
    /// Gives a graph back, once its launches are done.
    fn destroy_graph(&self, graph: Graph) -> DriverResult<()>;
}
