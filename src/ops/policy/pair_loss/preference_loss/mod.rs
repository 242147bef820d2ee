//! Losses on a chosen and a rejected sequence.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::group_advantage::check_lengths;
use crate::ops::policy::pair_loss::terms::check_terms;
use crate::ops::policy::tokens::finite;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// A quantity of the chosen and of the rejected sequences.
#[derive(Clone, Copy, Debug)]
pub struct Pair<T> {
    /// Of the preferred sequences.
    pub chosen: T,
    /// Of the others.
    pub rejected: T,
}

/// The score s of a sequence from its log-ratio a = log π − log π_ref: the f-divergences of f-DPO
/// (Wang et al. 2023, arXiv:2309.16240), each shifted so that a = 0 scores 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PreferenceScore {
    /// s = a, DPO's.
    ReverseKl,
    /// s = 1 − e^−a; −a is capped at 80, with gradient 0 beyond.
    ForwardKl,
    /// s = log 2 + log σ(a).
    JensenShannon,
    /// s = (e^{(α−1)a} − 1)/(α − 1); the exponent is capped at 80, with gradient 0 beyond. α = 1
    /// is reverse, α = 0 forward KL.
    Alpha(f64),
}

/// Which loss, with s_w and s_l the scores of chosen and rejected, Δ = β·(s_w − s_l), and r = β·s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PreferenceKind {
    /// −(1−ε)·log σ(Δ − γ) − ε·log σ(γ − Δ): DPO (arXiv:2305.18290, eq. 7) with ε = γ = 0, cDPO
    /// with ε > 0, SimPO (arXiv:2405.14734, eq. 6) with γ > 0, lengths and no reference, CPO
    /// (arXiv:2401.08417) without reference.
    Sigmoid {
        /// ε in [0, 0.5].
        label_smoothing: f64,
        /// γ, finite.
        margin: f64,
    },
    /// max(0, 1 − Δ) (SLiC-HF, arXiv:2305.10425); slope 0 at Δ = 1.
    Hinge,
    /// (s_w − s_l − 1/(2β))² (IPO, arXiv:2310.12036, eq. 17); TRL's variant takes lengths.
    Ipo,
    /// [−(1−ε)·log σ(Δ) + ε·log σ(−Δ)] / (1 − 2ε) (robust DPO, arXiv:2403.00409).
    Robust {
        /// Rate of flipped labels ε in [0, 0.5).
        label_smoothing: f64,
    },
    /// σ(Δ)·log(σ(Δ)/(1−ε)) + σ(−Δ)·log(σ(−Δ)/ε) (EXO, arXiv:2402.00856).
    Exo {
        /// ε in (0, 0.5].
        label_smoothing: f64,
    },
    /// −log σ(r_w) − ½·log σ(−r_w) − ½·log σ(−r_l) (NCA, arXiv:2402.05369).
    Nca,
    /// −log σ(r_w − δ) − log σ(δ − r_l) (BCO, arXiv:2404.04656).
    Bco {
        /// δ, the running mean of all rewards; finite.
        reference_point: f64,
    },
    /// (s_w − 1/(2β))² + (s_l + 1/(2β))² (SPPO with hard labels, arXiv:2405.00675).
    SppoHard,
    /// 1 − σ(r_w) + σ(r_l) (APO-zero, arXiv:2408.06266).
    ApoZero,
    /// σ(r_w) + 1 − σ(Δ) (APO-down, arXiv:2408.06266).
    ApoDown,
    /// −(1−m)·log σ(Δ) + m·e^−Δ with m = σ(Δ/τ) (DiscoPOP, arXiv:2406.08414).
    Discopop {
        /// τ > 0; 0.05 in the paper.
        temperature: f64,
    },
    /// −β·log σ(odds(ℓ_w) − odds(ℓ_l)) with odds(ℓ) = ℓ − log(1 − e^ℓ) and ℓ the mean log-prob
    /// (ORPO, arXiv:2403.07691, eq. 7). Needs lengths and takes no reference. ℓ is capped at −1e-7:
    /// certainty has infinite odds; the odds' gradient is 0 beyond.
    Orpo,
}

