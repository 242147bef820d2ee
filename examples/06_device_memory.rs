//! 06: device memory, streams and graphs. `cargo run --example 06_device_memory`
//!
//! Runs on CUDA device 0, or on the emulator where there is none. Everything here is what a trainer
//! does so that the host never waits for the device in the middle of a step.

use std::sync::Arc;

use gradus::device::{Buffer, Call, Device, EmuDriver, Gpu, PinnedBuffer, RecordingDriver};
use gradus::ops::{Lerp, lerp};
use gradus::{Error, Result};

const N: usize = 4096;

fn main() -> Result<()> {
    // A driver is memory, launches and streams of one device. This one writes down what it is asked.
    let driver = Arc::new(RecordingDriver::new(driver()?));
    let gpu = Arc::new(Gpu::new(driver.clone())?);
    let device = Device::Gpu(gpu.clone());
    println!("device: {}", device.name());

    // Buffers are memory of the device: elements stay there between ops. A stream runs its work in
    // order, so ops need no wait between them.
    let a = Buffer::of(&device, &vec![1f32; N])?;
    let b = Buffer::of(&device, &vec![3f32; N])?;
    let mut y = Buffer::<f32>::new(&device, N)?;
    let mut z = Buffer::<f32>::new(&device, N)?;
    let mut step = || -> Result<()> {
        lerp(&device, Lerp { a: a.all(), b: b.all(), weight: 0.5, y: y.all_mut() })?;
        lerp(&device, Lerp { a: y.all(), b: b.all(), weight: 0.5, y: z.all_mut() })
    };
    // The first call loads the kernel. From the second on, a step is its launches and nothing else.
    step()?;
    driver.take();
    step()?;
    let calls = driver.take();
    println!("a warm step of two ops: {calls:?}");
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|call| matches!(call, Call::Launch(_))));

    // Pinned memory is host memory that the device reaches on its own: a copy of it does not wait.
    let mut pinned = PinnedBuffer::<f32>::new(&gpu, N)?;
    pinned.download(0, z.all())?;
    driver.take();
    let host = pinned.to_vec()?; // waits here, because here the host looks
    assert!(driver.take().iter().any(Call::is_wait));
    assert_eq!(host, vec![2.5f32; N]);

    // A graph records a step once. Starting it is one call, however many kernels it has.
    let graph = gpu.capture(|| {
        lerp(&device, Lerp { a: a.all(), b: b.all(), weight: 0.25, y: y.all_mut() })?;
        lerp(&device, Lerp { a: y.all(), b: b.all(), weight: 0.25, y: z.all_mut() })
    })?;
    driver.take();
    graph.launch()?;
    println!("the step as a graph:    {:?}", driver.take());
    let z = z.to_host()?;
    assert_eq!(z[0], 0.75 * 1.5 + 0.25 * 3.0);

    // What does not fit is an error that says how much was asked for, and the device goes on.
    let error = Buffer::<f32>::new(&device, 1 << 44).unwrap_err();
    println!("too much: {error}");
    assert!(matches!(error, Error::OutOfMemory { .. }));
    gpu.synchronize()
}

/// The CUDA driver, or the emulator.
fn driver() -> Result<Arc<dyn gradus::device::Driver>> {
    #[cfg(feature = "cuda")]
    if let Ok(cuda) = gradus::device::CudaDriver::open(0) {
        return Ok(Arc::new(cuda));
    }
    Ok(Arc::new(EmuDriver::new()))
}
