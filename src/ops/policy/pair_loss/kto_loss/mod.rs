//! KTO's loss on single labeled sequences.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::terms::check_terms;
use crate::ops::policy::tokens::finite;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`kto_loss`].
#[derive(Debug)]
pub struct KtoLoss<'a, R> {
    /// `[B]` sums of the policy's token log-probs.
    pub logp: View<'a, R>,
    /// `[B]` sums of the reference's.
    pub reference: View<'a, R>,
    /// `[B]` nonzero for a desirable sequence.
    pub desirable: View<'a, u8>,
    /// β > 0.
    pub beta: f64,
    /// z₀ >= 0, the estimate of KL(π‖π_ref); no gradient goes through it.
    pub kl: f64,
    /// λ_D >= 0.
    pub desirable_weight: f64,
    /// λ_U >= 0.
    pub undesirable_weight: f64,
    /// `[B]` weights of the sequences in the total; 1/B without.
    pub weight: Option<View<'a, R>>,
    /// `[B]` loss of each sequence.
    pub loss: ViewMut<'a, R>,
    /// `[B]` gradient of the total with respect to `logp`.
    pub dlogp: ViewMut<'a, R>,
    /// `[1]` weighted total, if wanted.
    pub total: Option<ViewMut<'a, f64>>,
}

/// L_i = λ_D·(1 − σ(β(a − z₀))) if desirable, else λ_U·(1 − σ(β(z₀ − a))), with a = log π − log π_ref
/// (KTO, Ethayarajh et al. 2024, arXiv:2402.01306).
///
/// # Errors
/// As [`preference_loss`](crate::ops::preference_loss()).
///
/// # Cost
/// `O(B)`.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{KtoLoss, kto_loss}};
/// let (logp, reference, desirable) = (vec![-3f64], vec![-3f64], vec![1u8]);
/// let (mut loss, mut dlogp) = (vec![0f64], vec![0f64]);
/// kto_loss(&Device::Cpu, KtoLoss {
///     logp: (&logp).into(),
///     reference: (&reference).into(),
///     desirable: (&desirable).into(),
///     beta: 1.0,
///     kl: 0.0,
///     desirable_weight: 1.0,
///     undesirable_weight: 1.0,
///     weight: None,
///     loss: (&mut loss).into(),
///     dlogp: (&mut dlogp).into(),
///     total: None,
/// })?;
/// assert_eq!((loss[0], dlogp[0]), (0.5, -0.25));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn kto_loss<R: Real>(device: &Device, args: KtoLoss<'_, R>) -> Result<()> {
    let check = Check("kto_loss");
    check.rank(device, "logp", &args.logp, 1)?;
    let count = args.logp.extent(0);
    check.shape(device, "reference", &args.reference, &[count])?;
    check.shape(device, "desirable", &args.desirable, &[count])?;
    check_terms(&check, device, count, &args.weight, &args.loss, &args.total)?;
    check.shape(device, "dlogp", &args.dlogp, &[count])?;
    check.positive("beta", args.beta)?;
    check.non_negative("kl", args.kl)?;
    check.non_negative("desirable_weight", args.desirable_weight)?;
    check.non_negative("undesirable_weight", args.undesirable_weight)?;
    finite(&check, "logp", &args.logp, &None)?;
    finite(&check, "reference", &args.reference, &None)?;
    on_device!(device, check, args: KtoLoss<R: Real> => cpu::kto_loss, gpu::kto_loss)
}
