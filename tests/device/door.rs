//! Kernels from outside the crate: the op of `examples/own_op` gives the CPU's bits on every executor, and
//! what an op can get wrong is an error that names it.

#[path = "../../examples/own_op/clamp_abs.rs"]
pub mod clamp_abs;

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use clamp_abs::clamp_abs;
use gradus::device::{
    Column, Const, DeviceBuffer, DriverError, EmuDriver, Gpu, Grid, KernelSet, Kernels, LaunchArgs,
    Ptr, shipped_ptx,
};
use gradus::view::{Dims, Location};
use gradus::{Device, Error, View, ViewMut};

use crate::common::devices::{close, on_all};

/// One step of an executor: the result and the count, from host views with a stride of 2.
fn strided(device: &Device, x: &[f32], limit: f32) -> (Vec<f64>, u64) {
    let half = [x.len().div_ceil(2) as i64];
    let mut y = vec![9.0f32; x.len()];
    let view = View::strided(x, &half, &[2]).unwrap();
    let cut = clamp_abs(device, view, limit, ViewMut::strided(&mut y, &half, &[2]).unwrap());
    (y.into_iter().map(f64::from).collect(), cut.unwrap())
}

#[test]
fn an_op_from_outside_has_the_same_bits_everywhere() {
    for n in [1, 31, 33, 255, 257, 1500] {
        let mut x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        x[n / 2] = f32::NAN;
        x[0] = f32::NEG_INFINITY;
        let (y, cut) = on_all(
            |device| strided(device, &x, 1.5),
            |name, (want, cut), (got, found)| {
                close(name, want, got, 0.0, 0.0);
                assert_eq!(cut, found, "{name}");
            },
        );
        assert!(n == 1 || y[1] == 9.0, "what lies between the elements stays");
        let outside = x.iter().step_by(2).filter(|x| x.abs() > 1.5).count();
        assert_eq!(cut, outside as u64);
    }
    let empty = on_all(|device| strided(device, &[], 1.0).1, |_, _, &cut| assert_eq!(cut, 0));
    assert_eq!(empty, 0);
}

fn emulator() -> Arc<Gpu> {
    Arc::new(Gpu::new(Arc::new(EmuDriver::new())).unwrap())
}

/// Kernels of a text of the test's own.
fn kernels(images: &'static [(KernelSet, &'static str)]) -> Kernels {
    // SAFETY: the kernels of these tests return at once or are never started.
    unsafe { Kernels::from_ptx("probe", images) }
}

