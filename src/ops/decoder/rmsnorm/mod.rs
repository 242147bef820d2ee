//! y = x / rms(x) ⊙ weight with rms(x) = sqrt(mean(x²) + eps) (Zhang & Sennrich 2019,
//! arXiv:1910.07467, eq. 4).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`rmsnorm`].
#[derive(Debug)]
pub struct RmsNorm<'a, T> {
    /// `[T, D]` input.
    pub x: View<'a, T>,
    /// `[D]` gain.
    pub weight: View<'a, T>,
    /// Added to the mean square; finite, >= 0.
    pub eps: f64,
    /// `[T, D]` output.
    pub y: ViewMut<'a, T>,
    /// `[T]` 1 / rms(x), if wanted.
    pub rstd: Option<ViewMut<'a, f32>>,
}

/// y\[t, d\] = x\[t, d\] · weight\[d\] / sqrt(mean_d(x\[t, d\]²) + eps).
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a non-contiguous last dimension or a bad `eps`.
///
/// # Cost
/// Reads x twice (once from cache) and writes y: `2·T·D` elements, `4·T·D` flops, one launch.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{RmsNorm, rmsnorm}};
/// let (x, weight) = ([3.0f32, 4.0], [1.0f32, 1.0]);
/// let mut y = [0f32; 2];
/// rmsnorm(&Device::Cpu, RmsNorm {
///     x: View::new(&x, &[1, 2])?,
///     weight: View::new(&weight, &[2])?,
///     eps: 0.0,
///     y: ViewMut::new(&mut y, &[1, 2])?,
///     rstd: None,
/// })?;
/// assert_eq!(y, [0.84852815, 1.1313709]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn rmsnorm<T: Float>(device: &Device, args: RmsNorm<'_, T>) -> Result<()> {
    let check = Check("rmsnorm");
    check.rank(device, "x", &args.x, 2)?;
    let (rows, d) = (args.x.extent(0), args.x.extent(1));
    check.that(d > 0, "x", "0 columns", "at least one column")?;
    check.shape(device, "weight", &args.weight, &[d])?;
    check.shape(device, "y", &args.y, &[rows, d])?;
    check.opt_shape(device, "rstd", &args.rstd, &[rows])?;
    check.non_negative("eps", args.eps)?;
    on_device!(device, check, args: RmsNorm<T: Float> => cpu::rmsnorm, gpu::rmsnorm)
}

/// Arguments of [`rmsnorm_bwd`].
#[derive(Debug)]
pub struct RmsNormBwd<'a, T> {
    /// `[T, D]` input of the forward pass.
    pub x: View<'a, T>,
    /// `[D]` gain.
    pub weight: View<'a, T>,
    /// The forward pass's eps.
    pub eps: f64,
    /// `[T, D]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[T, D]` gradient that reaches the input past the norm, added to its own; may not be `dx`.
    pub residual: Option<View<'a, T>>,
    /// `[T, D]` gradient of the input.
    pub dx: ViewMut<'a, T>,
    /// `[D]` gradient of the gain; added to what is there.
    pub dweight: Option<ViewMut<'a, f32>>,
}

/// Gradient of [`rmsnorm`] with respect to `x` and, if wanted, `weight`. Rows are summed in order,
/// so `dweight` does not depend on threads.
///
/// With a residual dx = residual + gradient: the gradient is rounded to f32, the sum is formed in
/// f32 and rounded once to the dtype, so that in f32 the bits are those of an addition afterwards.
/// f64 adds in f64.
///
/// # Errors
/// As [`rmsnorm`].
///
/// # Cost
/// Reads x and dy, writes dx: `3·T·D` elements, `T·D` more with a residual; `8·T·D` flops.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{RmsNormBwd, rmsnorm_bwd}};
/// let (x, weight, dy) = ([1f32, 1.0], [2f32, 2.0], [1f32, -1.0]);
/// let (mut dx, mut dweight) = ([0f32; 2], [0f32; 2]);
/// rmsnorm_bwd(&Device::Cpu, RmsNormBwd {
///     x: View::new(&x, &[1, 2])?,
///     weight: View::new(&weight, &[2])?,
///     eps: 0.0,
///     dy: View::new(&dy, &[1, 2])?,
///     residual: None,
///     dx: ViewMut::new(&mut dx, &[1, 2])?,
///     dweight: Some(ViewMut::new(&mut dweight, &[2])?),
/// })?;
/// assert_eq!((dx, dweight), ([2.0, -2.0], [1.0, -1.0]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn rmsnorm_bwd<T: Float>(device: &Device, args: RmsNormBwd<'_, T>) -> Result<()> {
    let check = Check("rmsnorm_bwd");
    check.rank(device, "x", &args.x, 2)?;
    let (rows, d) = (args.x.extent(0), args.x.extent(1));
    check.that(d > 0, "x", "0 columns", "at least one column")?;
    check.shape(device, "weight", &args.weight, &[d])?;
    check.shape(device, "dy", &args.dy, &[rows, d])?;
    check.opt_shape(device, "residual", &args.residual, &[rows, d])?;
    check.shape(device, "dx", &args.dx, &[rows, d])?;
    check.opt_shape(device, "dweight", &args.dweight, &[d])?;
    if let Some(residual) = &args.residual {
        check.disjoint(("dx", &args.dx), ("residual", residual))?;
    }
    check.non_negative("eps", args.eps)?;
    on_device!(device, check, args: RmsNormBwd<T: Float> => cpu::rmsnorm_bwd, gpu::rmsnorm_bwd)
}
