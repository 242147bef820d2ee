//! The executors every kernel test runs on: the CPU, the emulator with both kernel sets, and CUDA
//! where there is a device.

use std::sync::{Arc, OnceLock};

use gradus::Device;
use gradus::device::{EmuDriver, Gpu, KernelSet};

/// An executor with the name that messages give it.
#[derive(Clone, Debug)]
pub struct Executor {
    pub name: String,
    pub device: Device,
}

/// The GPU executors: the emulator twice, and CUDA if there is one. Prints what is skipped;
/// `GRADUS_REQUIRE_GPU=1` turns a missing CUDA device into a failure.
pub fn gpus() -> Vec<Executor> {
    let mut executors: Vec<Executor> = [KernelSet::Sm80, KernelSet::Sm90a]
        .into_iter()
        .map(|set| Executor { name: format!("emu {}", set.name()), device: emulated(set, 0) })
        .collect();
    executors.extend(cuda().clone());
    executors
}

/// The CPU and all GPU executors.
pub fn executors() -> Vec<Executor> {
    let mut all = vec![Executor { name: "cpu".into(), device: Device::Cpu }];
    all.extend(gpus());
    all
}

/// A fresh emulated device; `seed` shuffles the order of warps and blocks.
pub fn emulated(set: KernelSet, seed: u64) -> Device {
    let driver = EmuDriver::new().with_seed(seed);
    let gpu = Gpu::new(Arc::new(driver)).unwrap().with_kernel_set(set).unwrap();
    Device::Gpu(Arc::new(gpu))
}

/// The CUDA device, opened once per test binary.
fn cuda() -> &'static Option<Executor> {
    static CUDA: OnceLock<Option<Executor>> = OnceLock::new();
    CUDA.get_or_init(|| match cuda_device() {
        Ok(device) => Some(Executor { name: "cuda".into(), device }),
        Err(error) if std::env::var("GRADUS_REQUIRE_GPU").is_ok_and(|v| v == "1") => {
            panic!("GRADUS_REQUIRE_GPU=1, but {error}")
        }
        Err(error) => {
            eprintln!("skipped on CUDA: {error}");
            None
        }
    })
}

#[cfg(feature = "cuda")]
fn cuda_device() -> gradus::Result<Device> {
    Device::cuda(0)
}

#[cfg(not(feature = "cuda"))]
fn cuda_device() -> gradus::Result<Device> {
    Err(gradus::Error::NoDriver { reason: "built without the feature `cuda`".to_string() })
}
