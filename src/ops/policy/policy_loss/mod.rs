//! The token policy loss: every published objective as settings of one op over packed sequences.

pub(crate) mod cpu;
mod cpu_terms;
pub(crate) mod gpu;
pub mod presets;

mod aggregation;
mod settings;

pub use aggregation::{Aggregation, seq_weights};
pub use settings::{
    CLASSES, ClipCenter, Denominator, Kl, KlEstimator, KlGradient, KlWeight, Loss, PolicySettings,
    RatioLevel,
};

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Advantages, one per sequence or one per token.
#[derive(Clone, Copy, Debug)]
pub enum Advantage<'a, R> {
    /// `[B]`.
    PerSequence(View<'a, R>),
    /// `[N]`.
    PerToken(View<'a, R>),
}

/// Arguments of [`policy_loss`]. `N` scored tokens of `B` packed sequences.
#[derive(Debug)]
pub struct PolicyLoss<'a, R> {
    /// `[N]` ℓ: log-probs under the policy.
    pub logp: View<'a, R>,
    /// `[N]` ℓ_old. `None` = the policy itself: every ratio is 1, with its gradient.
    pub old_logp: Option<View<'a, R>>,
    /// `[N]` ℓ_sampler, for [`Denominator::Sampler`], the clip center and OPSM (which falls back to
    /// `old_logp`).
    pub sampler_logp: Option<View<'a, R>>,
    /// `[N]` ℓ_ref, for the KL.
    pub ref_logp: Option<View<'a, R>>,
    /// `[N]` the second anchor, for `kl.mix` < 1.
    pub ref2_logp: Option<View<'a, R>>,
    /// Advantages.
    pub advantage: Advantage<'a, R>,
    /// `[N]` 0 = not there: never read.
    pub mask: Option<View<'a, u8>>,
    /// `[N]` class of each token, below [`CLASSES`].
    pub class_ids: Option<View<'a, u8>>,
    /// `[N]` detached weight of each token's surrogate (GOLD, entropy masks, ...).
    pub token_weight: Option<View<'a, R>>,
    /// `[N]` 1 = the extra term of [`Loss::KlCov`] applies.
    pub selected: Option<View<'a, u8>>,
    /// `[N]` detached importance weight ρ of each token's surrogate.
    pub is_weight: Option<View<'a, R>>,
    /// `[N]` entropy of each token's distribution, for the bonus and the statistics.
    pub entropy: Option<View<'a, R>>,
    /// `[B + 1]` offsets of the sequences.
    pub cu_seqlens: View<'a, i64>,
    /// `[B]` weight of each sequence: the aggregation, see [`seq_weights`].
    pub seq_weight: View<'a, R>,
    /// The loss.
    pub settings: &'a PolicySettings,
    /// Σ_i seq_weight_i Σ_t L_t.
    pub loss: &'a mut f64,
    /// `[N]` ∂loss/∂ℓ; exactly 0 where masked.
    pub dlogp: ViewMut<'a, R>,
    /// `[N]` ∂loss/∂entropy, if wanted.
    pub dentropy: Option<ViewMut<'a, R>>,
    /// `[N]` L_t without the sequence weight, if wanted.
    pub token_loss: Option<ViewMut<'a, R>>,
    /// Statistics, if wanted.
    pub stats: Option<&'a mut PolicyStats>,
}

impl<'a, R> PolicyLoss<'a, R> {
    /// The arguments every loss needs.
    pub fn new(
        logp: View<'a, R>,
        advantage: Advantage<'a, R>,
        cu_seqlens: View<'a, i64>,
        seq_weight: View<'a, R>,
        settings: &'a PolicySettings,
        loss: &'a mut f64,
        dlogp: ViewMut<'a, R>,
    ) -> PolicyLoss<'a, R> {
        PolicyLoss {
            logp,
            old_logp: None,
            sampler_logp: None,
            ref_logp: None,
            ref2_logp: None,
            advantage,
            mask: None,
            class_ids: None,
            token_weight: None,
            selected: None,
            is_weight: None,
            entropy: None,
            cu_seqlens,
            seq_weight,
            settings,
            loss,
            dlogp,
            dentropy: None,
            token_loss: None,
            stats: None,
        }
    }
}

