//! The executors every kernel test runs on: the CPU, the emulator with both kernel sets, and CUDA
//! where there is a device.

use std::sync::{Arc, OnceLock};

use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::Element;
use gradus::{Device, View};

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

/// Runs `body` on the CPU and on every GPU executor; `agree` compares the CPU's result with each
/// other. Returns the CPU's, so that a test of the CPU becomes a test of all.
pub fn on_all<T>(body: impl Fn(&Device) -> T, agree: impl Fn(&str, &T, &T)) -> T {
    let want = body(&Device::Cpu);
    for executor in shared_gpus() {
        agree(&executor.name, &want, &body(&executor.device));
    }
    want
}

/// The GPU executors, one set for the whole test binary: modules are loaded once.
pub fn shared_gpus() -> &'static [Executor] {
    static GPUS: OnceLock<Vec<Executor>> = OnceLock::new();
    GPUS.get_or_init(gpus)
}

/// Asserts that f64 results agree to `relative` times max(|want|, `floor`); NaN agrees with NaN.
pub fn close(name: &str, want: &[f64], got: &[f64], relative: f64, floor: f64) {
    assert_eq!(want.len(), got.len(), "{name}");
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let same = w == g || (w.is_nan() && g.is_nan());
        let bound = relative * w.abs().max(floor);
        assert!(same || (g - w).abs() <= bound, "{name}: element {i} is {g}, the CPU has {w}");
    }
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
    CUDA.get_or_init(|| match Device::cuda(0) {
        Ok(device) => Some(Executor { name: "cuda".into(), device }),
        Err(error) if std::env::var("GRADUS_REQUIRE_GPU").is_ok_and(|v| v == "1") => {
            panic!("GRADUS_REQUIRE_GPU=1, but {error}")
        }
        Err(error) => {
            eprintln!("no CUDA device, CPU and emulator run: {error}");
            None
        }
    })
}

/// The GPU behind a device.
pub fn gpu_of(device: &Device) -> &Arc<Gpu> {
    match device {
        Device::Gpu(gpu) => gpu,
        _ => panic!("a GPU is expected"),
    }
}

/// A vector in device memory, one element behind the start of its buffer.
pub fn placed<T: Element>(gpu: &Arc<Gpu>, data: &[T]) -> DeviceBuffer<T> {
    let shifted: Vec<T> = [T::zeroed()].into_iter().chain(data.iter().copied()).collect();
    DeviceBuffer::from_host(gpu, &shifted).unwrap()
}

/// The elements of [`placed`].
pub fn vector<T: Element>(buffer: &DeviceBuffer<T>) -> View<'_, T> {
    let n = buffer.len();
    buffer.view(&[n as i64]).unwrap().narrow(1, n - 1).unwrap()
}

/// Launches of an op, and the bytes they moved in units of the least there is.
pub fn traffic(driver: &EmuDriver, least: usize) -> (usize, f64) {
    let launches = driver.take_launches();
    let bytes: u64 = launches.iter().map(|(_, c)| c.global_bytes()).sum();
    assert!(launches.iter().all(|(_, c)| c.local_accesses == 0));
    (launches.len(), bytes as f64 / least as f64)
}
