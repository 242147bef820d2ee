//! Updates of weights, and what is measured on them.

mod adamw;
mod delta;
mod grad_norm;
mod lerp;
mod paged_adamw;
mod sparsity_stats;

use crate::common::devices::shared_gpus;
use gradus::Device;

/// The executor of a case: the CPU, then the GPUs, in turn.
pub fn device_of(case: u64) -> &'static Device {
    match case as usize % (1 + shared_gpus().len()) {
        0 => &Device::Cpu,
        i => &shared_gpus()[i - 1].device,
    }
}
