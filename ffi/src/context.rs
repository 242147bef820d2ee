//! A device, and on a GPU what each stream has: scratch memory. Kernels are loaded once.

use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(any(feature = "cuda", feature = "emu"))]
use gradus::device::Driver;
use gradus::device::{Device, DryDriver, Gpu, Stream};
use gradus::{Error, Result};

use crate::memory::refused;
use crate::status::{given_mut, guard, not_null, text};
use crate::{handle, sys};

/// Alignment of memory on the CPU device, a GPU's own.
const ALIGN: usize = 256;

pub(crate) struct Context {
    gpu: Option<OneGpu>,
    /// What gradus_alloc gave, by address.
    allocations: Mutex<HashMap<usize, Allocation>>,
}

struct OneGpu {
    /// On the legacy default stream; all others share its kernels.
    base: Arc<Gpu>,
    streams: Mutex<HashMap<u64, Arc<Gpu>>>,
}

/// Host memory, or the device's.
enum Allocation {
    Host(Layout),
    Device,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    fn open(device: &str) -> Result<Context> {
        let unknown = || {
            let known = "cpu, cuda, cuda:N, auto, or with the feature `emu` emu:sm80 and emu:sm90a";
            Error::invalid("gradus_create", "device", format!("`{device}`"), known)
        };
        match device.split_once(':').unwrap_or((device, "")) {
            ("cpu", "") => Context::cpu(),
            ("cuda", "") => Context::cuda(0),
            ("cuda", number) => Context::cuda(number.parse().map_err(|_| unknown())?),
            ("auto", "") => match Context::cuda(0) {
                Err(Error::NoDriver { .. } | Error::Unsupported { .. }) => Context::cpu(),
                found => found,
            },
            #[cfg(feature = "emu")]
            ("emu", set) => Context::emulated(set).ok_or_else(unknown)?,
            _ => Err(unknown()),
        }
    }

    fn cpu() -> Result<Context> {
        Device::start_threads()?;
        Ok(Context { gpu: None, allocations: Mutex::default() })
    }

    #[cfg(any(feature = "cuda", feature = "emu"))]
    fn gpu(base: Gpu) -> Context {
        let gpu = OneGpu { base: Arc::new(base), streams: Mutex::default() };
        Context { gpu: Some(gpu), allocations: Mutex::default() }
    }

