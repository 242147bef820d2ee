//! Generalized advantage estimation over packed sequences.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::tokens::{Tokens, finite, unit_interval};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`gae`].
#[derive(Debug)]
pub struct Gae<'a, R> {
    /// `[T]` reward of each token.
    pub reward: View<'a, R>,
    /// `[T]` value estimate before each token.
    pub value: View<'a, R>,
    /// `[T]` nonzero where a token is an action. Other tokens are skipped, never read, and get 0.
    pub mask: Option<View<'a, u8>>,
    /// `[B + 1]` offsets of the packed sequences.
    pub cu_seqlens: View<'a, i64>,
    /// `[B]` value after the last token of a truncated sequence; 0 without.
    pub bootstrap: Option<View<'a, R>>,
    /// Discount γ in [0, 1].
    pub gamma: f64,
    /// λ in [0, 1]: 0 is one-step TD, 1 the discounted return minus the value.
    pub gae_lambda: f64,
    /// `[T]` advantage.
    pub advantage: ViewMut<'a, R>,
    /// `[T]` advantage + value, the critic's target, if wanted.
    pub returns: Option<ViewMut<'a, R>>,
}

/// A_t = δ_t + γ·λ·A_{t'} with δ_t = r_t + γ·V_{t'} − V_t, t' being the next action of the sequence
/// (Schulman et al. 2016, arXiv:1506.02438, eq. 16; the mask as in TRL and verl: observations
/// between two actions cost no discount).
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit or factors outside [0, 1]; `NonFinite`
/// for a reward, value or bootstrap value that is used and not finite. What is in device memory is not
/// looked at before the launch: such a value spreads to the earlier tokens of its sequence, offsets
/// count as clamped to 0..=T, and a token that no sequence holds keeps what it had.
///
/// # Cost
/// Reads reward and value, writes one or two outputs: `4·T` elements, sequential in a sequence on the
/// CPU, a scan on a GPU, parallel over sequences.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{Gae, gae}};
/// let (reward, value) = (vec![0.0f32, 1.0], vec![0.5f32, 0.75]);
/// let (cu_seqlens, mut advantage) = (vec![0i64, 2], vec![0f32; 2]);
/// gae(&Device::Cpu, Gae {
///     reward: (&reward).into(),
///     value: (&value).into(),
///     mask: None,
///     cu_seqlens: (&cu_seqlens).into(),
///     bootstrap: None,
///     gamma: 1.0,
///     gae_lambda: 1.0,
///     advantage: (&mut advantage).into(),
///     returns: None,
/// })?;
/// assert_eq!(advantage, [0.5, 0.25]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn gae<R: Real>(device: &Device, args: Gae<'_, R>) -> Result<()> {
    let check = Check("gae");
    let tokens = Tokens::of(&check, device, "reward", &args.reward, &args.mask, &args.cu_seqlens)?;
    check.shape(device, "value", &args.value, &[tokens.count])?;
    check.opt_shape(device, "bootstrap", &args.bootstrap, &[tokens.sequences])?;
    check.shape(device, "advantage", &args.advantage, &[tokens.count])?;
    check.opt_shape(device, "returns", &args.returns, &[tokens.count])?;
    unit_interval(&check, "gamma", args.gamma)?;
    unit_interval(&check, "gae_lambda", args.gae_lambda)?;
    finite(&check, "reward", &args.reward, &args.mask)?;
    finite(&check, "value", &args.value, &args.mask)?;
    if let Some(bootstrap) = &args.bootstrap {
        finite(&check, "bootstrap", bootstrap, &None)?;
    }
    on_device!(device, check, args: Gae<R: Real> => cpu::gae, gpu::gae)
}
