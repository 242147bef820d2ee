//! An op of your own, with its own CUDA kernel: `cargo run --example own_op` (add `--features emu` for
//! the emulator). Runs `clamp_abs` on the CPU, on the emulator and on a CUDA device, where there is one.

mod clamp_abs;

use std::error::Error;

use clamp_abs::clamp_abs;
use gradus::device::Buffer;
use gradus::{Device, View};

fn main() -> Result<(), Box<dyn Error>> {
    let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
    let mut expected = vec![0.0; x.len()];
    let cut = clamp_abs(&Device::Cpu, (&x).into(), 2.0, (&mut expected).into())?;
    println!("cpu: {cut} of {} elements were cut to [-2, 2]", x.len());
    assert_eq!(cut, x.iter().filter(|x| x.abs() > 2.0).count() as u64);

    for device in devices()? {
        // Host memory: gradus copies the operands to the device and the result back.
        let mut y = vec![0.0; x.len()];
        assert_eq!(clamp_abs(&device, (&x).into(), 2.0, (&mut y).into())?, cut);
        assert_eq!(y, expected, "host operands");

        // Device memory: the kernel reads and writes it in place.
        let (input, mut output) = (Buffer::of(&device, &x)?, Buffer::new(&device, x.len())?);
        clamp_abs(&device, input.all(), 2.0, output.all_mut())?;
        assert_eq!(output.to_host()?, expected, "device operands");

        // Every second element: a view with stride 2 is one more operand, not another kernel.
        let half = [500];
        let mut y = vec![0.0f32; 500];
        clamp_abs(&device, View::strided(&x, &half, &[2])?, 2.0, (&mut y).into())?;
        assert!(y.iter().zip(expected.iter().step_by(2)).all(|(a, b)| a == b), "strides");
        println!("{}: the same bits, from host and from device memory", device.name());
    }
    Ok(())
}

/// The GPUs of this machine that run the kernel: the emulator if it is built in, and CUDA device 0.
fn devices() -> gradus::Result<Vec<Device>> {
    let mut found = Vec::new();
    #[cfg(feature = "emu")]
    found.push(Device::gpu(std::sync::Arc::new(gradus::device::EmuDriver::new()))?);
    match Device::best()? {
        Device::Cpu => println!("no CUDA device here"),
        cuda => found.push(cuda),
    }
    Ok(found)
}
