//! The settings of `policy_loss`, flat in the header and nested in Rust, presets, and weights of sequences.

use std::ffi::c_char;

use gradus::ops::presets;
use gradus::ops::*;
use gradus::{Error, Result};

use crate::field::Field;
use crate::registry::Enumeration;
use crate::status::{flag, given_mut, guard, list, text};
use crate::sys::{self, *};
use crate::tensor::{Tensors, enumerator};

impl gradus_policy_settings {
    pub(super) fn get(&self, t: &Tensors<'_>) -> Result<PolicySettings> {
        let use_kl = t.flag("settings.use_kl", self.use_kl)?;
        let mut class_self_ratio = [false; 8];
        for (i, flag) in class_self_ratio.iter_mut().enumerate() {
            *flag = t.flag(&format!("settings.class_self_ratio[{i}]"), self.class_self_ratio[i])?;
        }
        Ok(PolicySettings {
            loss: self.loss(t)?,
            ratio: Field::get(t, "settings.ratio", &self.ratio)?,
            denominator: Field::get(t, "settings.denominator", &self.denominator)?,
            center: Field::get(t, "settings.center", &self.center)?,
            log_ratio_clamp: self.log_ratio_clamp,
            seq_log_ratio_max: self.seq_log_ratio_max,
            kl: if use_kl { Some(self.kl(t)?) } else { None },
            entropy_coef: self.entropy_coef,
            opsm: self.opsm,
            class_weight: self.class_weight,
            class_self_ratio,
        })
    }

    fn loss(&self, t: &Tensors<'_>) -> Result<Loss> {
        use gradus_loss::*;
        let &gradus_policy_settings { lo, hi, dual, cap, kappa, tau_pos, tau_neg, .. } = self;
        Ok(match t.enumerator("settings.loss", self.loss)? {
            GRADUS_CROSS_ENTROPY => Loss::CrossEntropy,
            GRADUS_REINFORCE => Loss::Reinforce,
            GRADUS_PPO_CLIP => Loss::PpoClip { lo, hi, dual },
            GRADUS_CISPO => Loss::Cispo { lo, hi },
            GRADUS_SAPO => Loss::Sapo { tau_pos, tau_neg },
            GRADUS_VESPO => Loss::Vespo {
                pos: (self.kappa_pos, self.lambda_pos),
                neg: (self.kappa_neg, self.lambda_neg),
            },
            GRADUS_GMPO => Loss::Gmpo { lo, hi },
            GRADUS_DRO => Loss::Dro { beta: self.dro_beta },
            GRADUS_DPPO_TV => Loss::DppoTv { lo, hi, cap },
            GRADUS_DPPO_KL => Loss::DppoKl { lo, hi, cap },
            GRADUS_PRIME => Loss::Prime { lo, hi, kappa },
            GRADUS_KL_COV => Loss::KlCov { kappa },
        })
    }

    fn kl(&self, t: &Tensors<'_>) -> Result<Kl> {
        Ok(Kl {
            coef: self.kl_coef,
            estimator: Field::get(t, "settings.kl_estimator", &self.kl_estimator)?,
            gradient: Field::get(t, "settings.kl_gradient", &self.kl_gradient)?,
            weight: Field::get(t, "settings.kl_weight", &self.kl_weight)?,
            clamp_in: self.kl_clamp_in,
            clamp_out: self.kl_clamp_out,
            mix: self.kl_mix,
        })
    }

    fn set_loss(&mut self, loss: Loss) {
        use gradus_loss::*;
        let (number, lo, hi) = match loss {
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
        (self.loss, self.lo, self.hi) = (number as i32, lo, hi);
    }

    fn set_kl(&mut self, kl: Option<Kl>) {
        let kl_or_default = kl.unwrap_or(Kl::k3(0.0));
        self.use_kl = kl.is_some() as i32;
        self.kl_coef = kl_or_default.coef;
        self.kl_estimator = gradus_kl_estimator::from(kl_or_default.estimator) as i32;
        self.kl_gradient = gradus_kl_gradient::from(kl_or_default.gradient) as i32;
        self.kl_weight = gradus_kl_weight::from(kl_or_default.weight) as i32;
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
        flat.ratio = gradus_ratio::from(s.ratio) as i32;
        flat.denominator = gradus_denominator::from(s.denominator) as i32;
        flat.center = gradus_center::from(s.center) as i32;
        (flat.log_ratio_clamp, flat.seq_log_ratio_max) = (s.log_ratio_clamp, s.seq_log_ratio_max);
        (flat.entropy_coef, flat.opsm) = (s.entropy_coef, s.opsm);
        flat.class_weight = s.class_weight;
        flat.class_self_ratio = s.class_self_ratio.map(i32::from);
        flat
    }
}

fn aggregation(kind: i32, count_empty: i32, value: f64) -> Result<Aggregation> {
    use gradus_aggregation::*;
    let count_empty = flag("gradus_seq_weights", "count_empty", count_empty)?;
    let expected = format!("0 to {}", gradus_aggregation::ALL.len() - 1);
    let number = enumerator(kind)
        .ok_or_else(|| Error::invalid("gradus_seq_weights", "aggregation", kind, expected))?;
    Ok(match number {
        GRADUS_TOKEN_MEAN => Aggregation::TokenMean,
        GRADUS_TOKEN_MEAN_OF => Aggregation::TokenMeanOf { tokens: value },
        GRADUS_SEQUENCE_MEAN_TOKEN_MEAN => Aggregation::SequenceMeanTokenMean { count_empty },
        GRADUS_SEQUENCE_MEAN_TOKEN_SUM => Aggregation::SequenceMeanTokenSum { count_empty },
        GRADUS_CONSTANT => Aggregation::Constant { length: value, count_empty },
        GRADUS_TOKEN_SUM => Aggregation::TokenSum,
    })
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
    use gradus_aggregation::*;
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

/// The number of an aggregation is `value` in the header, whichever it has.
fn named_value(error: Error) -> Error {
    match error {
        Error::InvalidArgument { op, arg, got, expected } if arg != "lengths" => {
            Error::InvalidArgument { op, arg: "value".to_string(), got, expected }
        }
        other => other,
    }
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
        let found = seq_weights(aggregation, lengths).map_err(named_value)?;
        if let Some(first) = found.first() {
            given_mut(OP, "weights", weights)?;
            // SAFETY: the caller gave `count` places, and there are as many weights as lengths.
            unsafe { std::ptr::copy_nonoverlapping(first, weights, found.len()) };
        }
        Ok(())
    })
}
