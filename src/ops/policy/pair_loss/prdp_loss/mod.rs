//! Reward-difference prediction over pairs, with a proximal bound on every step.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc::{self, Grow};

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::policy::pair_loss::terms::check_terms;
use crate::ops::policy::tokens::{Tokens, finite};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`prdp_loss`].
#[derive(Debug)]
pub struct PrdpLoss<'a, R> {
    /// `[T]` log π of the tokens.
    pub logp: View<'a, R>,
    /// `[T]` log π when they were sampled, the center of the bound.
    pub old: View<'a, R>,
    /// `[T]` log π_ref.
    pub reference: View<'a, R>,
    /// `[T]` nonzero where a token counts. Others are never read and get 0.
    pub mask: Option<View<'a, u8>>,
    /// `[B + 1]` offsets of the packed sequences.
    pub cu_seqlens: View<'a, i64>,
    /// `[B]` rewards.
    pub reward: View<'a, R>,
    /// `[P, 2]` sequence indices; the order within a pair does not matter. See
    /// [`pairs_by_reward`].
    pub pairs: View<'a, i64>,
    /// β > 0.
    pub beta: f64,
    /// Bound on |log π − old| per step, > 0; infinity is off.
    pub clip: f64,
    /// `[P]` weights of the pairs in the total; 1/P without.
    pub weight: Option<View<'a, R>>,
    /// `[P]` loss of each pair.
    pub loss: ViewMut<'a, R>,
    /// `[T]` gradient of the total with respect to `logp`.
    pub dlogp: ViewMut<'a, R>,
    /// `[1]` weighted total, if wanted.
    pub total: Option<ViewMut<'a, f64>>,
}

/// L = max((Δr̂ − Δr/β)², (Δr̃ − Δr/β)²) for every pair, Δ being the difference between its two
/// sequences, r̂ = Σ_t (log π − log π_ref), and r̃ the same sum with log π clamped to old ± `clip`
/// at every step (PRDP, Deng et al. 2024, arXiv:2402.08714).
///
/// Where the unclamped branch is at least as large, ∂L/∂log π_t = ±2·(Δr̂ − Δr/β); elsewhere
/// ±2·(Δr̃ − Δr/β) on the steps inside the bound and 0 on the others. Without a bound L is 2/β
/// times the pair's CoPG loss.
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit, settings out of range, or a pair that
/// names a sequence out of `0..B` or the same one twice; `NonFinite` for a used log-prob, a reward
/// or a weight that is not finite.
///
/// # Cost
/// `O(T + P)`: the pairs act on sequences, not on tokens.
///
/// # Example
/// ```
/// use gradus::{Device, View, ops::{PrdpLoss, pairs_by_reward, prdp_loss}};
/// // Two sequences of one token each; the first has the larger reward.
/// let (logp, reward, cu_seqlens) = (vec![-1f64, -1.0], vec![1f64, 0.0], vec![0i64, 1, 2]);
/// let pairs = pairs_by_reward(&reward, &[0, 2])?;
/// let (mut loss, mut dlogp) = (vec![0f64], vec![0f64; 2]);
/// prdp_loss(&Device::Cpu, PrdpLoss {
///     logp: (&logp).into(),
///     old: (&logp).into(),
///     reference: (&logp).into(),
///     mask: None,
///     cu_seqlens: (&cu_seqlens).into(),
///     reward: (&reward).into(),
///     pairs: View::rows_of(&pairs, 2)?,
///     beta: 1.0,
///     clip: f64::INFINITY,
///     weight: None,
///     loss: (&mut loss).into(),
///     dlogp: (&mut dlogp).into(),
///     total: None,
/// })?;
/// assert_eq!((loss[0], &dlogp[..]), (1.0, &[-2.0, 2.0][..]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn prdp_loss<R: Real>(device: &Device, args: PrdpLoss<'_, R>) -> Result<()> {
    let check = Check("prdp_loss");
    let tokens = Tokens::of(&check, device, "logp", &args.logp, &args.mask, &args.cu_seqlens)?;
    check.shape(device, "old", &args.old, &[tokens.count])?;
    check.shape(device, "reference", &args.reference, &[tokens.count])?;
    check.shape(device, "reward", &args.reward, &[tokens.sequences])?;
    check.shape(device, "dlogp", &args.dlogp, &[tokens.count])?;
    check.rank(device, "pairs", &args.pairs, 2)?;
    let pairs = args.pairs.extent(0);
    check.shape(device, "pairs", &args.pairs, &[pairs, 2])?;
    check_terms(&check, device, pairs, &args.weight, &args.loss, &args.total)?;
    check.positive("beta", args.beta)?;
    check.that(args.clip > 0.0, "clip", args.clip, "a number > 0, infinity for none")?;
    let known = if args.pairs.is_host() { pairs } else { 0 };
    for p in 0..known {
        let row = args.pairs.row(p);
        let inside = row.iter().all(|&i| i >= 0 && i < tokens.sequences as i64);
        if !inside || row[0] == row[1] {
            let expected = format!("two different sequences of 0..{}", tokens.sequences);
            return Err(Error::invalid(check.0, "pairs", format!("{row:?} in row {p}"), expected));
        }
    }
    finite(&check, "logp", &args.logp, &args.mask)?;
    finite(&check, "old", &args.old, &args.mask)?;
    finite(&check, "reference", &args.reference, &args.mask)?;
    finite(&check, "reward", &args.reward, &None)?;
    on_device!(device, check, args: PrdpLoss<R: Real> => cpu::prdp_loss, gpu::prdp_loss)
}

/// All pairs of a group whose first reward is larger, as rows of [`PrdpLoss::pairs`]: `[P, 2]` in
/// row-major order, groups by `offsets` (`G + 1`). A NaN reward enters no pair.
///
/// # Errors
/// `InvalidArgument` for offsets that do not fit.
///
/// # Example
/// ```
/// use gradus::ops::pairs_by_reward;
/// assert_eq!(pairs_by_reward(&[1.0, 3.0, 1.0, 5.0], &[0, 3, 4])?, [1, 0, 1, 2]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn pairs_by_reward<R: Real>(reward: &[R], offsets: &[i64]) -> Result<Vec<i64>> {
    let check = Check("pairs_by_reward");
    let groups = check.cu_seqlens(&Device::Cpu, "offsets", &offsets.into(), reward.len())?;
    alloc::or_out_of_memory(check.0, || {
        let mut pairs = Vec::new();
        for g in 0..groups {
            for i in offsets[g]..offsets[g + 1] {
                for j in offsets[g]..offsets[g + 1] {
                    if reward[i as usize].to_f64() > reward[j as usize].to_f64() {
                        pairs.put_all([i, j]);
                    }
                }
            }
        }
        pairs
    })
}
