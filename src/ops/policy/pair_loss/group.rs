//! Losses over the samples of a group: contrastive policy gradient and β-MML.

use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;

use super::{cpu, gpu_group};
use crate::check::Check;
use crate::ops::policy::gae::finite;
use crate::ops::policy::group_advantage::check_rewards;
use crate::ops::policy::pair_loss::check_terms;
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
    pub d_logp: ViewMut<'a, R>,
    /// `[1]` weighted total, if wanted.
    pub total: Option<ViewMut<'a, f64>>,
}

/// L = mean over ordered pairs of (R_β,i − R_β,j)² / (2β), with R_β = R − β·(log π − log π_ref).
///
/// Contrastive policy gradient (Flet-Berliac et al. 2024, arXiv:2406.19185). For K samples the
/// pairs collapse: L = Σ(R_β − mean)² / (β·(K−1)) and ∂L/∂log π_i = −2/(K−1)·(R_β,i − mean), in
/// `O(K)`. The samples may come from any distribution; the minimiser is π_ref·e^{R/β}, normalised.
/// With K = 2 and rewards ±¼ it is β/2 times IPO.
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit, `beta` out of range or |reward| above
/// 1e140; `NonFinite` for an infinite reward or a log-prob or weight that is not finite.
///
/// # Cost
/// `O(B)`: three reads and a write a sample.
pub fn copg_loss<R: Real>(device: &Device, args: CopgLoss<'_, R>) -> Result<()> {
    let check = Check("copg_loss");
    check.rank(device, "logp", &args.logp, 1)?;
    let samples = args.logp.extent(0);
    check.opt_shape(device, "reference", &args.reference, &[samples])?;
    check.shape(device, "reward", &args.reward, &[samples])?;
    let groups = check.cu_seqlens(device, "offsets", &args.offsets, samples)?;
    check_terms(&check, device, groups, &args.weight, &args.loss, &args.total)?;
    check.shape(device, "d_logp", &args.d_logp, &[samples])?;
    check.positive("beta", args.beta)?;
    finite(&check, "logp", &args.logp, &None)?;
    if let Some(reference) = &args.reference {
        finite(&check, "reference", reference, &None)?;
    }
    check_rewards(&check, &args.reward)?;
    on_device!(device, check, args: CopgLoss<R: Real> => cpu::copg_loss, gpu_group::copg_loss)
}

/// Arguments of [`beta_mml_loss`].
#[derive(Debug)]
pub struct BetaMmlLoss<'a, R> {
    /// `[B]` sums of token log-probs of correct solutions, groups one after another.
    pub logp: View<'a, R>,
    /// `[G + 1]` offsets of the groups.
    pub offsets: View<'a, i64>,
    /// β > 0: 1 is the marginal likelihood, towards 0 all solutions weigh the same.
    pub beta: f64,
    /// `[G]` weights of the groups in the total; 1/G without.
    pub weight: Option<View<'a, R>>,
    /// `[G]` loss of each group; 0 for an empty one.
    pub loss: ViewMut<'a, R>,
    /// `[B]` gradient of the total with respect to `logp`.
    pub d_logp: ViewMut<'a, R>,
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
pub fn beta_mml_loss<R: Real>(device: &Device, args: BetaMmlLoss<'_, R>) -> Result<()> {
    let check = Check("beta_mml_loss");
    check.rank(device, "logp", &args.logp, 1)?;
    let samples = args.logp.extent(0);
    let groups = check.cu_seqlens(device, "offsets", &args.offsets, samples)?;
    check_terms(&check, device, groups, &args.weight, &args.loss, &args.total)?;
    check.shape(device, "d_logp", &args.d_logp, &[samples])?;
    check.positive("beta", args.beta)?;
    finite(&check, "logp", &args.logp, &None)?;
    on_device!(device, check, args: BetaMmlLoss<R: Real> => cpu::beta_mml_loss, gpu_group::beta_mml_loss)
}
