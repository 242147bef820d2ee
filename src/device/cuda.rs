//! The CUDA driver, loaded at run time. A machine without it, or with one that is too old, gets an
//! error that says so; nothing here links against CUDA or panics.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys as cu;

use crate::device::driver::*;
use crate::device::{Device, GpuProbe, probe_gpu};
use crate::error::{Error, Result};

/// Oldest driver API that has everything used here: cluster launches came with 11.8, and PTX 8.4
/// with 12.4.
const OLDEST: (u32, u32) = (12, 4);

/// Every function used here. cudarc looks functions up at their first use and panics if one is
/// missing, so all are looked up before the first.
const FUNCTIONS: [&str; 39] = [
    "cuInit",
    "cuGetErrorString",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuStreamWaitEvent",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
];

/// Dynamic shared memory that needs no opt-in.
const FREE_SHARED: u32 = 48 << 10;

impl Device {
    /// The CUDA device with this ordinal.
    ///
    /// # Errors
    /// `NoDriver` if there is no driver, it is too old, or it has no such device;
    /// `InvalidArgument` for a device older than compute capability 8.0.
    pub fn cuda(ordinal: i32) -> Result<Device> {
        Device::gpu(Arc::new(CudaDriver::open(ordinal)?))
    }
}

/// `cuEventElapsedTime`, version 1: the newest bindings only have version 2, older drivers only 1.
type Elapsed = unsafe extern "C" fn(*mut f32, cu::CUevent, cu::CUevent) -> cu::CUresult;

/// A CUDA device through its primary context, the one that torch and the CUDA runtime use.
pub struct CudaDriver {
    info: DriverInfo,
    device: cu::CUdevice,
    context: cu::CUcontext,
    elapsed: Elapsed,
    /// Dynamic shared memory that a function has opted in to.
    opted_in: Mutex<HashMap<u64, u32>>,
    /// Copies of what was uploaded in a capture, by stream and then by graph: a graph reads them
    /// whenever it is started.
    capturing: Mutex<HashMap<u64, Vec<Box<[u8]>>>>,
    captured: Mutex<HashMap<u64, Vec<Box<[u8]>>>>,
}

