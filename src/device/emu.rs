//! The emulated GPU: the shipped PTX, executed and checked on the CPU. Launches run to their end
//! before they return, so a stream is nothing but a name, unless work is to be done as late as it
//! may.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gradus_emu::{Counters, Kind, Machine, Module as EmuModule, Options, Shape};

use crate::device::driver::*;
use crate::device::host::HostAllocation;

mod streams;
mod timed;

use streams::{Streams, Work};
pub use timed::{TimedLaunch, TimedLaunches};

/// A GPU driver over the PTX emulator. Every finding of a detector is a sticky launch error whose
/// text names the kernel, the block, the warp and the PTX line.
pub struct EmuDriver {
    info: DriverInfo,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    machine: Machine,
    modules: HashMap<u64, (String, EmuModule)>,
    traced: HashSet<String>,
    functions: HashMap<u64, (u64, String)>,
    next: u64,
    /// Counters of each launch, by kernel, in order.
    launches: Vec<(String, Counters)>,
    /// Clusters to record of a launch, if launches are recorded and not run.
    samples: Option<u64>,
    wanted: TimedLaunches,
    in_graph: bool,
    timed: Vec<TimedLaunch>,
    broken: Option<DriverError>,
    streams: Streams,
    /// Pinned memory by its address.
    pinned: BTreeMap<usize, HostAllocation>,
}

impl EmuDriver {
    /// A device of compute capability 9.0 with the limits of an H100.
    pub fn new() -> EmuDriver {
        let info = DriverInfo {
            name: "emulator".to_string(),
            ordinal: 0,
            capability: (9, 0),
            cuda: (12, 4),
            multiprocessors: 132,
            memory: 80 << 30,
            shared_per_block: 232_448,
        };
        EmuDriver { info, state: Mutex::default() }
    }

    /// Shuffles the order of warps and blocks by a seed; 0 keeps their order.
    pub fn with_seed(self, seed: u64) -> EmuDriver {
        self.lock().machine.options.seed = seed;
        self
    }

    /// Changes how launches run.
    pub fn with_options(self, options: Options) -> EmuDriver {
        self.lock().machine.options = options;
        self
    }

    /// Does the work of a stream only when it is waited for, so that a missing wait between two
    /// streams, or between a stream and the host, shows. 0 does nothing that is not asked for; any
    /// other seed lets the streams overtake each other in an order of its own. Faults of kernels
    /// surface at the wait.
    pub fn with_late_streams(self, seed: u64) -> EmuDriver {
        self.lock().streams.late = Some(seed);
        self
    }

    /// Kernel and counters of every launch since the last call.
    pub fn take_launches(&self) -> Vec<(String, Counters)> {
        std::mem::take(&mut self.lock().launches)
    }

    /// Allocations that were not freed.
    pub fn live_allocations(&self) -> usize {
        self.lock().machine.memory.live()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, or the sticky error that ended the context.
    fn enter(&self) -> DriverResult<MutexGuard<'_, State>> {
        let state = self.lock();
        match &state.broken {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }

    /// As [`enter`](EmuDriver::enter), for calls that a capture of this thread does not allow.
    fn enter_outside(&self, call: &'static str) -> DriverResult<MutexGuard<'_, State>> {
        let mut state = self.enter()?;
        state.streams.refuse_here(call)?;
        Ok(state)
    }

    fn submit(&self, call: &'static str, stream: Stream, work: Work) -> DriverResult<()> {
        let mut state = self.enter()?;
        match state.streams.submit(call, stream, work)? {
            Some(work) => state.run(&work),
            None => Ok(()),
        }
    }
}

impl Default for EmuDriver {
    fn default() -> EmuDriver {
        EmuDriver::new()
    }
}

impl fmt::Debug for EmuDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmuDriver(seed {})", self.lock().machine.options.seed)
    }
}

fn error(call: &'static str, code: i32, text: impl Into<String>) -> DriverError {
    DriverError { call, code, text: text.into() }
}

/// PTX to run in place of the shipped one: `<GRADUS_EMU_PTX>/<op>.<set>.ptx`, for tests that plant
/// bugs in kernels.
fn replacement(name: &str) -> Option<String> {
    let folder = std::env::var_os("GRADUS_EMU_PTX")?;
    std::fs::read_to_string(std::path::Path::new(&folder).join(format!("{name}.ptx"))).ok()
}

/// Appends `<op>.<set> <kernel>` to the file `GRADUS_EMU_TRACE` once per device, so that a test run
/// can tell which of the shipped kernels it never executed.
fn trace(traced: &mut HashSet<String>, file: &str, kernel: &str) {
    let Some(path) = std::env::var_os("GRADUS_EMU_TRACE") else { return };
    let line = format!("{file} {kernel}\n");
    if traced.insert(line.clone()) {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = opened.and_then(|mut out| out.write_all(line.as_bytes()));
    }
}

