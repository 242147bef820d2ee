//! Discounted returns over packed sequences.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::tokens::{Tokens, finite, unit_interval};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// What [`discounted_return`] does at a token outside the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskedReturn {
    /// Passes over it without a discount, as [`gae`](crate::ops::gae()) does.
    Skip,
    /// Starts anew: what comes later does not reach earlier tokens (verl's REINFORCE++).
    Reset,
}

/// Arguments of [`discounted_return`].
#[derive(Debug)]
pub struct DiscountedReturn<'a, R> {
    /// `[T]` reward of each token.
    pub reward: View<'a, R>,
    /// `[T]` nonzero where a token is an action. Other tokens are never read and get 0.
    pub mask: Option<View<'a, u8>>,
    /// `[B + 1]` offsets of the packed sequences.
    pub cu_seqlens: View<'a, i64>,
    /// Discount γ in [0, 1].
    pub gamma: f64,
    /// What a token outside the mask does to the sum.
    pub masked: MaskedReturn,
    /// `[B]` subtracted from every return of the sequence: the greedy sample's reward in ReMax.
    pub baseline: Option<View<'a, R>>,
    /// `[T]` output.
    pub returns: ViewMut<'a, R>,
}

/// G_t = r_t + γ·G_{t'} (− baseline), t' being the next action of the sequence: REINFORCE++ before
/// whitening (arXiv:2501.03262), ReMax with γ = 1 and a baseline (arXiv:2310.10505).
///
/// # Errors
/// As [`gae`](crate::ops::gae()).
///
/// # Cost
/// Reads rewards and writes returns: `2·T` elements.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{DiscountedReturn, MaskedReturn, discounted_return}};
/// let (reward, cu_seqlens) = (vec![1f32, 0.0, 4.0], vec![0i64, 3]);
/// let mut returns = vec![0f32; 3];
/// discounted_return(&Device::Cpu, DiscountedReturn {
///     reward: (&reward).into(),
///     mask: None,
///     cu_seqlens: (&cu_seqlens).into(),
///     gamma: 0.5,
///     masked: MaskedReturn::Skip,
///     baseline: None,
///     returns: (&mut returns).into(),
/// })?;
/// assert_eq!(returns, [2.0, 2.0, 4.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn discounted_return<R: Real>(device: &Device, args: DiscountedReturn<'_, R>) -> Result<()> {
    let check = Check("discounted_return");
    let tokens = Tokens::of(&check, device, "reward", &args.reward, &args.mask, &args.cu_seqlens)?;
    check.opt_shape(device, "baseline", &args.baseline, &[tokens.sequences])?;
    check.shape(device, "returns", &args.returns, &[tokens.count])?;
    unit_interval(&check, "gamma", args.gamma)?;
    finite(&check, "reward", &args.reward, &args.mask)?;
    if let Some(baseline) = &args.baseline {
        finite(&check, "baseline", baseline, &None)?;
    }
    on_device!(device, check, args: DiscountedReturn<R: Real> => cpu::discounted_return, gpu::discounted_return)
}