macro_rules! ptx {
    ($($entry:literal),*) => {
        concat!(".version 8.4\n.target sm_80\n.address_size 64\n", $($entry, "{ ret; }\n"),*)
    };
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Two {
    x: Column<Const<f32>>,
    n: i64,
}

fn start(gpu: &Gpu, kernels: &Kernels, kernel: &str) -> Result<(), Error> {
    let launch = LaunchArgs::new(gpu, kernels);
    launch.start(kernel, Grid::linear(1, 32), &Two { x: Column::NONE, n: 0 })
}

#[test]
fn a_kernel_is_started_by_name_with_its_own_parameters() {
    const PTX: &str = ptx!(
        ".visible .entry right(.param .align 8 .b8 p[24])",
        ".visible .entry short(.param .align 8 .b8 p[16])",
        ".visible .entry scalars(.param .u64 x, .param .u64 n)"
    );
    let (gpu, probe) = (emulator(), kernels(&[(KernelSet::Sm80, PTX)]));
    assert_eq!(probe.kernels().unwrap().collect::<Vec<_>>(), ["right", "short", "scalars"]);
    start(&gpu, &probe, "right").unwrap();

    let error = start(&gpu, &probe, "short").unwrap_err();
    let expected =
        "probe: argument `params`: got 24 bytes, expected 16 bytes, as kernel `short` takes";
    assert_eq!(error.to_string(), expected);

    let error = start(&gpu, &probe, "scalars").unwrap_err();
    assert!(matches!(error, Error::Unsupported { op: "probe", .. }), "{error}");
    assert!(error.to_string().contains("kernel `scalars`"), "{error}");

    let error = start(&gpu, &probe, "wrong").unwrap_err();
    assert!(matches!(error, Error::Unsupported { op: "probe", .. }), "{error}");
    assert!(error.to_string().contains("no kernel `wrong`"), "{error}");

    // Nothing of that was the device's fault.
    start(&gpu, &probe, "right").unwrap();
    gpu.synchronize().unwrap();
}

#[test]
fn ptx_that_is_none_is_refused_and_the_device_goes_on() {
    let gpu = emulator();
    const BROKEN: &str = "
        .version 8.4\n.target sm_80\n.address_size 64
        .visible .entry right(.param .align 8 .b8 p[24]) { this.is.no.instruction %r1; }";
    let broken = kernels(&[(KernelSet::Sm80, BROKEN)]);
    let error = start(&gpu, &broken, "right").unwrap_err();
    let refused = matches!(error, Error::Driver { code: DriverError::INVALID_PTX, .. });
    assert!(refused, "{error}");

    // The emulator is a device of capability 9.0; one of 8.0 cannot run what was compiled for 9.0 alone.
    let newer = kernels(&[(KernelSet::Sm90a, ptx!(".entry right(.param .align 8 .b8 p[24])"))]);
    let older = Gpu::new(Arc::new(EmuDriver::new())).unwrap();
    let older = older.with_kernel_set(KernelSet::Sm80).unwrap();
    let error = start(&older, &newer, "right").unwrap_err();
    assert!(error.to_string().contains("no PTX of it for sm80"), "{error}");

    let x = [3f32, -1.0];
    let mut y = [0f32; 2];
    clamp_abs(&Device::Gpu(gpu), x[..].into(), 2.0, (&mut y[..]).into()).unwrap();
    assert_eq!(y, [2.0, -1.0]);
}

#[test]
fn memory_of_another_device_is_refused() {
    let gpu = emulator();
    let buffer = DeviceBuffer::from_host(&gpu, &[1f32; 8]).unwrap();
    let (at, dims) = (buffer.all().as_ptr(), Dims::contiguous(&[8]).unwrap());
    // SAFETY: the memory is there; which device it is said to be on is what the test is about.
    let elsewhere = unsafe { View::from_raw(at, dims, Location::Device(7)) }.unwrap();

    let device = Device::Gpu(gpu.clone());
    let mut y = [0f32; 8];
    let error = clamp_abs(&device, elsewhere, 1.0, (&mut y[..]).into()).unwrap_err().to_string();
    assert!(error.contains("argument `x`") && error.contains("Device(7)"), "{error}");
    // A launch refuses it as well, for an op that forgot to check.
    let probe = kernels(&[]);
    let mut launch = LaunchArgs::new(&gpu, &probe);
    let error = launch.input(&elsewhere).unwrap_err().to_string();
    assert!(error.contains("probe") && error.contains("Device(7)"), "{error}");
    // A column has one stride.
    let cube = View::new(&y, &[2, 2, 2]).unwrap();
    let error = launch.column(&cube).unwrap_err().to_string();
    assert!(error.contains("[2, 2, 2]") && error.contains("expected a vector"), "{error}");
}

#[test]
fn a_launch_gives_back_its_own_values_only() {
    let (gpu, probe) = (emulator(), kernels(&[]));
    let mut launch = LaunchArgs::new(&gpu, &probe);
    let at = launch.state(&[1u32, 2, 3]).unwrap();
    assert_eq!(launch.fetch::<u32>(at, 3).unwrap(), [1, 2, 3]);
    assert_eq!(launch.fetch::<u32>(at.byte_add(4), 2).unwrap(), [2, 3]);
    assert!(launch.fetch::<u32>(at, 0).unwrap().is_empty());
    let before = Ptr::new(at.address() - 4);
    for (at, count) in [(at, 4), (at.byte_add(8), 2), (before, 1), (Ptr::NULL, 1), (at, usize::MAX)]
    {
        let error = launch.fetch::<u32>(at, count).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { op: "probe", .. }), "{error}");
    }
    launch.finish().unwrap();
}

/// The crate's own kernels come through the same door.
#[test]
fn every_shipped_text_has_kernels_with_one_parameter_struct() {
    for (source, set, text) in shipped_ptx().unwrap() {
        let entries = text.matches(".entry ").count();
        // SAFETY: never launched.
        let own = unsafe { Kernels::from_ptx("own", Box::leak(Box::new([(set, text)]))) };
        assert_eq!(own.kernels().unwrap().count(), entries, "{source} {}", set.name());
        assert!(entries > 0, "{source} {}", set.name());
    }
}
