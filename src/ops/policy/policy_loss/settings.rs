//! What a policy loss is made of. Every published token loss is a choice on these axes.

use crate::check::{Check, LARGEST};
use crate::error::Result;

/// The surrogate, with r the importance ratio, A the advantage and sg stop-gradient. Clip bounds
/// are absolute values of r.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// −ℓ: masked cross-entropy. Advantages are not read.
    CrossEntropy,
    /// −A·ℓ (REINFORCE; GPG, Chu et al. 2025, arXiv:2504.02546).
    Reinforce,
    /// −min(min(r, dual)·A, clip(r, lo, hi)·A) (Schulman et al. 2017, arXiv:1707.06347, eq. 7; dual:
    /// Ye et al. 2020, arXiv:1912.09729, eq. 5, for A < 0 only). GRPO, DAPO, Dr. GRPO, GSPO, RLOO.
    PpoClip {
        /// Lower bound, for example 0.8.
        lo: f64,
        /// Upper bound, for example 1.2.
        hi: f64,
        /// Bound of r for A < 0; infinity = off.
        dual: f64,
    },
    /// −sg[clip(r, lo, hi)]·A·ℓ (MiniMax-M1 2025, arXiv:2506.13585, eq. 4).
    Cispo {
        /// Lower bound; 0 = none.
        lo: f64,
        /// Upper bound.
        hi: f64,
    },
    /// −A·(4/τ)·σ(τ·(r − 1)), τ by the sign of A (SAPO, arXiv:2511.20347).
    Sapo {
        /// τ for A > 0.
        tau_pos: f64,
        /// τ otherwise.
        tau_neg: f64,
    },
    /// −sg\[φ\]·A·ℓ, log φ = λ + κ·log w − λ·w, w the sequence's clamped ratio (VESPO).
    Vespo {
        /// (κ, λ) for A >= 0.
        pos: (f64, f64),
        /// (κ, λ) for A < 0.
        neg: (f64, f64),
    },
    /// −s·A, s the geometric mean of token ratios clipped on the pessimistic side (GMPO,
    /// arXiv:2507.20673, eq. 4). The bounds are log-ratios: d in [−lo, hi].
    Gmpo {
        /// Lower bound of the log-ratio, as a positive number.
        lo: f64,
        /// Upper bound of the log-ratio.
        hi: f64,
    },
    /// −(A·ℓ − ½·β·d²), d the log-ratio (DRO, arXiv:2405.19107).
    Dro {
        /// Weight of the square, > 0.
        beta: f64,
    },
    /// −A·sg[min(r, cap)]·ℓ where |π − π_old| stays within bounds on the side A pushes to (DPPO).
    DppoTv {
        /// Largest fall of the probability for A <= 0.
        lo: f64,
        /// Largest rise of the probability for A > 0.
        hi: f64,
        /// Largest ratio.
        cap: f64,
    },
    /// −A·sg[min(r, cap)]·ℓ where the binary KL of the token's probability stays within bounds on the side A
    /// pushes to (DPPO).
    DppoKl {
        /// Bound for A <= 0.
        lo: f64,
        /// Bound for A > 0.
        hi: f64,
        /// Largest ratio.
        cap: f64,
    },
    /// −keep·A·r + κ·d², keep as in [`Loss::DppoTv`] (prime-rl's default).
    Prime {
        /// Largest fall of the probability for A <= 0.
        lo: f64,
        /// Largest rise of the probability for A > 0.
        hi: f64,
        /// Weight of the squared log-ratio.
        kappa: f64,
    },
    /// −r·A + κ·|d| on the tokens that `selected` marks (KL-Cov, arXiv:2505.22617, eq. 12).
    KlCov {
        /// Weight of |d|.
        kappa: f64,
    },
}

/// What the ratio is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RatioLevel {
    /// r_t = exp(d_t).
    Token,
    /// s = exp(mean_t d_t) for every token, gradient through all of them (GSPO).
    SequenceMean,
    /// The value of `SequenceMean`, the gradient of its own token only (GSPO-token).
    SequenceMeanToken,
    /// s = exp(Σ_t d_t) (RLOO).
    SequenceSum,
}

/// Whose log-probs the ratio divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denominator {
    /// `old_logp`: the policy before this batch's updates.
    Old,
    /// `sampler_logp`: the policy that sampled the token.
    Sampler,
}

