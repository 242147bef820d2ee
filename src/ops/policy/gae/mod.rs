//! Token-level advantages over packed sequences: generalised advantage estimation, discounted
//! returns, whitening, and the KL penalty inside the reward.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::policy::group_advantage::EpsForm;
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
    pub lambda: f64,
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
///     lambda: 1.0,
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
    unit_interval(&check, "lambda", args.lambda)?;
    finite(&check, "reward", &args.reward, &args.mask)?;
    finite(&check, "value", &args.value, &args.mask)?;
    if let Some(bootstrap) = &args.bootstrap {
        finite(&check, "bootstrap", bootstrap, &None)?;
    }
    on_device!(device, check, args: Gae<R: Real> => cpu::gae, gpu::gae)
}

/// What [`discounted_return`] does at a token outside the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskedReturn {
    /// Passes over it without a discount, as [`gae`] does.
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
/// As [`gae`].
///
/// # Cost
/// Reads rewards and writes returns: `2·T` elements.
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

/// Settings of [`whiten`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WhitenSettings {
    /// 1 for Bessel's correction of the variance, 0 for the population's.
    pub ddof: u8,
    /// Guard of the division; finite, >= 0.
    pub eps: f64,
    /// Where `eps` goes.
    pub eps_form: EpsForm,
    /// Added to the count in the means; finite, >= 0. 0 is right, verl has 1e-8.
    pub count_eps: f64,
    /// False adds the mean back after the division.
    pub shift_mean: bool,
}

impl WhitenSettings {
    /// `masked_whiten` of verl and of TRL's PPO.
    pub const VERL: WhitenSettings = WhitenSettings {
        ddof: 1,
        eps: 1e-8,
        eps_form: EpsForm::AddToVariance,
        count_eps: 1e-8,
        shift_mean: true,
    };
    /// Advantage normalisation of OpenRLHF.
    pub const OPENRLHF: WhitenSettings = WhitenSettings {
        ddof: 0,
        eps: 1e-8,
        eps_form: EpsForm::FloorVariance,
        count_eps: 0.0,
        shift_mean: true,
    };
}

/// What [`whiten`] measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WhitenStats {
    /// Tokens of the mask.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation with the settings' `ddof`.
    pub std: f64,
}

/// Arguments of [`whiten`].
#[derive(Debug)]
pub struct Whiten<'a, R> {
    /// `[T]` values of the whole batch: whiten before it is split, or the result depends on the
    /// split.
    pub x: View<'a, R>,
    /// `[T]` nonzero where a token counts. Others are never read and get 0.
    pub mask: Option<View<'a, u8>>,
    /// Which variance and guard.
    pub settings: WhitenSettings,
    /// `[T]` output.
    pub y: ViewMut<'a, R>,
    /// Replaced by what was measured, if wanted.
    pub stats: Option<&'a mut WhitenStats>,
}

/// y_t = (x_t − mean) / σ over all tokens of the mask, guarded by `eps`; exactly 0 if they are all
/// equal.
///
/// REINFORCE++ is [`discounted_return`], then this; its baseline variant is
/// \[`group_advantage`\](crate::ops::group_advantage) without scale,
/// [`seq_broadcast`](crate::ops::seq_broadcast), then this.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, settings out of range, or fewer than two tokens in
/// the mask, which have no spread; `NonFinite` for a used value that is not finite. A mask in device
/// memory is not counted before the launch: one token gives 0. There a NaN in x enters no statistic.
///
/// # Cost
/// Reads x four times and writes y; sequential on the CPU and in fixed chunks on a GPU, so that the
/// sums have one order. Asking for the statistics makes the call wait for a GPU.
pub fn whiten<R: Real>(device: &Device, args: Whiten<'_, R>) -> Result<()> {
    let check = Check("whiten");
    check.rank(device, "x", &args.x, 1)?;
    let tokens = args.x.extent(0);
    check.opt_shape(device, "mask", &args.mask, &[tokens])?;
    check.shape(device, "y", &args.y, &[tokens])?;
    let settings = &args.settings;
    check.that(settings.ddof <= 1, "settings.ddof", settings.ddof, "0 or 1")?;
    check.non_negative("settings.eps", settings.eps)?;
    check.non_negative("settings.count_eps", settings.count_eps)?;
    finite(&check, "x", &args.x, &args.mask)?;
    if args.mask.as_ref().is_none_or(|m| m.is_host()) {
        let count = (0..tokens).filter(|&t| is_action(&args.mask, t)).count();
        check.that(
            count >= 2,
            "mask",
            format!("{count} tokens"),
            "at least 2 tokens to compare",
        )?;
    }
    on_device!(device, check, args: Whiten<R: Real> => cpu::whiten, gpu::whiten)
}

