//! Contrast between contexts and completions.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::policy::group_advantage::check_lengths;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`info_nce_loss`].
#[derive(Debug)]
pub struct InfoNceLoss<'a, R> {
    /// `[n, n]`: row i holds log π(y_j | x, c_i) for every completion j, summed over its tokens.
    pub logp: View<'a, R>,
    /// `[n]` token counts >= 0 of the completions, which divide their columns, if given. An empty
    /// completion has mean 0 and gradient 0.
    pub length: Option<View<'a, i64>>,
    /// `[1]` loss.
    pub loss: ViewMut<'a, R>,
    /// `[n, n]` gradient of the loss with respect to `logp`.
    pub dlogp: ViewMut<'a, R>,
}

/// L = −(1/2n)·Σ_i (log softmax_j S_ij at j = i + log softmax_j S_ji at j = i), S being the
/// length-mean log-probs; ∂L/∂S = (P_row + P_col − 2I)/(2n) (symmetric InfoNCE of SAMI, Fränken et
/// al. 2024, arXiv:2404.14313). n = 0 and n = 1 give 0.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit or negative lengths; `NonFinite` for a log-prob that
/// is not finite.
///
/// # Cost
/// `O(n²)`, `8·n²` bytes of scratch.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{InfoNceLoss, info_nce_loss}};
/// let (logp, mut loss, mut dlogp) = ([0f64; 4], vec![0f64], [0f64; 4]);
/// info_nce_loss(&Device::Cpu, InfoNceLoss {
///     logp: View::new(&logp, &[2, 2])?,
///     length: None,
///     loss: (&mut loss).into(),
///     dlogp: ViewMut::new(&mut dlogp, &[2, 2])?,
/// })?;
/// assert_eq!((loss[0], dlogp), (2f64.ln(), [-0.25, 0.25, 0.25, -0.25]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn info_nce_loss<R: Real>(device: &Device, args: InfoNceLoss<'_, R>) -> Result<()> {
    let check = Check("info_nce_loss");
    check.rank(device, "logp", &args.logp, 2)?;
    let n = args.logp.extent(0);
    check.shape(device, "logp", &args.logp, &[n, n])?;
    if let Some(length) = &args.length {
        check.shape(device, "length", length, &[n])?;
        check_lengths(&check, "length", length)?;
    }
    check.shape(device, "loss", &args.loss, &[1])?;
    check.shape(device, "dlogp", &args.dlogp, &[n, n])?;
    let known = if args.logp.is_host() { n } else { 0 };
    for i in 0..known {
        let bad = args.logp.row(i).iter().position(|s| !s.to_f64().is_finite());
        if let Some(j) = bad {
            return Err(Error::NonFinite { op: check.0, arg: "logp".into(), index: i * n + j });
        }
    }
    on_device!(device, check, args: InfoNceLoss<R: Real> => cpu::info_nce_loss, gpu::info_nce_loss)
}
