//! The emulated GPU: the shipped PTX, executed and checked on the CPU. Launches run to their end
//! before they return, so a stream is nothing but a name.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gradus_emu::{Counters, Kind, Machine, Module as EmuModule, Options, Shape};

use crate::device::driver::*;

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
    broken: Option<DriverError>,
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

impl State {
    fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Driver for EmuDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize) -> DriverResult<u64> {
        let mut state = self.enter()?;
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
        match self.enter()?.machine.memory.free(ptr) {
            true => Ok(()),
            false => Err(error(
                "cuMemFree",
                DriverError::INVALID_VALUE,
                format!("no allocation at {ptr:#x}"),
            )),
        }
    }

    fn upload(&self, _: Stream, dst: u64, src: &[u8]) -> DriverResult<()> {
        let done = self.enter()?.machine.memory.host_write(dst, src);
        done.map_err(|f| error("cuMemcpyHtoD", DriverError::INVALID_VALUE, f.message))
    }

    fn download(&self, _: Stream, dst: &mut [u8], src: u64) -> DriverResult<()> {
        let done = self.enter()?.machine.memory.host_read(src, dst);
        done.map_err(|f| match f.kind {
            // Bytes that no kernel wrote are a kernel's fault, found late.
            Kind::Uninitialised => error("cuMemcpyDtoH", DriverError::LAUNCH_FAILED, f.message),
            _ => error("cuMemcpyDtoH", DriverError::INVALID_VALUE, f.message),
        })
    }

    fn copy(&self, _: Stream, dst: u64, src: u64, bytes: usize) -> DriverResult<()> {
        let mut data = vec![0; bytes];
        let memory = &mut self.enter()?.machine.memory;
        let done = memory.host_read(src, &mut data).and_then(|()| memory.host_write(dst, &data));
        done.map_err(|f| error("cuMemcpyDtoD", DriverError::INVALID_VALUE, f.message))
    }

    fn fill(&self, _: Stream, dst: u64, value: u8, bytes: usize) -> DriverResult<()> {
        let done = self.enter()?.machine.memory.host_write(dst, &vec![value; bytes]);
        done.map_err(|f| error("cuMemsetD8", DriverError::INVALID_VALUE, f.message))
    }

    fn load(&self, name: &str, ptx: &str) -> DriverResult<Module> {
        let mut state = self.enter()?;
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
        match self.enter()?.modules.remove(&module.0) {
            Some(_) => Ok(()),
            None => Err(error("cuModuleUnload", DriverError::INVALID_HANDLE, "no such module")),
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
            None => {
                Err(error("cuModuleGetFunction", DriverError::INVALID_HANDLE, "no such module"))
            }
        }
    }

    fn launch(&self, _: Stream, f: Function, grid: &Grid, params: &[u8]) -> DriverResult<()> {
        let mut guard = self.enter()?;
        let state = &mut *guard;
        let invalid = || error("cuLaunchKernel", DriverError::INVALID_HANDLE, "no such function");
        let (module, kernel) = state.functions.get(&f.0).ok_or_else(invalid)?;
        let (file, module) = state.modules.get(module).ok_or_else(invalid)?;
        let program = module.program(kernel).map_err(|_| invalid())?;
        trace(&mut state.traced, file, kernel);
        let shape = Shape {
            blocks: grid.blocks,
            threads: grid.threads,
            cluster: grid.cluster,
            shared: grid.shared,
        };
        match state.machine.launch(program, &shape, params) {
            Ok(counters) => {
                state.launches.push((kernel.clone(), counters));
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
                    state.broken = Some(failed.clone());
                }
                Err(failed)
            }
        }
    }

    fn stream(&self) -> DriverResult<Stream> {
        Ok(Stream(self.enter()?.handle()))
    }

    fn destroy_stream(&self, _: Stream) -> DriverResult<()> {
        self.enter().map(|_| ())
    }

    fn synchronize(&self, _: Stream) -> DriverResult<()> {
        self.enter().map(|_| ())
    }

    fn event(&self) -> DriverResult<Event> {
        Ok(Event(self.enter()?.handle()))
    }

    fn destroy_event(&self, _: Event) -> DriverResult<()> {
        self.enter().map(|_| ())
    }

    fn record(&self, _: Event, _: Stream) -> DriverResult<()> {
        self.enter().map(|_| ())
    }

    /// Time does not pass on the emulator; its counters are the measure.
    fn elapsed_ms(&self, _: Event, _: Event) -> DriverResult<f32> {
        self.enter().map(|_| 0.0)
    }
}
