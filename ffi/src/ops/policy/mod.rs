//! Losses, advantages and statistics: `include/gradus/policy.h`.

mod advantage;
mod pairs;
mod reduce;
mod settings;

pub use settings::{gradus_policy_preset, gradus_seq_weights};

use gradus::ops::*;
use gradus::{Result, View};

use crate::args::Op;
use crate::field::{Field, call, for_dtype};
use crate::sys::*;
use crate::tensor::Tensors;

impl Op for gradus_policy_loss_args {
    fn defaults(&mut self) {
        self.settings = (&PolicySettings::default()).into();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = self.settings.get(t)?;
        let (loss, stats) = (t.result("loss", self.loss)?, t.opt_result("stats", self.stats)?);
        let (mut total, mut measured) = (0.0, PolicyStats::default());
        for_dtype!(real t, "logp", &self.logp, R, {
            let advantage: View<'_, R> = t.read("advantage", &self.advantage)?;
            call!(self, t, policy_loss(PolicyLoss::<R> {
                logp,
                old_logp,
                sampler_logp,
                ref_logp,
                ref2_logp,
                advantage: match t.enumerator("advantage_level", self.advantage_level)? {
                    gradus_advantage_level::GRADUS_PER_SEQUENCE => Advantage::PerSequence(advantage),
                    gradus_advantage_level::GRADUS_PER_TOKEN => Advantage::PerToken(advantage),
                },
                mask,
                class_ids,
                token_weight,
                selected,
                is_weight,
                entropy,
                cu_seqlens,
                seq_weight,
                settings: &settings,
                loss: &mut total,
                dlogp,
                dentropy,
                token_loss,
                stats: stats.is_wanted().then_some(&mut measured),
            }))
        })?;
        loss.set(total);
        stats.set((&measured).into());
        Ok(())
    }
}

impl From<&PolicyStats> for gradus_policy_stats {
    fn from(s: &PolicyStats) -> gradus_policy_stats {
        gradus_policy_stats {
            n_tokens: s.n_tokens as i64,
            n_sequences: s.n_sequences as i64,
            n_empty: s.n_empty as i64,
            n_clip_lo: s.n_clip_lo as i64,
            n_clip_hi: s.n_clip_hi as i64,
            n_dual: s.n_dual as i64,
            n_opsm: s.n_opsm as i64,
            n_nonfinite: s.n_nonfinite as i64,
            sum_ratio: s.sum_ratio,
            sum_ratio2: s.sum_ratio2,
            min_ratio: s.min_ratio,
            max_ratio: s.max_ratio,
            max_abs_log_ratio: s.max_abs_log_ratio,
            sum_kl: s.sum_kl,
            sum_entropy: s.sum_entropy,
            grad2_by_class: s.grad2_by_class,
        }
    }
}

impl Op for gradus_offpolicy_weight_args {
    fn defaults(&mut self) {
        self.level = gradus_level::GRADUS_LEVEL_SEQUENCE_SUM as i32;
        self.bound = gradus_bound::GRADUS_MASK as i32;
        (self.max, self.clamp) = (3.0, f64::INFINITY);
        (self.reject_lo, self.reject_hi) = (f64::NEG_INFINITY, f64::INFINITY);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = self.settings(t)?;
        let stats = t.opt_result("stats", self.stats)?;
        let mut measured = OffPolicyStats::default();
        for_dtype!(real t, "old_logp", &self.old_logp, R, {
            call!(self, t, offpolicy_weight(OffPolicyWeight::<R> {
                old_logp,
                sampler_logp,
                mask,
                cu_seqlens,
                settings: settings,
                weight,
                stats: stats.is_wanted().then_some(&mut measured),
            }))
        })?;
        stats.set(gradus_offpolicy_stats {
            tokens: measured.tokens as i64,
            dropped: measured.dropped as i64,
            nan_sampler: measured.nan_sampler as i64,
            min: measured.min,
            max: measured.max,
            mean: measured.mean,
            ess: measured.ess,
            chi2: measured.chi2,
        });
        Ok(())
    }
}

impl gradus_offpolicy_weight_args {
    fn settings(&self, t: &Tensors<'_>) -> Result<OffPolicySettings> {
        let reject = Reject {
            by: self.reject_by(t)?,
            level: Field::get(t, "reject_level", &self.reject_level)?,
            lo: self.reject_lo,
            hi: self.reject_hi,
        };
        Ok(OffPolicySettings {
            level: self.level(t)?,
            bound: Field::get(t, "bound", &self.bound)?,
            min: self.min,
            max: self.max,
            clamp: self.clamp,
            normalize: t.flag("normalize", self.normalize)?,
            reject: t.flag("use_reject", self.use_reject)?.then_some(reject),
        })
    }

    fn reject_by(&self, t: &Tensors<'_>) -> Result<RejectBy> {
        use gradus_kl_estimator::*;
        let refused = || t.invalid("reject_by", self.reject_by, "0 to 2");
        match t.enumerator("reject_by", self.reject_by).map_err(|_| refused())? {
            GRADUS_K1 => Ok(RejectBy::K1),
            GRADUS_K2 => Ok(RejectBy::K2),
            GRADUS_K3 => Ok(RejectBy::K3),
            GRADUS_KL_ABS => Err(refused()),
        }
    }

    fn level(&self, t: &Tensors<'_>) -> Result<OffPolicyLevel> {
        use gradus_level::*;
        let refused = || t.invalid("level", self.level, "0 to 2");
        match t.enumerator("level", self.level).map_err(|_| refused())? {
            GRADUS_LEVEL_TOKEN => Ok(OffPolicyLevel::Token),
            GRADUS_LEVEL_SEQUENCE_SUM => Ok(OffPolicyLevel::SequenceSum),
            GRADUS_LEVEL_SEQUENCE_MEAN => Ok(OffPolicyLevel::SequenceMean),
            GRADUS_LEVEL_SEQUENCE_MAX => Err(refused()),
        }
    }
}

impl Op for gradus_value_loss_args {
    fn defaults(&mut self) {
        (self.clip, self.weight) = (f64::INFINITY, 1.0);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let loss = t.result("loss", self.loss)?;
        let mut total = 0.0;
        for_dtype!(real t, "value", &self.value, R, {
            call!(self, t, value_loss(ValueLoss::<R> {
                value, returns, old_value, mask, clip, weight,
                loss: &mut total,
                dvalue,
            }))
        })?;
        loss.set(total);
        Ok(())
    }
}
