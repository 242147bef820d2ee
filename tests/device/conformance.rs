//! The emulator's arithmetic against hardware: every opcode of the emulator's own tests on random
//! operands, on a CUDA device. Without one it prints that it was skipped; the closed-form answers
//! of the same cases run with the emulator's tests.

#[path = "../../tools/emu/tests/common/mod.rs"]
mod emulator;

use emulator::lane_kernel;
use emulator::opcodes::{Case, Inputs, cases, operands};
use gradus::device::{Driver, DriverResult, EmuDriver, Grid, Stream};

/// Runs a lane kernel through the driver trait.
fn run(driver: &dyn Driver, ptx: &str, inputs: &[[u64; 32]; 3]) -> DriverResult<Vec<u64>> {
    let stream = Stream(0);
    let module = driver.load("conformance", ptx)?;
    let function = driver.function(module, "k")?;
    let mut params = Vec::new();
    let mut buffers = Vec::new();
    for row in [&[0u64; 32]].into_iter().chain(inputs) {
        let buffer = driver.alloc(256)?;
        driver.upload(stream, buffer, bytemuck::cast_slice(row))?;
        params.extend_from_slice(&buffer.to_le_bytes());
        buffers.push(buffer);
    }
    driver.launch(stream, function, &Grid::linear(1, 32), &params)?;
    let mut out = vec![0u64; 32];
    driver.download(stream, bytemuck::cast_slice_mut(&mut out), buffers[0])?;
    buffers.into_iter().try_for_each(|buffer| driver.free(buffer))?;
    driver.unload(module)?;
    Ok(out)
}

/// NaN payloads are the device's choice, those of f64 narrowed to f32 as well; approximate results
/// may be as far apart as two devices may.
fn agree(case: &Case, a: u64, b: u64) -> bool {
    let nan32 = |x: u64| x >> 32 == 0 && f32::from_bits(x as u32).is_nan();
    let nan64 = |x: u64| f64::from_bits(x).is_nan();
    let both_nan = (matches!(case.inputs, Inputs::F32 | Inputs::F64) && nan32(a) && nan32(b))
        || (case.inputs == Inputs::F64 && nan64(a) && nan64(b));
    let (x, y) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
    let near = case.approximate.is_some_and(|[relative, absolute]| {
        (x - y).abs() <= 2.0 * (relative * x.abs()).max(absolute)
    });
    a == b || both_nan || near
}

/// What the device and the emulator say differently, over `seeds` draws of operands.
fn differences(device: &dyn Driver, seeds: std::ops::Range<u64>) -> Vec<String> {
    let emulated = EmuDriver::new();
    let mut found = Vec::new();
    for case in cases() {
        let ptx = lane_kernel(case.body);
        for seed in seeds.clone() {
            let inputs = operands(case.inputs, seed);
            let want = run(device, &ptx, &inputs).unwrap_or_else(|e| panic!("{e}\n{}", case.body));
            let got = run(&emulated, &ptx, &inputs).unwrap_or_else(|e| panic!("{e}"));
            for lane in 0..32 {
                if !agree(&case, want[lane], got[lane]) {
                    let [a, b, c] = [0, 1, 2].map(|k| inputs[k][lane]);
                    found.push(format!(
                        "{}\n  a {a:#x} b {b:#x} c {c:#x}: device {:#x}, emulator {:#x}",
                        case.body, want[lane], got[lane]
                    ));
                    break;
                }
            }
        }
    }
    found
}

/// The driver trait carries whole programs: the emulator agrees with itself.
#[test]
fn lane_kernels_run_through_the_driver() {
    assert_eq!(differences(&EmuDriver::new(), 1..3), Vec::<String>::new());
}

#[test]
#[cfg(feature = "cuda")]
fn the_emulator_agrees_with_hardware() {
    match gradus::device::CudaDriver::open(0) {
        Ok(driver) => {
            let found = differences(&driver, 1..33);
            assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
        }
        Err(error) => {
            let required = std::env::var("GRADUS_REQUIRE_GPU").is_ok_and(|v| v == "1");
            assert!(!required, "GRADUS_REQUIRE_GPU=1, but {error}");
            eprintln!("skipped on CUDA: {error}");
        }
    }
}