/// Where the clip interval of [`Loss::PpoClip`] is centered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipCenter {
    /// At 1.
    One,
    /// At exp(ℓ_old − ℓ_sampler): with the sampler as denominator the trust region follows the
    /// current policy, not the stale one (ReMix, arXiv:2507.06892).
    OldOverSampler,
}

/// Estimator of the KL to the reference, with k = ℓ_ref − ℓ (Schulman 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KlEstimator {
    /// −k. As a loss its expected gradient is 0.
    K1,
    /// ½·k²: as a loss it descends the reverse KL.
    K2,
    /// e^k − k − 1, by expm1: as a loss it descends the forward KL.
    K3,
    /// |k|.
    Abs,
}

/// What is differentiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KlGradient {
    /// The estimator itself.
    Same,
    /// ℓ − ℓ_ref whatever the value (straight-through k2).
    K2,
    /// Nothing: the KL is only measured.
    None,
}

/// What multiplies the KL term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KlWeight {
    /// Nothing.
    One,
    /// The importance ratio, differentiated: the unbiased KL of DeepSeek-V3.2.
    Ratio,
    /// The importance ratio as a constant.
    RatioDetached,
}

/// The KL penalty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kl {
    /// Weight β; >= 0.
    pub coef: f64,
    /// Estimator.
    pub estimator: KlEstimator,
    /// What is differentiated.
    pub gradient: KlGradient,
    /// What multiplies it.
    pub weight: KlWeight,
    /// k is clamped to ± this before exp, gradient 0 outside; infinity = off.
    pub clamp_in: f64,
    /// The value is clamped to ± this, gradient 0 outside; infinity = off.
    pub clamp_out: f64,
    /// λ of two anchors: λ·KL(ref) + (1 − λ)·KL(ref2); 1 = one anchor (ReMix).
    pub mix: f64,
}

impl Kl {
    /// β·k3, one anchor, no clamps (DeepSeekMath, arXiv:2402.03300, eq. 4).
    pub fn k3(coef: f64) -> Kl {
        Kl {
            coef,
            estimator: KlEstimator::K3,
            gradient: KlGradient::Same,
            weight: KlWeight::One,
            clamp_in: f64::INFINITY,
            clamp_out: f64::INFINITY,
            mix: 1.0,
        }
    }
}

/// Number of token classes a table has room for.
pub const CLASSES: usize = 8;

/// All of a policy loss but the aggregation, which is the caller's `seq_weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicySettings {
    /// The surrogate.
    pub loss: Loss,
    /// Level of the ratio.
    pub ratio: RatioLevel,
    /// Denominator of the ratio.
    pub denominator: Denominator,
    /// Center of the clip interval.
    pub center: ClipCenter,
    /// The token's log-ratio is clamped to ± this before exp, gradient 0 outside; infinity = off.
    pub log_ratio_clamp: f64,
    /// A sequence's log-ratio is clamped to at most this, gradient 0 above; infinity = off.
    pub seq_log_ratio_max: f64,
    /// KL penalty, if any.
    pub kl: Option<Kl>,
    /// Weight c of the entropy bonus −c·H; >= 0.
    pub entropy_coef: f64,
    /// Sequences with A < 0 and mean(ℓ_sampler − ℓ) above this are dropped (off-policy sequence
    /// masking, DeepSeek-V3.2); infinity = off.
    pub opsm: f64,
    /// Weight of each token class; 0 = no loss.
    // A literal length: rustc 1.95 fails on struct updates in closures over `[T; CONSTANT]` fields.
    pub class_weight: [f64; 8],
    /// Classes whose ratio is to themselves: always 1, with its gradient (demonstration tokens of
    /// Prefix-RFT).
    pub class_self_ratio: [bool; 8],
}

impl Default for PolicySettings {
    /// PPO clip at 0.2, token ratios, nothing else.
    fn default() -> PolicySettings {
        PolicySettings {
            loss: Loss::PpoClip { lo: 0.8, hi: 1.2, dual: f64::INFINITY },
            ratio: RatioLevel::Token,
            denominator: Denominator::Old,
            center: ClipCenter::One,
            log_ratio_clamp: f64::INFINITY,
            seq_log_ratio_max: f64::INFINITY,
            kl: None,
            entropy_coef: 0.0,
            opsm: f64::INFINITY,
            class_weight: [1.0; CLASSES],
            class_self_ratio: [false; CLASSES],
        }
    }
}