// SAFETY: contexts, modules, streams and events may be used from any thread; every call makes the
// context current on its own thread first.
unsafe impl Send for CudaDriver {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for CudaDriver {}

impl CudaDriver {
    /// Opens a device.
    pub fn open(ordinal: i32) -> Result<CudaDriver> {
        let path = match probe_gpu() {
            GpuProbe::Library(path) => path,
            GpuProbe::Missing(names) if names.is_empty() => {
                return Err(Error::NoDriver { reason: GpuProbe::Missing(names).to_string() });
            }
            GpuProbe::Missing(names) => {
                let reason = format!(
                    "{} not found; install the NVIDIA driver (no CUDA toolkit is needed)",
                    names.join(", ")
                );
                return Err(Error::NoDriver { reason });
            }
        };
        let elapsed = check_symbols(&path)?;
        // SAFETY: cuInit may be called any number of times.
        none(unsafe { cu::cuInit(0) }, "cuInit")?;
        let version = version()?;
        if version < OLDEST {
            let reason = format!(
                "the driver speaks CUDA {}.{}, expected {}.{} or newer",
                version.0, version.1, OLDEST.0, OLDEST.1
            );
            return Err(Error::NoDriver { reason });
        }
        let device = device(ordinal)?;
        let info = describe(device, ordinal, version)?;
        let mut context = null_mut();
        // SAFETY: the device is valid; the context is released on drop.
        let status = unsafe { cu::cuDevicePrimaryCtxRetain(&mut context, device) };
        none(status, "cuDevicePrimaryCtxRetain")?;
        Ok(CudaDriver {
            info,
            device,
            context,
            elapsed,
            opted_in: Mutex::default(),
            capturing: Mutex::default(),
            captured: Mutex::default(),
        })
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> DriverResult<()> {
        // SAFETY: the context is retained as long as self lives.
        check("cuCtxSetCurrent", unsafe { cu::cuCtxSetCurrent(self.context) })
    }

    /// Opts a function in to more dynamic shared memory than every block has, once.
    fn opt_in(&self, function: Function, shared: u32) -> DriverResult<()> {
        let mut opted_in = lock(&self.opted_in);
        let has = opted_in.entry(function.0).or_insert(FREE_SHARED);
        if shared <= *has {
            return Ok(());
        }
        let attribute = cu::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function handle came from `function` of this driver.
        let status = unsafe { cu::cuFuncSetAttribute(function.0 as _, attribute, shared as c_int) };
        check("cuFuncSetAttribute", status)?;
        *has = shared;
        Ok(())
    }
}

/// An executable graph of a captured one, which is given back.
fn instantiate(graph: cu::CUgraph) -> DriverResult<cu::CUgraphExec> {
    let mut ready = null_mut();
    // SAFETY: the graph came from a capture and is used here only.
    unsafe {
        let status = cu::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
        let _ = cu::cuGraphDestroy(graph);
        check("cuGraphInstantiateWithFlags", status)?;
    }
    Ok(ready)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`.
        let _ = unsafe { cu::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl fmt::Debug for CudaDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDriver({})", self.info.name)
    }
}

/// An error unless the library has every function that is used; returns the one that is called
/// without cudarc.
fn check_symbols(path: &str) -> Result<Elapsed> {
    let no_driver = |reason: String| Error::NoDriver { reason };
    // SAFETY: loading the driver runs its initializers, which every CUDA program does.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|e| no_driver(format!("{path} cannot be loaded: {e}")))?;
    for name in FUNCTIONS {
        // SAFETY: the symbol is only looked up, not used.
        let found = unsafe { library.get::<*const c_void>(name.as_bytes()) };
        found.map_err(|_| no_driver(format!("{path} has no {name}: the driver is too old")))?;
    }
    // SAFETY: the driver's own signature.
    let elapsed = unsafe { library.get::<Elapsed>(b"cuEventElapsedTime") }
        .map(|symbol| *symbol)
        .map_err(|e| no_driver(e.to_string()))?;
    // Unloading the driver of a process that uses it is not supported.
    std::mem::forget(library);
    Ok(elapsed)
}

fn version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: writes one integer.
    none(unsafe { cu::cuDriverGetVersion(&mut version) }, "cuDriverGetVersion")?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

fn device(ordinal: i32) -> Result<cu::CUdevice> {
    let (mut count, mut device) = (0, 0);
    // SAFETY: writes one integer.
    none(unsafe { cu::cuDeviceGetCount(&mut count) }, "cuDeviceGetCount")?;
    if !(0..count).contains(&ordinal) {
        let reason = format!("device {ordinal} of {count}");
        return Err(Error::NoDriver { reason });
    }
    // SAFETY: the ordinal is in range.
    none(unsafe { cu::cuDeviceGet(&mut device, ordinal) }, "cuDeviceGet")?;
    Ok(device)
}

fn describe(device: cu::CUdevice, ordinal: i32, cuda: (u32, u32)) -> Result<DriverInfo> {
    use cu::CUdevice_attribute::*;
    let attribute = |which| -> Result<u32> {
        let mut value = 0;
        // SAFETY: the device is valid; writes one integer.
        let status = unsafe { cu::cuDeviceGetAttribute(&mut value, which, device) };
        none(status, "cuDeviceGetAttribute")?;
        Ok(value as u32)
    };
    let (mut name, mut memory) = ([0 as c_char; 256], 0usize);
    // SAFETY: writes at most 256 bytes, NUL-terminated, and one size.
    unsafe {
        none(cu::cuDeviceGetName(name.as_mut_ptr(), 256, device), "cuDeviceGetName")?;
        none(cu::cuDeviceTotalMem_v2(&mut memory, device), "cuDeviceTotalMem")?;
    }
    // SAFETY: NUL-terminated by the driver.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    Ok(DriverInfo {
        name,
        ordinal,
        capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        cuda,
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: memory as u64,
        shared_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

/// A driver that cannot even be opened is no driver.
fn none(status: cu::CUresult, call: &'static str) -> Result<()> {
    check(call, status).map_err(|error| Error::NoDriver { reason: error.to_string() })
}

fn check(call: &'static str, status: cu::CUresult) -> DriverResult<()> {
    if status == cu::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(DriverError { call, code: status as i32, text: text_of(status) })
}

fn text_of(status: cu::CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the driver stores a static string, or nothing for a status it does not know.
    unsafe {
        if cu::cuGetErrorString(status, &mut text) == cu::CUresult::CUDA_SUCCESS && !text.is_null()
        {
            return CStr::from_ptr(text).to_string_lossy().into_owned();
        }
    }
    "unknown status".to_string()
}

fn c_string(call: &'static str, text: &str) -> DriverResult<CString> {
    CString::new(text).map_err(|_| DriverError {
        call,
        code: DriverError::INVALID_VALUE,
        text: "text with a NUL byte".to_string(),
    })
}

// SAFETY of the calls below: the context is current; handles and addresses come from this driver, as
// the trait asks; slices are valid for their length.
impl Driver for CudaDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    /// From `cuMemAlloc`, not from a stream's pool: buffers live long, and a pool would need every
    /// free to be ordered after the stream that used it.
    fn alloc(&self, bytes: usize) -> DriverResult<u64> {
        self.enter()?;
        let mut ptr = 0;
        // SAFETY: see above.
        check("cuMemAlloc", unsafe { cu::cuMemAlloc_v2(&mut ptr, bytes) })?;
        Ok(ptr)
    }

    fn free(&self, ptr: u64) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuMemFree", unsafe { cu::cuMemFree_v2(ptr) })
    }

    /// Pageable memory is copied to a staging buffer before the call returns; in a capture, to a
    /// copy that belongs to the graph.
    fn upload(&self, stream: Stream, dst: u64, src: &[u8]) -> DriverResult<()> {
        self.enter()?;
        let copied = lock(&self.capturing).get_mut(&stream.0).map(|copies| {
            let copy: Box<[u8]> = src.into();
            let at = copy.as_ptr();
            copies.push(copy);
            at
        });
        let (data, len) = (copied.unwrap_or(src.as_ptr()) as *const c_void, src.len());
        // SAFETY: see above.
        let status = unsafe { cu::cuMemcpyHtoDAsync_v2(dst, data, len, stream.0 as _) };
        check("cuMemcpyHtoDAsync", status)
    }

    fn download(&self, stream: Stream, dst: &mut [u8], src: u64) -> DriverResult<()> {
        self.enter()?;
        if lock(&self.capturing).contains_key(&stream.0) {
            // A recorded copy to `dst` would write there long after this call. The wait is what is
            // not possible, and it spoils the capture.
            return self.synchronize(stream);
        }
        let (data, len) = (dst.as_mut_ptr() as *mut c_void, dst.len());
        // SAFETY: see above; dst outlives the copy because the stream is waited for.
        let status = unsafe { cu::cuMemcpyDtoHAsync_v2(data, src, len, stream.0 as _) };
        check("cuMemcpyDtoHAsync", status)?;
        self.synchronize(stream)
    }

    fn copy(&self, stream: Stream, dst: u64, src: u64, bytes: usize) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        let status = unsafe { cu::cuMemcpyDtoDAsync_v2(dst, src, bytes, stream.0 as _) };
        check("cuMemcpyDtoDAsync", status)
    }

    fn fill(&self, stream: Stream, dst: u64, value: u8, bytes: usize) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuMemsetD8Async", unsafe { cu::cuMemsetD8Async(dst, value, bytes, stream.0 as _) })
    }

    /// Portable: pinned for every context, so that any of them may free it.
    fn alloc_pinned(&self, bytes: usize) -> DriverResult<*mut u8> {
        self.enter()?;
        let mut ptr = null_mut();
        // SAFETY: see above; 1 is `CU_MEMHOSTALLOC_PORTABLE`.
        check("cuMemHostAlloc", unsafe { cu::cuMemHostAlloc(&mut ptr, bytes, 1) })?;
        // SAFETY: the driver gave `bytes` bytes.
        unsafe { std::ptr::write_bytes(ptr as *mut u8, 0, bytes) };
        Ok(ptr as *mut u8)
    }

    unsafe fn free_pinned(&self, ptr: *mut u8) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        check("cuMemFreeHost", unsafe { cu::cuMemFreeHost(ptr as *mut c_void) })
    }

    unsafe fn upload_async(
        &self,
        stream: Stream,
        dst: u64,
        src: *const u8,
        bytes: usize,
    ) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let status = unsafe { cu::cuMemcpyHtoDAsync_v2(dst, src as _, bytes, stream.0 as _) };
        check("cuMemcpyHtoDAsync", status)
    }

    unsafe fn download_async(
        &self,
        stream: Stream,
        dst: *mut u8,
        src: u64,
        bytes: usize,
    ) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let status = unsafe { cu::cuMemcpyDtoHAsync_v2(dst as _, src, bytes, stream.0 as _) };
        check("cuMemcpyDtoHAsync", status)
    }

    /// The error text holds the compiler's log.
    fn load(&self, name: &str, ptx: &str) -> DriverResult<Module> {
        self.enter()?;
        let text = c_string("cuModuleLoadDataEx", ptx)?;
        let mut log = vec![0u8; 4096];
        let mut options = [
            cu::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            cu::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [log.as_mut_ptr() as *mut c_void, log.len() as *mut c_void];
        let mut module = null_mut();
        // SAFETY: see above; options and values have two entries each.
        let status = unsafe {
            let image = text.as_ptr() as *const c_void;
            cu::cuModuleLoadDataEx(&mut module, image, 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        check("cuModuleLoadDataEx", status).map_err(|error| {
            let log: Vec<u8> = log.into_iter().take_while(|&b| b != 0).collect();
            let text = format!("{name}: {} {}", error.text, String::from_utf8_lossy(&log));
            DriverError { text: text.trim().to_string(), ..error }
        })?;
        Ok(Module(module as u64))
    }

    fn unload(&self, module: Module) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuModuleUnload", unsafe { cu::cuModuleUnload(module.0 as _) })
    }

    fn function(&self, module: Module, kernel: &str) -> DriverResult<Function> {
        self.enter()?;
        let name = c_string("cuModuleGetFunction", kernel)?;
        let mut function = null_mut();
        // SAFETY: see above.
        let status =
            unsafe { cu::cuModuleGetFunction(&mut function, module.0 as _, name.as_ptr()) };
        check("cuModuleGetFunction", status)?;
        Ok(Function(function as u64))
    }

    fn launch(&self, stream: Stream, f: Function, grid: &Grid, params: &[u8]) -> DriverResult<()> {
        self.enter()?;
        self.opt_in(f, grid.shared)?;
        // SAFETY: all-zero bytes are a valid union of numbers.
        let mut value: cu::CUlaunchAttributeValue_union = unsafe { std::mem::zeroed() };
        value.clusterDim =
            cu::CUlaunchAttributeValue_union__bindgen_ty_1 { x: grid.cluster, y: 1, z: 1 };
        let id = cu::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        let mut attribute = cu::CUlaunchAttribute_st { id, pad: [0; 4], value };
        let config = cu::CUlaunchConfig_st {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: grid.blocks[2],
            blockDimX: grid.threads[0],
            blockDimY: grid.threads[1],
            blockDimZ: grid.threads[2],
            sharedMemBytes: grid.shared,
            hStream: stream.0 as _,
            attrs: &mut attribute,
            numAttrs: (grid.cluster > 1) as u32,
        };
        // The driver copies the parameter before it returns.
        let mut pointers = [params.as_ptr() as *mut c_void];
        // SAFETY: see above; the kernel has one parameter of exactly these bytes, which the
        // emulator checks for every kernel and every caller.
        let status =
            unsafe { cu::cuLaunchKernelEx(&config, f.0 as _, pointers.as_mut_ptr(), null_mut()) };
        check("cuLaunchKernelEx", status)
    }

    fn stream(&self) -> DriverResult<Stream> {
        self.enter()?;
        let mut stream = null_mut();
        // SAFETY: see above. 0 = ordered with the legacy default stream.
        check("cuStreamCreate", unsafe { cu::cuStreamCreate(&mut stream, 0) })?;
        Ok(Stream(stream as u64))
    }

    fn destroy_stream(&self, stream: Stream) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuStreamDestroy", unsafe { cu::cuStreamDestroy_v2(stream.0 as _) })
    }

    fn synchronize(&self, stream: Stream) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuStreamSynchronize", unsafe { cu::cuStreamSynchronize(stream.0 as _) })
    }

    fn event(&self) -> DriverResult<Event> {
        self.enter()?;
        let mut event = null_mut();
        // SAFETY: see above. 0 = with timing.
        check("cuEventCreate", unsafe { cu::cuEventCreate(&mut event, 0) })?;
        Ok(Event(event as u64))
    }

    fn destroy_event(&self, event: Event) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuEventDestroy", unsafe { cu::cuEventDestroy_v2(event.0 as _) })
    }

    fn record(&self, event: Event, stream: Stream) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuEventRecord", unsafe { cu::cuEventRecord(event.0 as _, stream.0 as _) })
    }

    fn elapsed_ms(&self, start: Event, end: Event) -> DriverResult<f32> {
        self.enter()?;
        let mut ms = 0.0;
        // SAFETY: see above.
        unsafe {
            check("cuEventSynchronize", cu::cuEventSynchronize(end.0 as _))?;
            check("cuEventElapsedTime", (self.elapsed)(&mut ms, start.0 as _, end.0 as _))?;
        }
        Ok(ms)
    }

    fn wait_event(&self, stream: Stream, event: Event) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above. 0 = the default.
        let status = unsafe { cu::cuStreamWaitEvent(stream.0 as _, event.0 as _, 0) };
        check("cuStreamWaitEvent", status)
    }

    fn begin_capture(&self, stream: Stream) -> DriverResult<()> {
        self.enter()?;
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: see above.
        let status = unsafe { cu::cuStreamBeginCapture_v2(stream.0 as _, mode) };
        check("cuStreamBeginCapture", status)?;
        lock(&self.capturing).insert(stream.0, Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> DriverResult<Graph> {
        self.enter()?;
        let mut graph = null_mut();
        // SAFETY: see above.
        let status = unsafe { cu::cuStreamEndCapture(stream.0 as _, &mut graph) };
        if status == cu::CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD {
            // Another thread's call does not end the capture.
            check("cuStreamEndCapture", status)?;
        }
        let copies = lock(&self.capturing).remove(&stream.0).unwrap_or_default();
        check("cuStreamEndCapture", status)?;
        let ready = instantiate(graph)? as u64;
        lock(&self.captured).insert(ready, copies);
        Ok(Graph(ready))
    }

    fn launch_graph(&self, stream: Stream, graph: Graph) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuGraphLaunch", unsafe { cu::cuGraphLaunch(graph.0 as _, stream.0 as _) })
    }

    fn destroy_graph(&self, graph: Graph) -> DriverResult<()> {
        self.enter()?;
        // SAFETY: see above.
        check("cuGraphExecDestroy", unsafe { cu::cuGraphExecDestroy(graph.0 as _) })?;
        lock(&self.captured).remove(&graph.0);
        Ok(())
    }
}