/// Arguments of [`preference_loss`].
#[derive(Debug)]
pub struct PreferenceLoss<'a, R> {
    /// `[P]` sums of the policy's token log-probs.
    pub logp: Pair<View<'a, R>>,
    /// `[P]` sums of the reference's; 0 without.
    pub reference: Option<Pair<View<'a, R>>>,
    /// `[P]` token counts >= 0: all log-probs are divided by them, if given. An empty sequence has
    /// mean 0 and gradient 0.
    pub length: Option<Pair<View<'a, i64>>>,
    /// Which loss.
    pub kind: PreferenceKind,
    /// How a log-ratio becomes a score.
    pub score: PreferenceScore,
    /// β > 0.
    pub beta: f64,
    /// Weight >= 0 of a likelihood term −ℓ_w on the chosen sequence (CPO, ORPO, RPO), divided by
    /// its length as above.
    pub likelihood: f64,
    /// `[P]` weights of the pairs in the total; 1/P without.
    pub weight: Option<View<'a, R>>,
    /// `[P]` loss of each pair.
    pub loss: ViewMut<'a, R>,
    /// `[P]` gradient of the total with respect to `logp`.
    pub dlogp: Pair<ViewMut<'a, R>>,
    /// `[P]` implicit rewards β·s, if wanted.
    pub reward: Option<Pair<ViewMut<'a, R>>>,
    /// `[1]` weighted total, if wanted.
    pub total: Option<ViewMut<'a, f64>>,
}

/// Σ_p weight_p·L(s_w, s_l) with its gradient; L is one of [`PreferenceKind`].
///
/// | published as | kind | reference | lengths | other settings |
/// |---|---|---|---|---|
/// | DPO; cDPO | `Sigmoid` | yes | no | label_smoothing 0; > 0 |
/// | length-normalized DPO (TRL `sigmoid_norm`) | `Sigmoid` | yes | yes | |
/// | SimPO | `Sigmoid` | no | yes | margin γ > 0 |
/// | CPO | `Sigmoid` | no | no | likelihood > 0 |
/// | IPO; as in TRL | `Ipo` | yes | no; yes | |
/// | ORPO | `Orpo` | no | yes | likelihood 1 |
/// | f-DPO | `Sigmoid` | yes | no | score not `ReverseKl` |
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, settings out of range, negative lengths, or
/// [`PreferenceKind::Orpo`] with a reference, without lengths or with another score than
/// `ReverseKl`; `NonFinite` for a log-prob or weight that is not finite.
///
/// # Cost
/// `O(P)`: up to 7 reads and 5 writes per pair.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{Pair, PreferenceKind, PreferenceLoss, PreferenceScore, preference_loss}};
/// let (chosen, rejected, zero) = (vec![0.0f64], vec![0.0f64], vec![0.0f64]);
/// let (mut loss, mut d_chosen, mut d_rejected) = (vec![0.0], vec![0.0], vec![0.0]);
/// preference_loss(&Device::Cpu, PreferenceLoss {
///     logp: Pair { chosen: (&chosen).into(), rejected: (&rejected).into() },
///     reference: Some(Pair { chosen: (&zero).into(), rejected: (&zero).into() }),
///     length: None,
///     kind: PreferenceKind::Sigmoid { label_smoothing: 0.0, margin: 0.0 },
///     score: PreferenceScore::ReverseKl,
///     beta: 0.5,
///     likelihood: 0.0,
///     weight: None,
///     loss: (&mut loss).into(),
///     dlogp: Pair { chosen: (&mut d_chosen).into(), rejected: (&mut d_rejected).into() },
///     reward: None,
///     total: None,
/// })?;
/// assert_eq!((loss[0], d_chosen[0], d_rejected[0]), (2f64.ln(), -0.25, 0.25));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn preference_loss<R: Real>(device: &Device, args: PreferenceLoss<'_, R>) -> Result<()> {
    let check = Check("preference_loss");
    check.rank(device, "logp.chosen", &args.logp.chosen, 1)?;
    let pairs = args.logp.chosen.extent(0);
    check.shape(device, "logp.rejected", &args.logp.rejected, &[pairs])?;
    finite(&check, "logp.chosen", &args.logp.chosen, &None)?;
    finite(&check, "logp.rejected", &args.logp.rejected, &None)?;
    if let Some(reference) = &args.reference {
        check.shape(device, "reference.chosen", &reference.chosen, &[pairs])?;
        check.shape(device, "reference.rejected", &reference.rejected, &[pairs])?;
        finite(&check, "reference.chosen", &reference.chosen, &None)?;
        finite(&check, "reference.rejected", &reference.rejected, &None)?;
    }
    if let Some(length) = &args.length {
        check.shape(device, "length.chosen", &length.chosen, &[pairs])?;
        check.shape(device, "length.rejected", &length.rejected, &[pairs])?;
        check_lengths(&check, "length.chosen", &length.chosen)?;
        check_lengths(&check, "length.rejected", &length.rejected)?;
    }
    check_terms(&check, device, pairs, &args.weight, &args.loss, &args.total)?;
    check.shape(device, "dlogp.chosen", &args.dlogp.chosen, &[pairs])?;
    check.shape(device, "dlogp.rejected", &args.dlogp.rejected, &[pairs])?;
    if let Some(reward) = &args.reward {
        check.shape(device, "reward.chosen", &reward.chosen, &[pairs])?;
        check.shape(device, "reward.rejected", &reward.rejected, &[pairs])?;
    }
    check.positive("beta", args.beta)?;
    check.non_negative("likelihood", args.likelihood)?;
    check_kind(&check, &args)?;
    on_device!(device, check, args: PreferenceLoss<R: Real> => cpu::preference_loss, gpu::preference_loss)
}

