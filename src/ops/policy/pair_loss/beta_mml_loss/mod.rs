//! β-smoothed maximum marginal likelihood over a group of correct solutions.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::group::GroupLoss;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`beta_mml_loss`].
#[derive(Debug)]
pub struct BetaMmlLoss<'a, R> {
    /// `[B]` sums of token log-probs of correct solutions, groups one after another.
    pub logp: View<'a, R>,
    /// `[G + 1]` offsets of the groups.
    pub offsets: View<'a, i64>,
    /// β > 0: 1 is the marginal likelihood, toward 0 all solutions weigh the same.
    pub beta: f64,
    /// `[G]` weights of the groups in the total; 1/G without.
    pub weight: Option<View<'a, R>>,
    /// `[G]` loss of each group; 0 for an empty one.
    pub loss: ViewMut<'a, R>,
    /// `[B]` gradient of the total with respect to `logp`.
    pub dlogp: ViewMut<'a, R>,
    /// `[1]` weighted total, if wanted.
    pub total: Option<ViewMut<'a, f64>>,
}

/// L = −(1/β)·log Σ_i e^{β·log π_i}, gradient −softmax_i(β·log π) (β-smoothed maximum marginal
/// likelihood; Guu et al. 2017, arXiv:1704.07926, and Ni et al. 2022, arXiv:2205.14318).
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit or `beta` out of range; `NonFinite` for a
/// log-prob or weight that is not finite.
///
/// # Cost
/// `O(B)`.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{BetaMmlLoss, beta_mml_loss}};
/// let (logp, offsets) = (vec![0.25f64.ln(); 2], vec![0i64, 2]);
/// let (mut loss, mut dlogp) = (vec![0f64], vec![0f64; 2]);
/// beta_mml_loss(&Device::Cpu, BetaMmlLoss {
///     logp: (&logp).into(),
///     offsets: (&offsets).into(),
///     beta: 1.0,
///     weight: None,
///     loss: (&mut loss).into(),
///     dlogp: (&mut dlogp).into(),
///     total: None,
/// })?;
/// assert!((loss[0] - 2f64.ln()).abs() < 1e-15); // -log(1/4 + 1/4)
/// assert_eq!(dlogp, [-0.5, -0.5]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn beta_mml_loss<R: Real>(device: &Device, args: BetaMmlLoss<'_, R>) -> Result<()> {
    let (check, args) = (Check("beta_mml_loss"), GroupLoss::from(args));
    args.check(&check, device)?;
    on_device!(device, check, args: GroupLoss<R: Real> => cpu::beta_mml_loss, gpu::beta_mml_loss)
}
