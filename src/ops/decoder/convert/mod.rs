//! y = x in another dtype, such as the bf16 copy that products read of parameters kept in f32.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc;
use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::view::{View, ViewMut};

/// Arguments of [`convert`]. Both views have one shape, of any rank, and are contiguous.
#[derive(Debug)]
pub struct Convert<'a, S, T> {
    /// Input.
    pub x: View<'a, S>,
    /// Output.
    pub y: ViewMut<'a, T>,
}

/// `y[i] = x[i]`, rounded once to nearest, ties to even. Widening is exact, equal dtypes copy all
/// bits, NaN stays NaN.
///
/// # Errors
/// `InvalidArgument` for shapes that differ, views with gaps or views that share memory.
///
/// # Cost
/// Reads and writes every element once, no flops, one launch.
///
/// # Example
/// ```
/// use gradus::{Device, bf16, ops::{Convert, convert}};
/// let (x, mut y) = (vec![1.0f32, 3.14159], vec![bf16::ZERO; 2]);
/// convert(&Device::Cpu, Convert { x: (&x).into(), y: (&mut y).into() })?;
/// assert_eq!(y[1].to_f32(), 3.140625);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn convert<S: Float, T: Float>(device: &Device, args: Convert<'_, S, T>) -> Result<()> {
    let check = Check("convert");
    let shape: Vec<usize> = args.x.shape().iter().map(|&n| n as usize).collect();
    check.shape(device, "x", &args.x, &shape)?;
    check.shape(device, "y", &args.y, &shape)?;
    check.contiguous("x", &args.x)?;
    check.contiguous("y", &args.y)?;
    check.disjoint(("y", &args.y), ("x", &args.x))?;
    match device {
        Device::Cpu => alloc::or_out_of_memory(check.0, || cpu::convert(args))?,
        Device::Gpu(gpu) => return gpu::convert(gpu, args),
    }
    Ok(())
}