/// Sums over the tokens that carry loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyStats {
    /// Tokens.
    pub n_tokens: u64,
    /// Sequences with at least one token.
    pub n_sequences: u64,
    /// Sequences without any.
    pub n_empty: u64,
    /// Tokens below the lower bound with A < 0: no gradient.
    pub n_clip_lo: u64,
    /// Tokens above the upper bound with A > 0: no gradient.
    pub n_clip_hi: u64,
    /// Tokens beyond the dual bound.
    pub n_dual: u64,
    /// Tokens of sequences that OPSM dropped.
    pub n_opsm: u64,
    /// Tokens whose loss or gradient is not finite.
    pub n_nonfinite: u64,
    /// Σ r and Σ r².
    pub sum_ratio: f64,
    /// Σ r².
    pub sum_ratio2: f64,
    /// Smallest ratio.
    pub min_ratio: f64,
    /// Largest ratio.
    pub max_ratio: f64,
    /// Largest |log-ratio|.
    pub max_abs_log_ratio: f64,
    /// Σ of the estimators k1, k2 and k3 against the reference.
    pub sum_kl: [f64; 3],
    /// Σ entropy.
    pub sum_entropy: f64,
    /// Σ (∂loss/∂ℓ)² by token class.
    pub grad2_by_class: [f64; CLASSES],
}

impl Default for PolicyStats {
    fn default() -> PolicyStats {
        PolicyStats {
            n_tokens: 0,
            n_sequences: 0,
            n_empty: 0,
            n_clip_lo: 0,
            n_clip_hi: 0,
            n_dual: 0,
            n_opsm: 0,
            n_nonfinite: 0,
            sum_ratio: 0.0,
            sum_ratio2: 0.0,
            min_ratio: f64::INFINITY,
            max_ratio: f64::NEG_INFINITY,
            max_abs_log_ratio: 0.0,
            sum_kl: [0.0; 3],
            sum_entropy: 0.0,
            grad2_by_class: [0.0; CLASSES],
        }
    }
}

impl PolicyStats {
    /// Adds the statistics of further tokens.
    pub fn merge(&mut self, other: &PolicyStats) {
        self.n_tokens += other.n_tokens;
        self.n_sequences += other.n_sequences;
        self.n_empty += other.n_empty;
        self.n_clip_lo += other.n_clip_lo;
        self.n_clip_hi += other.n_clip_hi;
        self.n_dual += other.n_dual;
        self.n_opsm += other.n_opsm;
        self.n_nonfinite += other.n_nonfinite;
        self.sum_ratio += other.sum_ratio;
        self.sum_ratio2 += other.sum_ratio2;
        self.min_ratio = self.min_ratio.min(other.min_ratio);
        self.max_ratio = self.max_ratio.max(other.max_ratio);
        self.max_abs_log_ratio = self.max_abs_log_ratio.max(other.max_abs_log_ratio);
        self.sum_entropy += other.sum_entropy;
        for (mine, theirs) in self.sum_kl.iter_mut().zip(other.sum_kl) {
            *mine += theirs;
        }
        for (mine, theirs) in self.grad2_by_class.iter_mut().zip(other.grad2_by_class) {
            *mine += theirs;
        }
    }
}

