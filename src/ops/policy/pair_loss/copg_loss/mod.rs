//! Contrastive policy gradient: all pairs of a group.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::group::GroupLoss;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`copg_loss`].
#[derive(Debug)]
pub struct CopgLoss<'a, R> {
    /// `[B]` sums of the policy's token log-probs, groups one after another.
    pub logp: View<'a, R>,
    /// `[B]` sums of the reference's. 0 without: the penalty is then on log π itself.
    pub reference: Option<View<'a, R>>,
    /// `[B]` rewards. NaN abstains: its sample enters no pair and gets gradient 0.
    pub reward: View<'a, R>,
    /// `[G + 1]` offsets of the groups.
    pub offsets: View<'a, i64>,
    /// β > 0.
    pub beta: f64,
    /// `[G]` weights of the groups in the total; 1/G without.
    pub weight: Option<View<'a, R>>,
    /// `[G]` loss of each group; 0 for one with fewer than two scorable samples.
    pub loss: ViewMut<'a, R>,
    /// `[B]` gradient of the total with respect to `logp`.
    pub dlogp: ViewMut<'a, R>,
    /// `[1]` weighted total, if wanted.
    pub total: Option<ViewMut<'a, f64>>,
}

/// L = mean over ordered pairs of (R_β,i − R_β,j)² / (2β), with R_β = R − β·(log π − log π_ref).
///
/// Contrastive policy gradient (Flet-Berliac et al. 2024, arXiv:2406.19185). For K samples the
/// pairs collapse: L = Σ(R_β − mean)² / (β·(K−1)) and ∂L/∂log π_i = −2/(K−1)·(R_β,i − mean), in
/// `O(K)`. The samples may come from any distribution; the minimizer is π_ref·e^{R/β}, normalized.
/// With K = 2 and rewards ±¼ it is β/2 times IPO.
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit, `beta` out of range or |reward| above
/// 1e140; `NonFinite` for an infinite reward or a log-prob or weight that is not finite.
///
/// # Cost
/// `O(B)`: three reads and one write per sample.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{CopgLoss, copg_loss}};
/// let (logp, reward, offsets) = (vec![0f64; 2], vec![1f64, 0.0], vec![0i64, 2]);
/// let (mut loss, mut dlogp) = (vec![0f64], vec![0f64; 2]);
/// copg_loss(&Device::Cpu, CopgLoss {
///     logp: (&logp).into(),
///     reference: None,
///     reward: (&reward).into(),
///     offsets: (&offsets).into(),
///     beta: 0.5,
///     weight: None,
///     loss: (&mut loss).into(),
///     dlogp: (&mut dlogp).into(),
///     total: None,
/// })?;
/// assert_eq!((loss[0], &dlogp[..]), (1.0, &[-1.0, 1.0][..]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn copg_loss<R: Real>(device: &Device, args: CopgLoss<'_, R>) -> Result<()> {
    let (check, args) = (Check("copg_loss"), GroupLoss::from(args));
    args.check(&check, device)?;
    on_device!(device, check, args: GroupLoss<R: Real> => cpu::copg_loss, gpu::copg_loss)
}