fn check_kind<R: Real>(check: &Check, args: &PreferenceLoss<'_, R>) -> Result<()> {
    let smoothing = |value: f64, ok: bool, expected: &str| {
        check.that(ok, "kind.label_smoothing", value, expected)
    };
    match args.kind {
        PreferenceKind::Sigmoid { label_smoothing: e, margin } => {
            smoothing(e, (0.0..=0.5).contains(&e), "a number in [0, 0.5]")?;
            check.factor("kind.margin", margin)?;
        }
        PreferenceKind::Robust { label_smoothing: e } => {
            smoothing(e, (0.0..0.5).contains(&e), "a number in [0, 0.5)")?;
        }
        PreferenceKind::Exo { label_smoothing: e } => {
            smoothing(e, e > 0.0 && e <= 0.5, "a number in (0, 0.5]")?;
        }
        PreferenceKind::Bco { reference_point: delta } => {
            check.factor("kind.reference_point", delta)?;
        }
        PreferenceKind::Discopop { temperature } => {
            check.positive("kind.temperature", temperature)?;
        }
        PreferenceKind::Orpo => {
            let with = |yes: bool| if yes { "one" } else { "none" };
            let reference = args.reference.is_some();
            check.that(!reference, "reference", with(reference), "none for kind Orpo")?;
            let length = args.length.is_some();
            check.that(length, "length", with(length), "lengths, which kind Orpo needs")?;
            let plain = args.score == PreferenceScore::ReverseKl;
            let got = format!("{:?}", args.score);
            check.that(plain, "score", got, "ReverseKl for kind Orpo")?;
        }
        _ => {}
    }
    match args.score {
        PreferenceScore::Alpha(alpha) => check.factor("score.alpha", alpha),
        _ => Ok(()),
    }
}
