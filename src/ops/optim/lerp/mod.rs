//! y = (1 − λ)·a + λ·b: interpolation of weights (Wortsman et al. 2022, WiSE-FT,
//! arXiv:2109.01903, eq. 1).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`lerp`]. All views have one shape, of any rank, and are contiguous.
#[derive(Debug)]
pub struct Lerp<'a, T> {
    /// Value at λ = 0.
    pub a: View<'a, T>,
    /// Value at λ = 1.
    pub b: View<'a, T>,
    /// Finite; outside [0, 1] it extrapolates.
    pub weight: f64,
    /// Output.
    pub y: ViewMut<'a, T>,
}

/// `y[i] = (1 − λ)·a[i] + λ·b[i]` in f64, rounded once. λ = 0 copies `a` and λ = 1 copies `b` bit
/// for bit, NaN payloads and signs of zero included; the other operand is not read.
///
/// # Errors
/// `InvalidArgument` for shapes that differ, views with gaps or a λ that is not finite.
///
/// # Cost
/// 3 elements of traffic, 3 flops per element.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{Lerp, lerp}};
/// let (a, b, mut y) = (vec![0f32, 8.0], vec![4f32, 4.0], vec![0f32; 2]);
/// let args = Lerp { a: (&a).into(), b: (&b).into(), weight: 0.25, y: (&mut y).into() };
/// lerp(&Device::Cpu, args)?;
/// assert_eq!(y, [1.0, 7.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn lerp<T: Float>(device: &Device, args: Lerp<'_, T>) -> Result<()> {
    let check = Check("lerp");
    let shape: Vec<usize> = args.a.shape().iter().map(|&n| n as usize).collect();
    check.shape(device, "a", &args.a, &shape)?;
    check.shape(device, "b", &args.b, &shape)?;
    check.shape(device, "y", &args.y, &shape)?;
    check.contiguous("a", &args.a)?;
    check.contiguous("b", &args.b)?;
    check.contiguous("y", &args.y)?;
    check.factor("weight", args.weight)?;
    check.disjoint(("y", &args.y), ("a", &args.a))?;
    check.disjoint(("y", &args.y), ("b", &args.b))?;
    on_device!(device, check, args: Lerp<T: Float> => cpu::lerp, gpu::lerp)
}