impl PolicySettings {
    /// True if the loss needs reference log-probs.
    pub fn needs_reference(&self) -> bool {
        self.kl.is_some()
    }

    /// True if the loss needs log-probs of the policy that sampled, apart from those of the old policy.
    pub fn reads_sampler(&self) -> bool {
        self.denominator == Denominator::Sampler || self.center == ClipCenter::OldOverSampler
    }

    /// True if a token with advantage 0 has loss and gradient 0, so that a sequence of such tokens
    /// needs no backward pass.
    pub fn vanishes_at_zero_advantage(&self) -> bool {
        let independent = matches!(
            self.loss,
            Loss::CrossEntropy | Loss::Dro { .. } | Loss::Prime { .. } | Loss::KlCov { .. }
        );
        !independent && self.kl.is_none() && self.entropy_coef == 0.0
    }

    /// Refuses settings no loss can have.
    pub fn validate(&self) -> Result<()> {
        self.check(Check("policy_loss"))
    }

    pub(crate) fn check(&self, check: Check) -> Result<()> {
        let name = |field: &str| format!("settings.{field}");
        let above_zero = "a number > 0 (infinity = off)";
        for (field, x) in [
            ("log_ratio_clamp", self.log_ratio_clamp),
            ("opsm", self.opsm),
            ("seq_log_ratio_max", self.seq_log_ratio_max),
        ] {
            check.that(x > 0.0, &name(field), x, above_zero)?;
        }
        check.non_negative(&name("entropy_coef"), self.entropy_coef)?;
        for weight in self.class_weight {
            check.factor(&name("class_weight"), weight)?;
        }
        if let Some(kl) = &self.kl {
            check.non_negative(&name("kl.coef"), kl.coef)?;
            check.that(kl.clamp_in > 0.0, &name("kl.clamp_in"), kl.clamp_in, above_zero)?;
            check.that(kl.clamp_out > 0.0, &name("kl.clamp_out"), kl.clamp_out, above_zero)?;
            check.that((0.0..=1.0).contains(&kl.mix), &name("kl.mix"), kl.mix, "0..=1")?;
        }
        let stale = self.center == ClipCenter::OldOverSampler;
        let fits = !stale || self.denominator == Denominator::Sampler;
        let expected = "One, or the sampler as denominator";
        check.that(fits, &name("center"), format!("{:?}", self.center), expected)?;
        self.check_loss(check)
    }

    fn check_loss(&self, check: Check) -> Result<()> {
        let field = "settings.loss";
        let got = format!("{:?}", self.loss);
        let finite = |x: f64| (0.0..=LARGEST).contains(&x);
        let tau = |x: f64| (1.0 / LARGEST..=LARGEST).contains(&x);
        let (ok, expected) = match self.loss {
            Loss::CrossEntropy | Loss::Reinforce => (true, ""),
            Loss::PpoClip { lo, hi, dual } => {
                (finite(lo) && lo <= 1.0 && hi >= 1.0 && dual >= hi, "0 <= lo <= 1 <= hi <= dual")
            }
            Loss::Cispo { lo, hi } => (finite(lo) && hi >= lo && hi > 0.0, "0 <= lo <= hi"),
            Loss::Sapo { tau_pos, tau_neg } => {
                (tau(tau_pos) && tau(tau_neg), "tau within 1e-18 to 1e18")
            }
            Loss::Vespo { pos, neg } => {
                let fine = |(k, l): (f64, f64)| finite(k) && finite(l) && l >= 1e-4;
                (fine(pos) && fine(neg), "kappa >= 0, lambda >= 1e-4")
            }
            Loss::Gmpo { lo, hi } => (finite(lo) && finite(hi), "bounds >= 0"),
            Loss::Dro { beta } => (finite(beta) && beta > 0.0, "beta > 0"),
            Loss::DppoTv { lo, hi, cap } | Loss::DppoKl { lo, hi, cap } => {
                (finite(lo) && finite(hi) && cap > 0.0, "bounds >= 0, cap > 0")
            }
            Loss::Prime { lo, hi, kappa } => {
                (finite(lo) && finite(hi) && finite(kappa), "bounds and kappa >= 0")
            }
            Loss::KlCov { kappa } => (finite(kappa), "kappa >= 0"),
        };
        check.that(ok, field, got, expected)
    }
}
