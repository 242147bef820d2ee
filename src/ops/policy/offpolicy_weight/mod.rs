//! Weights ρ for tokens that another policy sampled: truncated or masked importance ratios, and
//! rejection of tokens or sequences that are too far off.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// What the log-ratio D = ℓ_old − ℓ_sampler is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffPolicyLevel {
    /// Each token its own.
    Token,
    /// Σ D of the sequence for all its tokens.
    SequenceSum,
    /// Mean D of the sequence for all its tokens.
    SequenceMean,
}

/// What happens to a ratio outside `[min, max]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffPolicyBound {
    /// ρ = clip(ratio, min, max) (truncated importance sampling).
    Truncate,
    /// ρ = ratio inside, 0 outside (IcePop; TRL's mask modes).
    Mask,
    /// The token's own ratio where the sequence's geometric mean is inside, 0 elsewhere.
    SequenceMask,
}

/// Measure of a rejection rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectBy {
    /// −D, bounded on both sides.
    K1,
    /// ½·D².
    K2,
    /// e^D − 1 − D.
    K3,
}

/// What a rejection rule looks at and drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectLevel {
    /// A token by its own measure.
    Token,
    /// A sequence by the sum.
    SequenceSum,
    /// A sequence by the mean.
    SequenceMean,
    /// A sequence by the largest.
    SequenceMax,
}

/// Drops what lies outside the bounds (verl's rejection sampling).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reject {
    /// The measure.
    pub by: RejectBy,
    /// Tokens or sequences.
    pub level: RejectLevel,
    /// Smallest measure kept; −∞ = off.
    pub lo: f64,
    /// Largest measure kept; infinity = off.
    pub hi: f64,
}

/// Settings of [`offpolicy_weight`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OffPolicySettings {
    /// Level of the ratio.
    pub level: OffPolicyLevel,
    /// What happens outside the bounds.
    pub bound: OffPolicyBound,
    /// Lower bound of the ratio; 0 = none.
    pub min: f64,
    /// Upper bound of the ratio; infinity = none.
    pub max: f64,
    /// D of a token is clamped to ± this; infinity = off.
    pub clamp: f64,
    /// Divide ρ by its mean over the kept tokens.
    pub normalize: bool,
    /// Rejection, if any.
    pub reject: Option<Reject>,
}

impl Default for OffPolicySettings {
    /// TRL 1.16: `sequence_mask` with a cap of 3.
    fn default() -> OffPolicySettings {
        OffPolicySettings {
            level: OffPolicyLevel::SequenceSum,
            bound: OffPolicyBound::Mask,
            min: 0.0,
            max: 3.0,
            clamp: f64::INFINITY,
            normalize: false,
            reject: None,
        }
    }
}

/// Statistics of the ratios before any bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OffPolicyStats {
    /// Tokens.
    pub tokens: u64,
    /// Tokens with weight 0.
    pub dropped: u64,
    /// Tokens whose sampler log-prob was NaN; their D counts as 0.
    pub nan_sampler: u64,
    /// Smallest ratio.
    pub min: f64,
    /// Largest ratio.
    pub max: f64,
    /// Mean ratio.
    pub mean: f64,
    /// Effective sample size (Σ ratio)² / Σ ratio², as a share of the tokens.
    pub ess: f64,
    /// χ² divergence estimate: mean ratio² − 1.
    pub chi2: f64,
}

/// Arguments of [`offpolicy_weight`].
#[derive(Debug)]
pub struct OffPolicyWeight<'a, R> {
    /// `[N]` log-probs under the policy the trainer computes with.
    pub old_logp: View<'a, R>,
    /// `[N]` log-probs the sampler reported.
    pub sampler_logp: View<'a, R>,
    /// `[N]` 0 = not there: never read, weight 0.
    pub mask: Option<View<'a, u8>>,
    /// `[B + 1]` offsets of the sequences.
    pub cu_seqlens: View<'a, i64>,
    /// Settings.
    pub settings: OffPolicySettings,
    /// `[N]` ρ.
    pub weight: ViewMut<'a, R>,
    /// Statistics before clipping, if wanted.
    pub stats: Option<&'a mut OffPolicyStats>,
}

/// ρ_t = bound(exp(D)), D = ℓ_old − ℓ_sampler at the settings' level; no gradient flows through it.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, offsets that fall, or bounds that are no interval.
///
/// # Cost
/// O(N), one exponential per token.
///
/// # Example
/// ```
/// use gradus::Device;
/// use gradus::ops::{
///     OffPolicyBound, OffPolicyLevel, OffPolicySettings, OffPolicyWeight, offpolicy_weight,
/// };
/// let (old, sampler) = (vec![-1f32, -1.0], vec![-1f32, -3.0]);
/// let (cu_seqlens, mut weight) = (vec![0i64, 2], vec![0f32; 2]);
/// offpolicy_weight(&Device::Cpu, OffPolicyWeight {
///     old_logp: (&old).into(),
///     sampler_logp: (&sampler).into(),
///     mask: None,
///     cu_seqlens: (&cu_seqlens).into(),
///     settings: OffPolicySettings {
///         level: OffPolicyLevel::Token,
///         bound: OffPolicyBound::Truncate,
///         max: 2.0,
///         ..OffPolicySettings::default()
///     },
///     weight: (&mut weight).into(),
///     stats: None,
/// })?;
/// assert_eq!(weight, [1.0, 2.0]); // e^0, and e^2 bounded
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn offpolicy_weight<R: Real>(device: &Device, args: OffPolicyWeight<'_, R>) -> Result<()> {
    let check = Check("offpolicy_weight");
    check.rank(device, "old_logp", &args.old_logp, 1)?;
    let n = args.old_logp.extent(0);
    check.shape(device, "sampler_logp", &args.sampler_logp, &[n])?;
    check.opt_shape(device, "mask", &args.mask, &[n])?;
    check.cu_seqlens(device, "cu_seqlens", &args.cu_seqlens, n)?;
    check.shape(device, "weight", &args.weight, &[n])?;
    let s = &args.settings;
    check.non_negative("settings.min", s.min)?;
    let got = format!("{} with min {}", s.max, s.min);
    check.that(
        s.max > 0.0 && s.max >= s.min,
        "settings.max",
        got,
        "a number > 0, not below min",
    )?;
    check.that(s.clamp > 0.0, "settings.clamp", s.clamp, "a number > 0 (infinity = off)")?;
    if let Some(reject) = &s.reject {
        let got = format!("{}..{}", reject.lo, reject.hi);
        check.that(reject.lo <= reject.hi, "settings.reject.lo", got, "an interval")?;
    }
    on_device!(device, check, args: OffPolicyWeight<R: Real> => cpu::offpolicy_weight, gpu::offpolicy_weight)
}
