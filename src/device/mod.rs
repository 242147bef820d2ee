//! Where ops run. The CPU is always there; a GPU backend joins as a second variant and everything
//! above this module stays the same.

use crate::error::Result;

mod probe;
pub use probe::{GpuProbe, probe_gpu};

/// A place that executes ops. Cheap to clone, `Send + Sync`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The host: f32 data, wide accumulation, rayon.
    Cpu,
}

impl Device {
    /// The device that fits this machine best and can run every op.
    pub fn best() -> Result<Device> {
        Ok(Device::Cpu)
    }
}