fn invalid(call: &'static str, what: &str) -> DriverError {
    error(call, DriverError::INVALID_HANDLE, format!("no such {what}"))
}

impl State {
    fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Does a piece of work now.
    fn run(&mut self, work: &Work) -> DriverResult<()> {
        match work {
            Work::Upload { data, .. } if self.keeps_no(data.len()) => Ok(()),
            Work::Fill { bytes, .. } if self.keeps_no(*bytes) => Ok(()),
            Work::Upload { dst, data } => self.write("cuMemcpyHtoD", *dst, data),
            Work::UploadPinned { dst, src, bytes } => {
                let host = self.pinned("cuMemcpyHtoD", *src, *bytes)?;
                let mut data = vec![0; *bytes];
                // SAFETY: the block is alive and holds the bytes.
                unsafe { std::ptr::copy_nonoverlapping(host, data.as_mut_ptr(), *bytes) };
                self.write("cuMemcpyHtoD", *dst, &data)
            }
            Work::DownloadPinned { dst, src, bytes } => {
                let mut data = vec![0; *bytes];
                self.read("cuMemcpyDtoH", *src, &mut data)?;
                let host = self.pinned("cuMemcpyDtoH", *dst, *bytes)?;
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host, *bytes) };
                Ok(())
            }
            Work::Copy { dst, src, bytes } => {
                let mut data = vec![0; *bytes];
                let memory = &mut self.machine.memory;
                let done =
                    memory.host_read(*src, &mut data).and_then(|()| memory.host_write(*dst, &data));
                done.map_err(|f| error("cuMemcpyDtoD", DriverError::INVALID_VALUE, f.message))
            }
            Work::Fill { dst, value, bytes } => {
                self.write("cuMemsetD8", *dst, &vec![*value; *bytes])
            }
            Work::Launch { function, grid, params } => self.launch(*function, grid, params),
            Work::Graph(work) => {
                self.in_graph = true;
                let done = work.iter().try_for_each(|work| self.run(work));
                self.in_graph = false;
                done
            }
            Work::Record(record) => {
                self.streams.pass(*record);
                Ok(())
            }
            Work::Wait(_) => Ok(()),
        }
    }

    /// Whether operands of so many bytes are left out. They are weights or their gradients, on whose values
    /// no time depends; what is looked up (ids, offsets, tables of pages) is smaller.
    fn keeps_no(&self, bytes: usize) -> bool {
        self.samples.is_some() && bytes >= timed::VALUES
    }

    /// Does all work that the stream holds.
    fn drain(&mut self, stream: Stream) -> DriverResult<()> {
        while let Some(work) = self.streams.next_for(stream) {
            self.run(&work)?;
        }
        Ok(())
    }

    fn write(&mut self, call: &'static str, dst: u64, data: &[u8]) -> DriverResult<()> {
        let done = self.machine.memory.host_write(dst, data);
        done.map_err(|f| error(call, DriverError::INVALID_VALUE, f.message))
    }

    fn read(&mut self, call: &'static str, src: u64, data: &mut [u8]) -> DriverResult<()> {
        let done = self.machine.memory.host_read(src, data);
        done.map_err(|f| match f.kind {
            // Bytes that no kernel wrote are a kernel's fault, found late.
            Kind::Uninitialized => error(call, DriverError::LAUNCH_FAILED, f.message),
            _ => error(call, DriverError::INVALID_VALUE, f.message),
        })
    }

    /// The bytes of pinned memory at `at`, which may have been freed since they were named.
    fn pinned(&self, call: &'static str, at: usize, bytes: usize) -> DriverResult<*mut u8> {
        let inside = |found: &(&usize, &HostAllocation)| {
            at.checked_add(bytes).is_some_and(|end| end <= found.0 + found.1.bytes())
        };
        let found = self.pinned.range(..=at).next_back().filter(inside);
        let none =
            || error(call, DriverError::INVALID_VALUE, format!("{at:#x} is not in pinned memory"));
        // SAFETY: inside the block.
        found.map(|(start, block)| unsafe { block.ptr().add(at - start) }).ok_or_else(none)
    }

    fn launch(&mut self, function: u64, grid: &Grid, params: &[u8]) -> DriverResult<()> {
        let missing = || invalid("cuLaunchKernel", "function");
        let (module, kernel) = self.functions.get(&function).ok_or_else(missing)?;
        let (file, module) = self.modules.get(module).ok_or_else(missing)?;
        let program = module.program(kernel).map_err(|_| missing())?;
        trace(&mut self.traced, file, kernel);
        let shape = Shape {
            blocks: grid.blocks,
            threads: grid.threads,
            cluster: grid.cluster,
            shared: grid.shared,
        };
        if let Some(samples) = self.samples {
            let wanted = match self.wanted {
                TimedLaunches::Nothing => false,
                TimedLaunches::OfGraphs => self.in_graph,
                TimedLaunches::All => true,
            };
            if !wanted {
                return Ok(());
            }
            let registers = timed::registers(file, kernel)?;
            let recorded = self.machine.record(program, &shape, params, samples);
            let (counters, record) = recorded
                .map_err(|f| error("cuLaunchKernel", DriverError::INVALID_VALUE, f.to_string()))?;
            self.timed.push(TimedLaunch { kernel: kernel.clone(), counters, record, registers });
            return Ok(());
        }
        match self.machine.launch(program, &shape, params) {
            Ok(counters) => {
                self.launches.push((kernel.clone(), counters));
                Ok(())
            }
            Err(fault) => {
                let code = match fault.kind {
                    Kind::Launch => DriverError::INVALID_VALUE,
                    Kind::OutOfBounds => DriverError::ILLEGAL_ADDRESS,
                    _ => DriverError::LAUNCH_FAILED,
                };
                let failed = error("cuLaunchKernel", code, fault.to_string());
                if failed.is_sticky() {
                    self.broken = Some(failed.clone());
                }
                Err(failed)
            }
        }
    }
}