/// loss = Σ_i w_i Σ_t L_t and its gradient, L_t = token_weight·keep·ρ·surrogate + β·KL − c·H.
///
/// Everything is computed in f64 from the given log-probs and rounded once. Order of the pieces:
/// clamp the log-ratio, ratio, surrogate, OPSM and token weight, ρ, KL (never scaled by ρ), entropy,
/// class and sequence weight. Sequences are independent and are summed in order, so the loss of a
/// batch is the sum of the losses of its parts and does not depend on threads.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, offsets that fall, a class that is too large, an
/// input that the settings need and that is missing, or settings out of range.
///
/// # Cost
/// O(N); a few exponentials per token. On a GPU one launch, and a wait for `loss` and `stats`.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{Advantage, PolicyLoss, policy_loss, presets, seq_weights}};
/// // Two completions of two tokens and of one; the first was better than the second.
/// let (logp, cu_seqlens) = (vec![-0.5f32, -1.0, -2.0], vec![0i64, 2, 3]);
/// let advantage = vec![1f32, -1.0];
/// let dapo = presets::by_name("dapo", 256.0)?;
/// let weights = seq_weights(dapo.aggregation, &[2, 1])?;
/// let seq_weight: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
/// let (mut loss, mut dlogp) = (0.0, vec![0f32; 3]);
/// policy_loss(&Device::Cpu, PolicyLoss::new(
///     (&logp).into(),
///     Advantage::PerSequence((&advantage).into()),
///     (&cu_seqlens).into(),
///     (&seq_weight).into(),
///     &dapo.settings,
///     &mut loss,
///     (&mut dlogp).into(),
/// ))?;
/// // On-policy every ratio is 1: -(1 + 1 - 1) / 3, and each token's gradient is -advantage / 3.
/// assert!((loss + 1.0 / 3.0).abs() < 1e-7);
/// let third = 1f32 / 3.0;
/// assert_eq!(dlogp, [-third, -third, third]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn policy_loss<R: Real>(device: &Device, args: PolicyLoss<'_, R>) -> Result<()> {
    let check = Check("policy_loss");
    let a = &args;
    check.rank(device, "logp", &a.logp, 1)?;
    let n = a.logp.extent(0);
    let b = check.cu_seqlens(device, "cu_seqlens", &a.cu_seqlens, n)?;
    for (name, column) in [
        ("old_logp", &a.old_logp),
        ("sampler_logp", &a.sampler_logp),
        ("ref_logp", &a.ref_logp),
        ("ref2_logp", &a.ref2_logp),
        ("token_weight", &a.token_weight),
        ("is_weight", &a.is_weight),
        ("entropy", &a.entropy),
    ] {
        check.opt_shape(device, name, column, &[n])?;
    }
    for (name, column) in
        [("mask", &a.mask), ("class_ids", &a.class_ids), ("selected", &a.selected)]
    {
        check.opt_shape(device, name, column, &[n])?;
    }
    match &a.advantage {
        Advantage::PerSequence(x) => check.shape(device, "advantage", x, &[b])?,
        Advantage::PerToken(x) => check.shape(device, "advantage", x, &[n])?,
    }
    check.shape(device, "seq_weight", &a.seq_weight, &[b])?;
    check.shape(device, "dlogp", &a.dlogp, &[n])?;
    check.opt_shape(device, "dentropy", &a.dentropy, &[n])?;
    check.opt_shape(device, "token_loss", &a.token_loss, &[n])?;
    a.settings.check(check)?;
    check_needed(check, a, n)?;
    on_device!(device, check, args: PolicyLoss<R: Real> => cpu::policy_loss, gpu::policy_loss)
}

/// Everything the settings read is there.
fn check_needed<R>(check: Check, a: &PolicyLoss<'_, R>, n: usize) -> Result<()> {
    let s = a.settings;
    let needed = |there: bool, name: &str, why: &str| check.that(there, name, "nothing", why);
    if s.reads_sampler() {
        needed(a.sampler_logp.is_some(), "sampler_logp", "log-probs of the sampler")?;
    }
    if s.center == ClipCenter::OldOverSampler {
        needed(a.old_logp.is_some(), "old_logp", "log-probs of the clip center")?;
    }
    if let Some(kl) = &s.kl {
        needed(a.ref_logp.is_some(), "ref_logp", "log-probs of the reference, for the KL")?;
        let second = kl.mix == 1.0 || a.ref2_logp.is_some();
        needed(second, "ref2_logp", "log-probs of the second anchor, for kl.mix < 1")?;
    }
    if s.entropy_coef > 0.0 {
        needed(a.entropy.is_some(), "entropy", "entropies, for the bonus")?;
    }
    if matches!(s.loss, Loss::KlCov { .. }) {
        needed(a.selected.is_some(), "selected", "the tokens the penalty applies to")?;
    }
    if let Some(class) = a.class_ids.as_ref().filter(|class| class.is_host()) {
        for t in 0..n {
            if class.at(t) as usize >= CLASSES {
                let got = format!("{} at index {t}", class.at(t));
                return Err(Error::invalid(check.0, "class_ids", got, "classes below 8"));
            }
        }
    }
    Ok(())
}
