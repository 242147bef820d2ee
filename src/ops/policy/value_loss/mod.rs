//! The critic's loss: squared error to the returns, optionally clipped around the old values.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`value_loss`].
#[derive(Debug)]
pub struct ValueLoss<'a, R> {
    /// `[N]` values under the critic.
    pub value: View<'a, R>,
    /// `[N]` returns the critic should predict.
    pub returns: View<'a, R>,
    /// `[N]` values before this batch's updates, for the clip.
    pub old_value: Option<View<'a, R>>,
    /// `[N]` 0 = not there: never read.
    pub mask: Option<View<'a, u8>>,
    /// ε of the clip; infinity = off.
    pub clip: f64,
    /// Weight of every token: 1 / tokens for a mean. Finite.
    pub weight: f64,
    /// weight · Σ_t L_t.
    pub loss: &'a mut f64,
    /// `[N]` ∂loss/∂value; 0 where masked.
    pub dvalue: ViewMut<'a, R>,
}

/// L = ½·max((v − R)², (v_old + clip(v − v_old, ±ε) − R)²) (Schulman et al. 2017, arXiv:1707.06347,
/// with the value clip of the PPO code base). The gradient is v − R where the unclipped error is the
/// larger one or v is inside the window, else 0.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a negative clip, a clip without `old_value`, or a
/// weight that is not finite.
///
/// # Cost
/// O(N).
///
/// # Example
/// ```
/// use gradus::{Device, ops::{ValueLoss, value_loss}};
/// let (value, returns) = (vec![1f32], vec![3f32]);
/// let (mut loss, mut dvalue) = (0.0, vec![0f32]);
/// value_loss(&Device::Cpu, ValueLoss {
///     value: (&value).into(),
///     returns: (&returns).into(),
///     old_value: None,
///     mask: None,
///     clip: f64::INFINITY,
///     weight: 1.0,
///     loss: &mut loss,
///     dvalue: (&mut dvalue).into(),
/// })?;
/// assert_eq!((loss, dvalue[0]), (2.0, -2.0));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn value_loss<R: Real>(device: &Device, args: ValueLoss<'_, R>) -> Result<()> {
    let check = Check("value_loss");
    check.rank(device, "value", &args.value, 1)?;
    let n = args.value.extent(0);
    check.shape(device, "returns", &args.returns, &[n])?;
    check.opt_shape(device, "old_value", &args.old_value, &[n])?;
    check.opt_shape(device, "mask", &args.mask, &[n])?;
    check.shape(device, "dvalue", &args.dvalue, &[n])?;
    check.that(args.clip >= 0.0, "clip", args.clip, "a number >= 0 (infinity = off)")?;
    let there = args.clip == f64::INFINITY || args.old_value.is_some();
    check.that(there, "old_value", "nothing", "the values the clip is around")?;
    check.factor("weight", args.weight)?;
    on_device!(device, check, args: ValueLoss<R: Real> => cpu::value_loss, gpu::value_loss)
}
