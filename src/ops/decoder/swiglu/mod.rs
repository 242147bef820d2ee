//! y = silu(gate) ⊙ up with silu(x) = x·σ(x) (Shazeer 2020, arXiv:2002.05202, eq. 6).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`swiglu`].
#[derive(Debug)]
pub struct Swiglu<'a, T> {
    /// `[T, F]` input of the gate.
    pub gate: View<'a, T>,
    /// `[T, F]` what is gated.
    pub up: View<'a, T>,
    /// `[T, F]` output.
    pub y: ViewMut<'a, T>,
}

/// y[t, f] = gate[t, f] · σ(gate[t, f]) · up[t, f].
///
/// `gate` and `up` may be the two halves of one `[T, 2F]` matrix.
///
/// # Errors
/// `InvalidArgument` for shapes that differ or a non-contiguous last dimension.
///
/// # Cost
/// Reads gate and up, writes y: `3·T·F` elements; one exponential and one division per element.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Swiglu, swiglu}};
/// let gate_up = [0.0f32, 1.0, 5.0, 2.0];
/// let mut y = [0f32; 2];
/// swiglu(&Device::Cpu, Swiglu {
///     gate: View::strided(&gate_up, &[1, 2], &[4, 1])?,
///     up: View::strided(&gate_up[2..], &[1, 2], &[4, 1])?,
///     y: ViewMut::new(&mut y, &[1, 2])?,
/// })?;
/// assert_eq!(y, [0.0, 1.4621172]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn swiglu<T: Float>(device: &Device, args: Swiglu<'_, T>) -> Result<()> {
    let check = Check("swiglu");
    check.rank(device, "gate", &args.gate, 2)?;
    let shape = [args.gate.extent(0), args.gate.extent(1)];
    check.shape(device, "up", &args.up, &shape)?;
    check.shape(device, "y", &args.y, &shape)?;
    on_device!(device, check, args: Swiglu<T: Float> => cpu::swiglu, gpu::swiglu)
}

/// Arguments of [`swiglu_bwd`].
#[derive(Debug)]
pub struct SwigluBwd<'a, T> {
    /// `[T, F]` input of the gate.
    pub gate: View<'a, T>,
    /// `[T, F]` what was gated.
    pub up: View<'a, T>,
    /// `[T, F]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[T, F]` gradient of `gate`.
    pub dgate: ViewMut<'a, T>,
    /// `[T, F]` gradient of `up`.
    pub dup: ViewMut<'a, T>,
}

/// dgate = dy · up · σ·(1 + gate·(1 − σ)), dup = dy · gate·σ, with σ = σ(gate).
///
/// # Errors
/// As [`swiglu`].
///
/// # Cost
/// Reads gate, up and dy, writes dgate and dup: `5·T·F` elements.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{SwigluBwd, swiglu_bwd}};
/// let (gate, up, dy) = ([0f32], [2f32], [1f32]);
/// let (mut dgate, mut dup) = ([0f32], [0f32]);
/// swiglu_bwd(&Device::Cpu, SwigluBwd {
///     gate: View::new(&gate, &[1, 1])?,
///     up: View::new(&up, &[1, 1])?,
///     dy: View::new(&dy, &[1, 1])?,
///     dgate: ViewMut::new(&mut dgate, &[1, 1])?,
///     dup: ViewMut::new(&mut dup, &[1, 1])?,
/// })?;
/// assert_eq!((dgate, dup), ([1.0], [0.0]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn swiglu_bwd<T: Float>(device: &Device, args: SwigluBwd<'_, T>) -> Result<()> {
    let check = Check("swiglu_bwd");
    check.rank(device, "gate", &args.gate, 2)?;
    let shape = [args.gate.extent(0), args.gate.extent(1)];
    check.shape(device, "up", &args.up, &shape)?;
    check.shape(device, "dy", &args.dy, &shape)?;
    check.shape(device, "dgate", &args.dgate, &shape)?;
    check.shape(device, "dup", &args.dup, &shape)?;
    on_device!(device, check, args: SwigluBwd<T: Float> => cpu::swiglu_bwd, gpu::swiglu_bwd)
}
