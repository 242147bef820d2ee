//! An op outside the crate, with the same three parts as one inside: arguments and checks, a CPU side,
//! and a GPU side that starts a kernel of its own.

use bytemuck::{Pod, Zeroable};
use gradus::check::Check;
use gradus::device::{Column, Const, Gpu, Grid, KernelSet, Kernels, LaunchArgs, Ptr};
use gradus::{Device, Result, View, ViewMut};

/// The PTX that `kernelc` made of `kernels/clamp_abs.cu`. Private, because it is a promise.
// SAFETY: `gpu` below is the only function that launches it. It passes `Params`, which is
// `ClampAbsParams` of the source, with addresses of its own `LaunchArgs` and checked lengths.
static KERNELS: Kernels = unsafe {
    Kernels::from_ptx(
        "clamp_abs",
        &[
            (KernelSet::Sm80, include_str!("kernels/generated/clamp_abs.sm80.ptx")),
            (KernelSet::Sm90a, include_str!("kernels/generated/clamp_abs.sm90a.ptx")),
        ],
    )
};

/// `y[i]` is `x[i]` cut to `[-limit, limit]`; returns how many elements were cut. NaN stays NaN.
/// Vectors may have any stride and lie in host memory or on the device.
///
/// # Errors
/// `InvalidArgument` for vectors of different lengths, in memory of another device or with bytes in
/// common, and for a negative limit.
pub fn clamp_abs(device: &Device, x: View<f32>, limit: f32, y: ViewMut<f32>) -> Result<u64> {
    let check = Check("clamp_abs");
    check.rank(device, "x", &x, 1)?;
    check.shape(device, "y", &y, &[x.extent(0)])?;
    check.non_negative("limit", f64::from(limit))?;
    check.disjoint(("y", &y), ("x", &x))?;
    match device {
        Device::Cpu => Ok(cpu(x, limit, y)),
        Device::Gpu(device) => gpu(device, x, limit, y),
    }
}

/// The reference: what the kernel has to match bit for bit.
fn cpu(x: View<f32>, limit: f32, mut y: ViewMut<f32>) -> u64 {
    let mut cut = 0;
    for i in 0..x.extent(0) {
        let value = x.at(i);
        let outside = value > limit || value < -limit;
        cut += u64::from(outside);
        y.set(i, if outside { limit.copysign(value) } else { value });
    }
    cut
}

/// `ClampAbsParams` of `kernels/clamp_abs.cu`. Its size is a multiple of 8, so the padding has a name.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    x: Column<Const<f32>>,
    y: Column<f32>,
    cut: Ptr<u64>,
    n: i64,
    limit: f32,
    pad: i32,
}

/// Threads per block: `__launch_bounds__` of the kernel.
const THREADS: u64 = 256;

fn gpu(gpu: &Gpu, x: View<f32>, limit: f32, y: ViewMut<f32>) -> Result<u64> {
    let n = x.numel();
    let mut launch = LaunchArgs::new(gpu, &KERNELS);
    // A host view is copied to the device here, a device view is its address.
    let (x, y) = (launch.column(&x)?, launch.column_out(y)?);
    // One number that the kernel adds to and the host reads: 0 at first.
    let cut = launch.state(&[0u64])?;
    let params = Params { x, y, cut, n, limit, pad: 0 };
    // More blocks than a grid can have end in an error of the driver.
    let blocks = u32::try_from((n as u64).div_ceil(THREADS)).unwrap_or(u32::MAX);
    launch.start("clamp_abs_f32", Grid::linear(blocks, THREADS as u32), &params)?;
    // The only wait. An op whose results stay on the device has none.
    let count = launch.fetch(cut, 1)?[0];
    launch.finish()?;
    Ok(count)
}