    #[cfg(feature = "cuda")]
    fn cuda(ordinal: i32) -> Result<Context> {
        let driver: Arc<dyn Driver> = Arc::new(gradus::device::CudaDriver::open(ordinal)?);
        Ok(Context::gpu(Gpu::on_stream(driver, Stream(0))?))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(ordinal: i32) -> Result<Context> {
        let reason = format!("device {ordinal}: built without the feature `cuda`");
        Err(Error::NoDriver { reason })
    }

    /// `None` for a set that does not exist.
    #[cfg(feature = "emu")]
    fn emulated(set: &str) -> Option<Result<Context>> {
        use gradus::device::{EmuDriver, KernelSet};
        let set = [KernelSet::Sm80, KernelSet::Sm90a].into_iter().find(|s| s.name() == set)?;
        let driver: Arc<dyn Driver> = Arc::new(EmuDriver::new());
        let base = Gpu::on_stream(driver, Stream(0)).and_then(|gpu| gpu.with_kernel_set(set));
        Some(base.map(Context::gpu))
    }

    /// The device for a stream.
    pub fn device(&self, op: &'static str, stream: *mut c_void) -> Result<Device> {
        let stream = Stream(stream as u64);
        let Some(gpu) = &self.gpu else {
            if stream.0 != 0 {
                let got = format!("{:#x}", stream.0);
                return Err(Error::invalid(op, "stream", got, "NULL on the CPU device"));
            }
            return Ok(Device::Cpu);
        };
        if stream.0 == 0 {
            return Ok(Device::Gpu(gpu.base.clone()));
        }
        let mut streams = lock(&gpu.streams);
        gradus::asking(|| streams.try_reserve(1)).map_err(|_| refused::<(u64, Arc<Gpu>)>(op, 1))?;
        let one = streams.entry(stream.0).or_insert_with(|| Arc::new(gpu.base.for_stream(stream)));
        Ok(Device::Gpu(one.clone()))
    }

    /// A device that executes nothing, and counts memory.
    pub fn dry(&self) -> Result<Option<(Device, Arc<DryDriver>)>> {
        let Some(gpu) = &self.gpu else { return Ok(None) };
        let driver = Arc::new(DryDriver::new(gpu.base.info().clone()));
        let dry =
            Gpu::on_stream(driver.clone(), Stream(0))?.with_kernel_set(gpu.base.kernel_set())?;
        Ok(Some((Device::Gpu(Arc::new(dry)), driver)))
    }

    fn alloc(&self, bytes: usize) -> Result<*mut c_void> {
        const OP: &str = "gradus_alloc";
        let full = |_| refused::<(usize, Allocation)>(OP, 1);
        // The place in the table first: memory that is in no table is lost.
        let mut allocations = lock(&self.allocations);
        gradus::asking(|| allocations.try_reserve(1)).map_err(full)?;
        let memory = match &self.gpu {
            Some(gpu) => {
                let at = gpu.base.call(|d| d.alloc(bytes.max(1)))? as usize;
                allocations.insert(at, Allocation::Device);
                return Ok(at as *mut c_void);
            }
            None => Layout::from_size_align(bytes.max(1), ALIGN),
        };
        let out = || refused::<u8>(OP, bytes);
        let layout = memory.map_err(|_| out())?;
        // SAFETY: the layout has at least one byte.
        let at = gradus::asking(|| unsafe { std::alloc::alloc_zeroed(layout) });
        if at.is_null() {
            return Err(out());
        }
        allocations.insert(at as usize, Allocation::Host(layout));
        Ok(at as *mut c_void)
    }

    fn free(&self, memory: *mut c_void) -> Result<()> {
        if memory.is_null() {
            return Ok(());
        }
        let found = lock(&self.allocations).remove(&(memory as usize));
        let found = found.ok_or_else(|| {
            let got = format!("{memory:p}");
            Error::invalid("gradus_free", "memory", got, "what gradus_alloc of this context gave")
        })?;
        self.give_back(memory as usize, found)
    }

    fn give_back(&self, at: usize, allocation: Allocation) -> Result<()> {
        match (allocation, &self.gpu) {
            (Allocation::Device, Some(gpu)) => gpu.base.call(|d| d.free(at as u64)),
            // SAFETY: allocated with this layout, and taken out of the table once.
            (Allocation::Host(layout), _) => unsafe {
                std::alloc::dealloc(at as *mut u8, layout);
                Ok(())
            },
            (Allocation::Device, None) => Ok(()),
        }
    }

    fn upload(
        &self,
        stream: *mut c_void,
        to: *mut u8,
        from: *const u8,
        bytes: usize,
    ) -> Result<()> {
        match self.device("gradus_upload", stream)? {
            Device::Gpu(gpu) => {
                // SAFETY: the caller gave so many bytes of host memory to read.
                let from = unsafe { std::slice::from_raw_parts(from, bytes) };
                gpu.call(|d| d.upload(gpu.stream(), to as u64, from))
            }
            // SAFETY: the caller gave so many bytes on either side.
            _ => unsafe {
                std::ptr::copy(from, to, bytes);
                Ok(())
            },
        }
    }

    fn download(
        &self,
        stream: *mut c_void,
        to: *mut u8,
        from: *const u8,
        bytes: usize,
    ) -> Result<()> {
        match self.device("gradus_download", stream)? {
            Device::Gpu(gpu) => {
                // SAFETY: the caller gave so many bytes of host memory to write.
                let to = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
                gpu.call(|d| d.download(gpu.stream(), to, from as u64))
            }
            // SAFETY: the caller gave so many bytes on either side.
            _ => unsafe {
                std::ptr::copy(from, to, bytes);
                Ok(())
            },
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let all = std::mem::take(&mut *lock(&self.allocations));
        for (at, allocation) in all {
            let _ = self.give_back(at, allocation);
        }
    }
}

// ---- exports, documented in the header ----------------------------------------------------------

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_create(device: *const c_char, ctx: *mut u64) -> sys::gradus_status {
    guard(|| {
        let ctx = given_mut("gradus_create", "ctx", ctx)?;
        let device = text("gradus_create", "device", device)?;
        *ctx = handle::insert(Context::open(device)?)?;
        Ok(())
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_destroy(ctx: u64) -> sys::gradus_status {
    guard(|| match ctx {
        0 => Ok(()),
        _ => handle::remove(ctx).map(drop),
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_device_name(
    ctx: u64,
    name: *mut c_char,
    size: usize,
) -> sys::gradus_status {
    guard(|| {
        let context = handle::get(ctx)?;
        let first = given_mut("gradus_device_name", "name", name)?;
        if size == 0 {
            return Err(Error::invalid("gradus_device_name", "size", 0, "at least 1").into());
        }
        let device = context.device("gradus_device_name", std::ptr::null_mut())?;
        let text = device.name().as_bytes();
        let count = text.len().min(size - 1);
        // SAFETY: the caller gave `size` bytes, of which `count + 1` are written.
        unsafe {
            let to = first as *mut c_char as *mut u8;
            std::ptr::copy_nonoverlapping(text.as_ptr(), to, count);
            to.add(count).write(0);
        }
        Ok(())
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_alloc(
    ctx: u64,
    bytes: usize,
    memory: *mut *mut c_void,
) -> sys::gradus_status {
    guard(|| {
        let context = handle::get(ctx)?;
        let memory = given_mut("gradus_alloc", "memory", memory)?;
        *memory = context.alloc(bytes)?;
        Ok(())
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_free(ctx: u64, memory: *mut c_void) -> sys::gradus_status {
    guard(|| Ok(handle::get(ctx)?.free(memory)?))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_upload(
    ctx: u64,
    stream: *mut c_void,
    device: *mut c_void,
    host: *const c_void,
    bytes: usize,
) -> sys::gradus_status {
    guard(|| {
        let context = handle::get(ctx)?;
        if bytes == 0 {
            return Ok(());
        }
        not_null("gradus_upload", "device", device)?;
        not_null("gradus_upload", "host", host)?;
        Ok(context.upload(stream, device as *mut u8, host as *const u8, bytes)?)
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_download(
    ctx: u64,
    stream: *mut c_void,
    host: *mut c_void,
    device: *const c_void,
    bytes: usize,
) -> sys::gradus_status {
    guard(|| {
        let context = handle::get(ctx)?;
        if bytes == 0 {
            return Ok(());
        }
        not_null("gradus_download", "host", host)?;
        not_null("gradus_download", "device", device)?;
        Ok(context.download(stream, host as *mut u8, device as *const u8, bytes)?)
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_synchronize(ctx: u64, stream: *mut c_void) -> sys::gradus_status {
    guard(|| {
        let context = handle::get(ctx)?;
        match context.device("gradus_synchronize", stream)? {
            Device::Gpu(gpu) => Ok(gpu.synchronize()?),
            _ => Ok(()),
        }
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_set_team(run: sys::gradus_team) -> sys::gradus_status {
    guard(|| {
        // SAFETY: what the header asks of `run`.
        unsafe { gradus::device::set_team(run) };
        Ok(())
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_reserve(
    ctx: u64,
    stream: *mut c_void,
    bytes: usize,
) -> sys::gradus_status {
    guard(|| {
        let context = handle::get(ctx)?;
        if let Device::Gpu(gpu) = context.device("gradus_reserve", stream)? {
            gpu.reserve_scratch(bytes)?;
            gpu.reserve_workspace(bytes)?;
        }
        Ok(())
    })
}