impl Driver for EmuDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize) -> DriverResult<u64> {
        let mut state = self.enter_outside("cuMemAlloc")?;
        let free = self.info.memory.saturating_sub(state.machine.memory.live_bytes);
        if bytes == 0 || bytes as u64 > free {
            let code =
                if bytes == 0 { DriverError::INVALID_VALUE } else { DriverError::OUT_OF_MEMORY };
            return Err(error("cuMemAlloc", code, format!("{bytes} bytes of {free}")));
        }
        let name = format!("buffer {}", state.handle());
        Ok(state.machine.memory.alloc(&name, bytes))
    }

    fn free(&self, ptr: u64) -> DriverResult<()> {
        match self.enter_outside("cuMemFree")?.machine.memory.free(ptr) {
            true => Ok(()),
            false => Err(error(
                "cuMemFree",
                DriverError::INVALID_VALUE,
                format!("no allocation at {ptr:#x}"),
            )),
        }
    }

    fn upload(&self, stream: Stream, dst: u64, src: &[u8]) -> DriverResult<()> {
        self.submit("cuMemcpyHtoD", stream, Work::Upload { dst, data: src.to_vec() })
    }

    fn download(&self, stream: Stream, dst: &mut [u8], src: u64) -> DriverResult<()> {
        let mut state = self.enter()?;
        state.streams.refuse_in("cuMemcpyDtoH", stream, DriverError::CAPTURE_UNSUPPORTED)?;
        state.drain(stream)?;
        state.read("cuMemcpyDtoH", src, dst)
    }

    fn copy(&self, stream: Stream, dst: u64, src: u64, bytes: usize) -> DriverResult<()> {
        self.submit("cuMemcpyDtoD", stream, Work::Copy { dst, src, bytes })
    }

    fn fill(&self, stream: Stream, dst: u64, value: u8, bytes: usize) -> DriverResult<()> {
        self.submit("cuMemsetD8", stream, Work::Fill { dst, value, bytes })
    }

    fn alloc_pinned(&self, bytes: usize) -> DriverResult<*mut u8> {
        let mut state = self.enter_outside("cuMemHostAlloc")?;
        let none = || error("cuMemHostAlloc", DriverError::OUT_OF_MEMORY, format!("{bytes} bytes"));
        let block = HostAllocation::new(bytes).ok_or_else(none)?;
        let ptr = block.ptr();
        state.pinned.insert(ptr as usize, block);
        Ok(ptr)
    }

    unsafe fn free_pinned(&self, ptr: *mut u8) -> DriverResult<()> {
        match self.enter_outside("cuMemFreeHost")?.pinned.remove(&(ptr as usize)) {
            Some(_) => Ok(()),
            None => Err(error("cuMemFreeHost", DriverError::INVALID_VALUE, "not pinned memory")),
        }
    }

    unsafe fn upload_async(
        &self,
        stream: Stream,
        dst: u64,
        src: *const u8,
        bytes: usize,
    ) -> DriverResult<()> {
        let src = src as usize;
        self.enter()?.pinned("cuMemcpyHtoD", src, bytes)?;
        self.submit("cuMemcpyHtoD", stream, Work::UploadPinned { dst, src, bytes })
    }

    unsafe fn download_async(
        &self,
        stream: Stream,
        dst: *mut u8,
        src: u64,
        bytes: usize,
    ) -> DriverResult<()> {
        let dst = dst as usize;
        self.enter()?.pinned("cuMemcpyDtoH", dst, bytes)?;
        self.submit("cuMemcpyDtoH", stream, Work::DownloadPinned { dst, src, bytes })
    }

    fn load(&self, name: &str, ptx: &str) -> DriverResult<Module> {
        let mut state = self.enter_outside("cuModuleLoadData")?;
        let replaced = replacement(name);
        let ptx = replaced.as_deref().unwrap_or(ptx);
        let module = EmuModule::load(ptx, &mut state.machine);
        let module = module.map_err(|e| {
            error("cuModuleLoadData", DriverError::INVALID_PTX, format!("{name}: {e}"))
        })?;
        let handle = state.handle();
        state.modules.insert(handle, (name.to_string(), module));
        Ok(Module(handle))
    }

    fn unload(&self, module: Module) -> DriverResult<()> {
        match self.enter_outside("cuModuleUnload")?.modules.remove(&module.0) {
            Some(_) => Ok(()),
            None => Err(invalid("cuModuleUnload", "module")),
        }
    }

    fn function(&self, module: Module, kernel: &str) -> DriverResult<Function> {
        let mut state = self.enter()?;
        let found = state.modules.get(&module.0).map(|(_, m)| m.program(kernel).map(|_| ()));
        match found {
            Some(Ok(())) => {
                let handle = state.handle();
                state.functions.insert(handle, (module.0, kernel.to_string()));
                Ok(Function(handle))
            }
            Some(Err(text)) => Err(error("cuModuleGetFunction", DriverError::NOT_FOUND, text)),
            None => Err(invalid("cuModuleGetFunction", "module")),
        }
    }

    fn launch(&self, stream: Stream, f: Function, grid: &Grid, params: &[u8]) -> DriverResult<()> {
        if !self.enter()?.functions.contains_key(&f.0) {
            return Err(invalid("cuLaunchKernel", "function"));
        }
        let work = Work::Launch { function: f.0, grid: *grid, params: params.to_vec() };
        self.submit("cuLaunchKernel", stream, work)
    }

    fn stream(&self) -> DriverResult<Stream> {
        Ok(Stream(self.enter()?.handle()))
    }

    /// What the stream holds is still done.
    fn destroy_stream(&self, stream: Stream) -> DriverResult<()> {
        self.enter()?.drain(stream)
    }

    fn synchronize(&self, stream: Stream) -> DriverResult<()> {
        let mut state = self.enter()?;
        state.streams.refuse_in("cuStreamSynchronize", stream, DriverError::CAPTURE_UNSUPPORTED)?;
        state.drain(stream)
    }

    fn event(&self) -> DriverResult<Event> {
        Ok(Event(self.enter()?.handle()))
    }

    fn destroy_event(&self, _: Event) -> DriverResult<()> {
        self.enter().map(|_| ())
    }

    /// Captures that spread over streams by events are not emulated.
    fn record(&self, event: Event, stream: Stream) -> DriverResult<()> {
        let mut state = self.enter()?;
        state.streams.refuse_in("cuEventRecord", stream, DriverError::CAPTURE_UNSUPPORTED)?;
        let record = state.streams.record(event);
        drop(state);
        self.submit("cuEventRecord", stream, record)
    }

    fn wait_event(&self, stream: Stream, event: Event) -> DriverResult<()> {
        let mut state = self.enter()?;
        state.streams.refuse_in("cuStreamWaitEvent", stream, DriverError::CAPTURE_ISOLATION)?;
        let Some(record) = state.streams.recorded(event) else { return Ok(()) };
        drop(state);
        self.submit("cuStreamWaitEvent", stream, Work::Wait(record))
    }

    /// Time does not pass on the emulator; its counters are the measure.
    fn elapsed_ms(&self, _: Event, end: Event) -> DriverResult<f32> {
        let mut state = self.enter()?;
        if let Some(record) = state.streams.recorded(end) {
            while let Some(work) = state.streams.next_before(record) {
                state.run(&work)?;
            }
        }
        Ok(0.0)
    }

    fn begin_capture(&self, stream: Stream) -> DriverResult<()> {
        self.enter()?.streams.begin_capture(stream)
    }

    fn end_capture(&self, stream: Stream) -> DriverResult<Graph> {
        let mut state = self.enter()?;
        let handle = state.handle();
        state.streams.end_capture(stream, handle)
    }

    fn launch_graph(&self, stream: Stream, graph: Graph) -> DriverResult<()> {
        let mut state = self.enter()?;
        state.streams.refuse_in("cuGraphLaunch", stream, DriverError::CAPTURE_UNSUPPORTED)?;
        let work = state.streams.graph(graph)?;
        drop(state);
        self.submit("cuGraphLaunch", stream, work)
    }

    fn destroy_graph(&self, graph: Graph) -> DriverResult<()> {
        self.enter()?.streams.destroy_graph(graph)
    }
}
