//! The settings of `policy_loss`, flat in the header and nested in Rust, presets, and weights of sequences.

use std::ffi::c_char;

use gradus::ops::presets;
use gradus::ops::*;
use gradus::{Error, Result};

use crate::names::of_header;
use crate::status::{flag, given_mut, guard, list, text};
use crate::sys::{self, *};
use crate::tensor::Tensors;

pub(super) const EPS_FORMS: [EpsForm; 3] =
    [EpsForm::AddToStd, EpsForm::AddToVariance, EpsForm::FloorVariance];

impl gradus_policy_settings {
    pub(super) fn get(&self, t: &Tensors<'_>) -> Result<PolicySettings> {
        use RatioLevel as R;
        let ratios = [R::Token, R::SequenceMean, R::SequenceMeanToken, R::SequenceSum];
        let denominators = [Denominator::Old, Denominator::Sampler];
        let centers = [ClipCenter::One, ClipCenter::OldOverSampler];
        let use_kl = t.flag("settings.use_kl", self.use_kl)?;
        let mut class_self_ratio = [false; 8];
        for (i, flag) in class_self_ratio.iter_mut().enumerate() {
            *flag = t.flag(&format!("settings.class_self_ratio[{i}]"), self.class_self_ratio[i])?;
        }
        Ok(PolicySettings {
            loss: t.choice("settings.loss", self.loss, &self.losses())?,
            ratio: t.choice("settings.ratio", self.ratio, &ratios)?,
            denominator: t.choice("settings.denominator", self.denominator, &denominators)?,
            center: t.choice("settings.center", self.center, &centers)?,
            log_ratio_clamp: self.log_ratio_clamp,
            seq_log_ratio_max: self.seq_log_ratio_max,
            kl: if use_kl { Some(self.kl(t)?) } else { None },
            entropy_coef: self.entropy_coef,
            opsm: self.opsm,
            class_weight: self.class_weight,
            class_self_ratio,
        })
    }

    /// In the order of the header.
    fn losses(&self) -> [Loss; 12] {
        let (lo, hi, cap, kappa) = (self.lo, self.hi, self.cap, self.kappa);
        [
            Loss::CrossEntropy,
            Loss::Reinforce,
            Loss::PpoClip { lo, hi, dual: self.dual },
            Loss::Cispo { lo, hi },
            Loss::Sapo { tau_pos: self.tau_pos, tau_neg: self.tau_neg },
            Loss::Vespo {
                pos: (self.kappa_pos, self.lambda_pos),
                neg: (self.kappa_neg, self.lambda_neg),
            },
            Loss::Gmpo { lo, hi },
            Loss::Dro { beta: self.dro_beta },
            Loss::DppoTv { lo, hi, cap },
            Loss::DppoKl { lo, hi, cap },
            Loss::Prime { lo, hi, kappa },
            Loss::KlCov { kappa },
        ]
    }

    fn kl(&self, t: &Tensors<'_>) -> Result<Kl> {
        use KlEstimator as E;
        use KlGradient as G;
        use KlWeight as W;
        let estimators = [E::K1, E::K2, E::K3, E::Abs];
        let weights = [W::One, W::Ratio, W::RatioDetached];
        Ok(Kl {
            coef: self.kl_coef,
            estimator: t.choice("settings.kl_estimator", self.kl_estimator, &estimators)?,
            gradient: t.choice(
                "settings.kl_gradient",
                self.kl_gradient,
                &[G::Same, G::K2, G::None],
            )?,
            weight: t.choice("settings.kl_weight", self.kl_weight, &weights)?,
            clamp_in: self.kl_clamp_in,
            clamp_out: self.kl_clamp_out,
            mix: self.kl_mix,
        })
    }

    fn set_loss(&mut self, loss: Loss) {
        let (kind, lo, hi) = match loss {
            Loss::CrossEntropy => (GRADUS_CROSS_ENTROPY, 0.0, 0.0),
            Loss::Reinforce => (GRADUS_REINFORCE, 0.0, 0.0),
            Loss::PpoClip { lo, hi, dual } => {
                self.dual = dual;
                (GRADUS_PPO_CLIP, lo, hi)
            }
            Loss::Cispo { lo, hi } => (GRADUS_CISPO, lo, hi),
            Loss::Sapo { tau_pos, tau_neg } => {
                (self.tau_pos, self.tau_neg) = (tau_pos, tau_neg);
                (GRADUS_SAPO, 0.0, 0.0)
            }
            Loss::Vespo { pos, neg } => {
                (self.kappa_pos, self.lambda_pos) = pos;
                (self.kappa_neg, self.lambda_neg) = neg;
                (GRADUS_VESPO, 0.0, 0.0)
            }
            Loss::Gmpo { lo, hi } => (GRADUS_GMPO, lo, hi),
            Loss::Dro { beta } => {
                self.dro_beta = beta;
                (GRADUS_DRO, 0.0, 0.0)
            }
            Loss::DppoTv { lo, hi, cap } => {
                self.cap = cap;
                (GRADUS_DPPO_TV, lo, hi)
            }
            Loss::DppoKl { lo, hi, cap } => {
                self.cap = cap;
                (GRADUS_DPPO_KL, lo, hi)
            }
            Loss::Prime { lo, hi, kappa } => {
                self.kappa = kappa;
                (GRADUS_PRIME, lo, hi)
            }
            Loss::KlCov { kappa } => {
                self.kappa = kappa;
                (GRADUS_KL_COV, 0.0, 0.0)
            }
        };
        (self.loss, self.lo, self.hi) = (kind as i32, lo, hi);
    }

