//! A reward per token: the KL penalty, and the score of the sequence on its last action.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::tokens::{Tokens, finite};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

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
/// As [`gae`](crate::ops::gae()); also for a `clamp` that is not > 0.
///
/// # Cost
/// Reads two log-probabilities and writes a reward per token: `3·T` elements.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{KlReward, RewardKl, kl_reward}};
/// let (logp, reference) = (vec![-1f32, -2.0], vec![-1.5f32, -2.0]);
/// let (score, cu_seqlens, mut reward) = (vec![1f32], vec![0i64, 2], vec![0f32; 2]);
/// kl_reward(&Device::Cpu, KlReward {
///     score: (&score).into(),
///     logp: (&logp).into(),
///     reference: (&reference).into(),
///     mask: None,
///     cu_seqlens: (&cu_seqlens).into(),
///     beta: 0.5,
///     estimator: RewardKl::K1,
///     clamp: f64::INFINITY,
///     reward: (&mut reward).into(),
/// })?;
/// assert_eq!(reward, [-0.25, 1.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
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