/// Estimator of KL(π‖π_ref) at one token from d = log π − log π_ref (Schulman 2020, "Approximating
/// KL divergence").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewardKl {
    /// d: unbiased, any sign.
    K1,
    /// d² / 2.
    K2,
    /// e^−d + d − 1, computed by expm1: never negative.
    K3,
    /// |d|.
    Abs,
}

/// Arguments of [`kl_reward`].
#[derive(Debug)]
pub struct KlReward<'a, R> {
    /// `[B]` reward of each sequence, placed on its last action. A sequence without an action has
    /// no place for it.
    pub score: View<'a, R>,
    /// `[T]` log π of the sampled tokens when they were sampled.
    pub logp: View<'a, R>,
    /// `[T]` log π_ref of the same tokens.
    pub reference: View<'a, R>,
    /// `[T]` nonzero where a token is an action. Others are never read and get 0.
    pub mask: Option<View<'a, u8>>,
    /// `[B + 1]` offsets of the packed sequences.
    pub cu_seqlens: View<'a, i64>,
    /// Weight β of the penalty; finite, >= 0.
    pub beta: f64,
    /// Which estimator.
    pub estimator: RewardKl,
    /// Largest |log π − log π_ref|, clamped before the estimator; infinity is off.
    pub clamp: f64,
    /// `[T]` output.
    pub reward: ViewMut<'a, R>,
}

/// r_t = −β·KL_t, plus the sequence's score on its last action (Ziegler et al. 2019,
/// arXiv:1909.08593, eq. 2, split over tokens).
///
/// # Errors
/// As [`gae`]; also for a `clamp` that is not > 0.
///
/// # Cost
/// Reads two log-probabilities and writes a reward per token: `3·T` elements.
pub fn kl_reward<R: Real>(device: &Device, args: KlReward<'_, R>) -> Result<()> {
    let check = Check("kl_reward");
    let tokens = Tokens::of(&check, device, "logp", &args.logp, &args.mask, &args.cu_seqlens)?;
    check.shape(device, "score", &args.score, &[tokens.sequences])?;
    check.shape(device, "reference", &args.reference, &[tokens.count])?;
    check.shape(device, "reward", &args.reward, &[tokens.count])?;
    check.non_negative("beta", args.beta)?;
    check.that(args.clamp > 0.0, "clamp", args.clamp, "a number > 0, infinity for none")?;
    finite(&check, "score", &args.score, &None)?;
    finite(&check, "logp", &args.logp, &args.mask)?;
    finite(&check, "reference", &args.reference, &args.mask)?;
    on_device!(device, check, args: KlReward<R: Real> => cpu::kl_reward, gpu::kl_reward)
}

/// Extents of a packed batch.
pub(crate) struct Tokens {
    pub count: usize,
    pub sequences: usize,
}

impl Tokens {
    /// Checks the operand that gives the extents, the mask and the offsets.
    pub(crate) fn of<R: Real>(
        check: &Check,
        device: &Device,
        arg: &str,
        x: &View<'_, R>,
        mask: &Option<View<'_, u8>>,
        cu_seqlens: &View<'_, i64>,
    ) -> Result<Tokens> {
        check.rank(device, arg, x, 1)?;
        let count = x.extent(0);
        check.opt_shape(device, "mask", mask, &[count])?;
        let sequences = check.cu_seqlens(device, "cu_seqlens", cu_seqlens, count)?;
        Ok(Tokens { count, sequences })
    }
}

/// True if token `t` is in the mask; no mask holds every token.
#[inline(always)]
pub(crate) fn is_action(mask: &Option<View<'_, u8>>, t: usize) -> bool {
    mask.as_ref().is_none_or(|m| m.at(t) != 0)
}

/// Every element of a vector that the mask lets through is finite. What is in device memory cannot
/// be looked at without waiting for the device.
pub(crate) fn finite<R: Real>(
    check: &Check,
    arg: &str,
    x: &View<'_, R>,
    mask: &Option<View<'_, u8>>,
) -> Result<()> {
    let known = x.is_host() && mask.as_ref().is_none_or(|m| m.is_host());
    let tokens = if known { x.extent(0) } else { 0 };
    match (0..tokens).find(|&t| is_action(mask, t) && !x.at(t).to_f64().is_finite()) {
        Some(index) => Err(Error::NonFinite { op: check.0, arg: arg.into(), index }),
        None => Ok(()),
    }
}

fn unit_interval(check: &Check, arg: &str, value: f64) -> Result<()> {
    check.that((0.0..=1.0).contains(&value), arg, value, "a number in [0, 1]")
}