    fn set_kl(&mut self, kl: Option<Kl>) {
        let kl_or_default = kl.unwrap_or(Kl::k3(0.0));
        self.use_kl = kl.is_some() as i32;
        self.kl_coef = kl_or_default.coef;
        self.kl_estimator = kl_or_default.estimator as i32;
        self.kl_gradient = kl_or_default.gradient as i32;
        self.kl_weight = kl_or_default.weight as i32;
        self.kl_clamp_in = kl_or_default.clamp_in;
        self.kl_clamp_out = kl_or_default.clamp_out;
        self.kl_mix = kl_or_default.mix;
    }
}

impl From<&PolicySettings> for gradus_policy_settings {
    fn from(s: &PolicySettings) -> gradus_policy_settings {
        // SAFETY: numbers only.
        let mut flat: gradus_policy_settings = unsafe { std::mem::zeroed() };
        (flat.dual, flat.cap) = (f64::INFINITY, f64::INFINITY);
        flat.set_loss(s.loss);
        flat.set_kl(s.kl);
        (flat.ratio, flat.denominator, flat.center) =
            (s.ratio as i32, s.denominator as i32, s.center as i32);
        (flat.log_ratio_clamp, flat.seq_log_ratio_max) = (s.log_ratio_clamp, s.seq_log_ratio_max);
        (flat.entropy_coef, flat.opsm) = (s.entropy_coef, s.opsm);
        flat.class_weight = s.class_weight;
        flat.class_self_ratio = s.class_self_ratio.map(i32::from);
        flat
    }
}

fn aggregation(kind: i32, count_empty: i32, value: f64) -> Result<Aggregation> {
    let count_empty = flag("gradus_seq_weights", "count_empty", count_empty)?;
    let all = [
        Aggregation::TokenMean,
        Aggregation::TokenMeanOf { tokens: value },
        Aggregation::SequenceMeanTokenMean { count_empty },
        Aggregation::SequenceMeanTokenSum { count_empty },
        Aggregation::Constant { length: value, count_empty },
        Aggregation::TokenSum,
    ];
    let found = usize::try_from(kind).ok().and_then(|kind| all.get(kind).copied());
    found.ok_or_else(|| Error::invalid("gradus_seq_weights", "aggregation", kind, "0 to 5"))
}

/// What no preset is called, whichever part of the name is unknown.
fn no_preset(name: &str, error: Error) -> Error {
    match error {
        Error::InvalidArgument { expected, .. } => {
            Error::config("name", format!("`{name}` is no preset; known there: {expected}"))
        }
        other => other,
    }
}

/// Number, whether empty sequences count, and the value, as the header has them.
fn flat(aggregation: Aggregation) -> (i32, i32, f64) {
    let (kind, count_empty, value) = match aggregation {
        Aggregation::TokenMean => (GRADUS_TOKEN_MEAN, false, 0.0),
        Aggregation::TokenMeanOf { tokens } => (GRADUS_TOKEN_MEAN_OF, false, tokens),
        Aggregation::SequenceMeanTokenMean { count_empty } => {
            (GRADUS_SEQUENCE_MEAN_TOKEN_MEAN, count_empty, 0.0)
        }
        Aggregation::SequenceMeanTokenSum { count_empty } => {
            (GRADUS_SEQUENCE_MEAN_TOKEN_SUM, count_empty, 0.0)
        }
        Aggregation::Constant { length, count_empty } => (GRADUS_CONSTANT, count_empty, length),
        Aggregation::TokenSum => (GRADUS_TOKEN_SUM, false, 0.0),
    };
    (kind as i32, count_empty as i32, value)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_policy_preset(
    name: *const c_char,
    length: f64,
    settings: *mut gradus_policy_settings,
    aggregation: *mut i32,
    count_empty: *mut i32,
    value: *mut f64,
) -> sys::gradus_status {
    const OP: &str = "gradus_policy_preset";
    guard(|| {
        let name = text(OP, "name", name)?;
        let preset = presets::by_name(name, length).map_err(|error| no_preset(name, error))?;
        let of_length = matches!(preset.aggregation, Aggregation::Constant { .. });
        if of_length && !(length.is_finite() && length > 0.0) {
            let expected =
                "the longest completion, a finite number > 0, which this preset divides by";
            return Err(Error::invalid(OP, "length", length, expected).into());
        }
        let settings = given_mut(OP, "settings", settings)?;
        let aggregation = given_mut(OP, "aggregation", aggregation)?;
        let count_empty = given_mut(OP, "count_empty", count_empty)?;
        let value = given_mut(OP, "value", value)?;
        *settings = (&preset.settings).into();
        (*aggregation, *count_empty, *value) = flat(preset.aggregation);
        Ok(())
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_seq_weights(
    aggregation_kind: i32,
    count_empty: i32,
    value: f64,
    lengths: *const i64,
    count: i64,
    weights: *mut f64,
) -> sys::gradus_status {
    const OP: &str = "gradus_seq_weights";
    guard(|| {
        let aggregation = aggregation(aggregation_kind, count_empty, value)?;
        let lengths = list(OP, "lengths", lengths, count)?;
        let found = seq_weights(aggregation, lengths).map_err(of_header)?;
        if let Some(first) = found.first() {
            given_mut(OP, "weights", weights)?;
            // SAFETY: the caller gave `count` places, and there are as many weights as lengths.
            unsafe { std::ptr::copy_nonoverlapping(first, weights, found.len()) };
        }
        Ok(())
    })
}
