//! Where ops run. The CPU is always there; a GPU is a [`Driver`], a stream and the PTX that is part
//! of the crate. Everything above this module is the same for both.
//!
//! Who owns what:
//!
//! | type | what it is | owned by, freed when |
//! |---|---|---|
//! | [`Device`] | the CPU, or an `Arc` of a [`Gpu`] | whoever holds a clone |
//! | [`Gpu`] | one stream of a driver, its loaded kernels and its scratch memory | the last `Arc`, which waits for the stream first |
//! | [`Driver`] | memory, modules, launches, graphs, streams and events of one device | the `Gpu`s made from it |
//! | [`Buffer`] | elements on either device: a `Vec`, or a [`DeviceBuffer`] | the caller |
//! | [`DeviceBuffer`] | elements in device memory | the caller; memory goes back to the driver or to its [`Arena`] |
//! | [`Allocator`] | makes buffers: host memory, or an [`Arena`] | the caller |
//! | [`Arena`] | one allocation of device memory that is handed out in ranges, without driver calls | an `Arc` in each buffer that comes from it |
//! | [`PinnedBuffer`] | host memory that the device copies without a wait | the caller, and each [`Graph`] that copies from it or to it |
//! | [`View`](crate::View), [`ViewMut`](crate::ViewMut) | a pointer with shape, strides and [`Location`](crate::view::Location) | nobody: they borrow |
//! | [`Kernels`] | the PTX of one CUDA source | a `static` of the op; a `Gpu` keeps what it loaded |
//! | [`LaunchArgs`] | the operands of one call on their way to the device and back | the op's call; copies of host memory are freed with it |
//! | [`Scratch`] | memory for the kernels of one call | the `Gpu`'s pool; others wait until it is dropped |
//! | [`Graph`] | recorded launches | the caller; it keeps scratch memory, pinned memory and kernels alive, not the caller's buffers |

use std::sync::Arc;

use crate::error::{Error, Result};

mod arena;
mod buffer;
mod context;
mod copy_stream;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cust")]
pub mod cust;
mod device_buffer;
pub mod driver;
mod dry;
#[cfg(feature = "emu")]
mod emu;
#[cfg(feature = "emu")]
pub mod fault;
mod gpu;
mod graph;
mod host;
pub(crate) mod kernel_types;
mod kernels;
mod launch_args;
mod packed;
pub(crate) mod parallel;
mod pinned;
mod probe;
mod record;
mod scratch;
pub(crate) mod shipped;
pub(crate) mod team;
mod workspace;

pub use arena::{Allocator, Arena};
pub use buffer::{Buffer, zeros};
pub(crate) use copy_stream::CopyStream;
#[cfg(feature = "cuda")]
pub use cuda::CudaDriver;
pub use device_buffer::DeviceBuffer;
pub use driver::{Driver, DriverError, DriverInfo, DriverResult, Grid, Stream};
pub use dry::{DryDriver, Usage};
#[cfg(feature = "emu")]
pub use emu::{EmuDriver, TimedLaunch, TimedLaunches};
pub use gpu::Gpu;
#[cfg(feature = "emu")]
pub use gradus_emu::time as timing;
pub use graph::Graph;
pub(crate) use kernel_types::params;
pub use kernel_types::{Column, Const, Ptr, Void};
pub use kernels::{KernelSet, Kernels};
pub use launch_args::LaunchArgs;
pub use pinned::PinnedBuffer;
pub use probe::{GpuProbe, probe_gpu};
pub use record::{Call, RecordingDriver};
pub use scratch::Scratch;
pub use shipped::{shipped_ptx, shipped_sources};
pub use team::{Team, set_team};
pub(crate) use workspace::Workspace;

/// A place that executes ops. Cheap to clone, `Send + Sync`.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host: f32 data, wide accumulation, the threads of rayon or of a [`Team`].
    Cpu,
    /// A GPU. Operands may be in its memory, or in host memory: those are copied to it and back,
    /// and the call waits.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// The first CUDA device if there is a driver and the kernels run on it, else the CPU.
    ///
    /// # Errors
    /// Whatever keeps a driver and a device that would do from working.
    pub fn best() -> Result<Device> {
        match Device::cuda(0) {
            Err(Error::NoDriver { .. } | Error::Unsupported { .. }) => Ok(Device::Cpu),
            found => found,
        }
    }

    /// `cpu`, or the GPU's product name.
    pub fn name(&self) -> &str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu(gpu) => &gpu.info().name,
        }
    }

    /// The CUDA device with this ordinal: never, in a build without the feature `cuda`.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda(ordinal: i32) -> Result<Device> {
        let reason = format!("device {ordinal}: built without the feature `cuda`");
        Err(Error::NoDriver { reason })
    }

    /// Starts the threads that CPU ops share. Without it they start with the first op that has work for
    /// several, which panics where a thread cannot be had; after it no op starts a thread.
    ///
    /// # Errors
    /// `OutOfMemory`; a later call tries again.
    pub fn start_threads() -> Result<()> {
        crate::device::parallel::start()
    }

    /// The GPU behind a driver, with a stream of its own.
    pub fn gpu(driver: Arc<dyn Driver>) -> Result<Device> {
        Ok(Device::Gpu(Arc::new(Gpu::new(driver)?)))
    }
}

/// Two devices are equal if they are the same one.
impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu, Device::Cpu) => true,
            (Device::Gpu(a), Device::Gpu(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Eq for Device {}
