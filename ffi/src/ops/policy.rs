//! Losses, advantages and statistics: `include/gradus/policy.h`.

use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Result, View};

use super::settings::EPS_FORMS;
use crate::args::Op;
use crate::sys::*;
use crate::tensor::{Tensors, for_real, is_absent};

impl Op for gradus_policy_loss_args {
    fn defaults(&mut self) {
        self.settings = (&PolicySettings::default()).into();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = self.settings.get(t)?;
        let (loss, stats) = (t.result("loss", self.loss)?, t.opt_result("stats", self.stats)?);
        let (mut total, mut measured) = (0.0, PolicyStats::default());
        for_real!(t, "logp", &self.logp, R, {
            let advantage = t.read::<R>("advantage", &self.advantage)?;
            let levels = [Advantage::PerSequence(advantage), Advantage::PerToken(advantage)];
            let args = PolicyLoss::<R> {
                logp: t.read("logp", &self.logp)?,
                old_logp: t.opt_read("old_logp", &self.old_logp)?,
                sampler_logp: t.opt_read("sampler_logp", &self.sampler_logp)?,
                ref_logp: t.opt_read("ref_logp", &self.ref_logp)?,
                ref2_logp: t.opt_read("ref2_logp", &self.ref2_logp)?,
                advantage: t.choice("advantage_level", self.advantage_level, &levels)?,
                mask: t.opt_read("mask", &self.mask)?,
                class: t.opt_read("class_ids", &self.class_ids)?,
                token_weight: t.opt_read("token_weight", &self.token_weight)?,
                selected: t.opt_read("selected", &self.selected)?,
                is_weight: t.opt_read("is_weight", &self.is_weight)?,
                entropy: t.opt_read("entropy", &self.entropy)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                seq_weight: t.read("seq_weight", &self.seq_weight)?,
                settings: &settings,
                loss: &mut total,
                dlogp: t.write("dlogp", &self.dlogp)?,
                dentropy: t.opt_write("dentropy", &self.dentropy)?,
                token_loss: t.opt_write("token_loss", &self.token_loss)?,
                stats: stats.is_wanted().then_some(&mut measured),
            };
            t.disjoint()?;
            policy_loss(t.device, args)
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

impl Op for gradus_group_advantage_args {
    fn defaults(&mut self) {
        (self.baseline, self.scale) = (GRADUS_BASELINE_MEAN as i32, GRADUS_SCALE_GROUP_STD as i32);
        (self.ddof, self.eps) = (1, 1e-4);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        use GroupBaseline as B;
        use GroupScale as S;
        let baselines = [B::None, B::Mean, B::LeaveOneOut, B::LengthWeighted, B::Max2];
        let scales = [S::None, S::GroupStd, S::BatchStd, S::LooStd, S::NonzeroShare];
        let settings = GroupSettings {
            baseline: t.choice("baseline", self.baseline, &baselines)?,
            scale: t.choice("scale", self.scale, &scales)?,
            ddof: t.choice("ddof", self.ddof, &[0, 1])?,
            eps: self.eps,
            eps_form: t.choice("eps_form", self.eps_form, &EPS_FORMS)?,
            on_single: t.choice("on_single", self.on_single, &[OnSingle::Zero, OnSingle::Raw])?,
        };
        let mut groups = Vec::new();
        let offsets = t.read::<i64>("offsets", &self.offsets)?;
        let count = offsets.extent(0).saturating_sub(1);
        let wanted = !self.groups.is_null();
        for_real!(t, "reward", &self.reward, R, {
            let args = GroupAdvantage::<R> {
                reward: t.read("reward", &self.reward)?,
                offsets,
                length: t.opt_read("length", &self.length)?,
                settings,
                advantage: t.write("advantage", &self.advantage)?,
                groups: wanted.then_some(&mut groups),
            };
            t.disjoint()?;
            group_advantage(t.device, args)
        })?;
        if wanted && !t.dry && count > 0 {
            t.given("groups", self.groups)?;
            for (i, group) in groups.iter().enumerate().take(count) {
                // SAFETY: the header asks for a place for every group, of which there are `count`.
                unsafe { self.groups.add(i).write(group.into()) };
            }
        }
        Ok(())
    }
}

impl From<&GroupStats> for gradus_group_stats {
    fn from(g: &GroupStats) -> gradus_group_stats {
        gradus_group_stats {
            size: g.size as i64,
            scorable: g.scorable as i64,
            mean: g.mean,
            std: g.std,
            degenerate: g.degenerate as i32,
            reserved: 0,
        }
    }
}

impl Op for gradus_gae_args {
    fn defaults(&mut self) {
        (self.gamma, self.gae_lambda) = (1.0, 0.95);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "reward", &self.reward, R, {
            let args = Gae::<R> {
                reward: t.read("reward", &self.reward)?,
                value: t.read("value", &self.value)?,
                mask: t.opt_read("mask", &self.mask)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                bootstrap: t.opt_read("bootstrap", &self.bootstrap)?,
                gamma: self.gamma,
                lambda: self.gae_lambda,
                advantage: t.write("advantage", &self.advantage)?,
                returns: t.opt_write("returns", &self.returns)?,
            };
            t.disjoint()?;
            gae(t.device, args)
        })
    }
}

impl Op for gradus_discounted_return_args {
    fn defaults(&mut self) {
        self.gamma = 1.0;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "reward", &self.reward, R, {
            let args = DiscountedReturn::<R> {
                reward: t.read("reward", &self.reward)?,
                mask: t.opt_read("mask", &self.mask)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                gamma: self.gamma,
                masked: t.choice(
                    "reset",
                    self.reset,
                    &[MaskedReturn::Skip, MaskedReturn::Reset],
                )?,
                baseline: t.opt_read("baseline", &self.baseline)?,
                returns: t.write("returns", &self.returns)?,
            };
            t.disjoint()?;
            discounted_return(t.device, args)
        })
    }
}

impl Op for gradus_whiten_args {
    fn defaults(&mut self) {
        (self.eps, self.eps_form) = (1e-8, GRADUS_ADD_TO_VARIANCE as i32);
        (self.ddof, self.shift_mean) = (1, 1);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = WhitenSettings {
            ddof: t.choice("ddof", self.ddof, &[0, 1])?,
            eps: self.eps,
            eps_form: t.choice("eps_form", self.eps_form, &EPS_FORMS)?,
            count_eps: self.count_eps,
            shift_mean: t.flag("shift_mean", self.shift_mean)?,
        };
        let stats = t.opt_result("stats", self.stats)?;
        let mut measured = WhitenStats { count: 0, mean: 0.0, std: 0.0 };
        for_real!(t, "x", &self.x, R, {
            let args = Whiten::<R> {
                x: t.read("x", &self.x)?,
                mask: t.opt_read("mask", &self.mask)?,
                settings,
                y: t.write("y", &self.y)?,
                stats: stats.is_wanted().then_some(&mut measured),
            };
            t.disjoint()?;
            whiten(t.device, args)
        })?;
        let WhitenStats { count, mean, std } = measured;
        stats.set(gradus_whiten_stats { count: count as i64, mean, std });
        Ok(())
    }
}

impl Op for gradus_kl_reward_args {
    fn defaults(&mut self) {
        self.clamp = f64::INFINITY;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let estimators = [RewardKl::K1, RewardKl::K2, RewardKl::K3, RewardKl::Abs];
        for_real!(t, "score", &self.score, R, {
            let args = KlReward::<R> {
                score: t.read("score", &self.score)?,
                logp: t.read("logp", &self.logp)?,
                reference: t.read("reference", &self.reference)?,
                mask: t.opt_read("mask", &self.mask)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                beta: self.beta,
                estimator: t.choice("estimator", self.estimator, &estimators)?,
                clamp: self.clamp,
                reward: t.write("reward", &self.reward)?,
            };
            t.disjoint()?;
            kl_reward(t.device, args)
        })
    }
}

impl Op for gradus_offpolicy_weight_args {
    fn defaults(&mut self) {
        (self.level, self.bound) = (GRADUS_LEVEL_SEQUENCE_SUM as i32, GRADUS_MASK as i32);
        (self.max, self.clamp) = (3.0, f64::INFINITY);
        (self.reject_lo, self.reject_hi) = (f64::NEG_INFINITY, f64::INFINITY);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = self.settings(t)?;
        let stats = t.opt_result("stats", self.stats)?;
        let mut measured = OffPolicyStats::default();
        for_real!(t, "old_logp", &self.old_logp, R, {
            let args = OffPolicyWeight::<R> {
                old_logp: t.read("old_logp", &self.old_logp)?,
                sampler_logp: t.read("sampler_logp", &self.sampler_logp)?,
                mask: t.opt_read("mask", &self.mask)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                settings,
                weight: t.write("weight", &self.weight)?,
                stats: stats.is_wanted().then_some(&mut measured),
            };
            t.disjoint()?;
            offpolicy_weight(t.device, args)
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
        use OffPolicyBound as B;
        use OffPolicyLevel as L;
        use RejectLevel as R;
        let rejects = [R::Token, R::SequenceSum, R::SequenceMean, R::SequenceMax];
        let reject = Reject {
            by: t.choice(
                "reject_by",
                self.reject_by,
                &[RejectBy::K1, RejectBy::K2, RejectBy::K3],
            )?,
            level: t.choice("reject_level", self.reject_level, &rejects)?,
            lo: self.reject_lo,
            hi: self.reject_hi,
        };
        Ok(OffPolicySettings {
            level: t.choice("level", self.level, &[L::Token, L::SequenceSum, L::SequenceMean])?,
            bound: t.choice("bound", self.bound, &[B::Truncate, B::Mask, B::SequenceMask])?,
            min: self.min,
            max: self.max,
            clamp: self.clamp,
            normalize: t.flag("normalize", self.normalize)?,
            reject: t.flag("use_reject", self.use_reject)?.then_some(reject),
        })
    }
}

impl Op for gradus_value_loss_args {
    fn defaults(&mut self) {
        (self.clip, self.weight) = (f64::INFINITY, 1.0);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let loss = t.result("loss", self.loss)?;
        let mut total = 0.0;
        for_real!(t, "value", &self.value, R, {
            let args = ValueLoss::<R> {
                value: t.read("value", &self.value)?,
                returns: t.read("returns", &self.returns)?,
                old_value: t.opt_read("old_value", &self.old_value)?,
                mask: t.opt_read("mask", &self.mask)?,
                clip: self.clip,
                weight: self.weight,
                loss: &mut total,
                dvalue: t.write("dvalue", &self.dvalue)?,
            };
            t.disjoint()?;
            value_loss(t.device, args)
        })?;
        loss.set(total);
        Ok(())
    }
}

impl Op for gradus_seq_reduce_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        use SeqReduction as S;
        for_real!(t, "x", &self.x, R, {
            let args = SeqReduce::<R> {
                x: t.read("x", &self.x)?,
                mask: t.opt_read("mask", &self.mask)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                reduction: t.choice(
                    "reduction",
                    self.reduction,
                    &[S::Sum, S::Mean, S::Max, S::Min],
                )?,
                y: t.write("y", &self.y)?,
                count: t.opt_write("count", &self.count)?,
            };
            t.disjoint()?;
            seq_reduce(t.device, args)
        })
    }
}

impl Op for gradus_seq_broadcast_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "x", &self.x, R, {
            let args = SeqBroadcast::<R> {
                x: t.read("x", &self.x)?,
                mask: t.opt_read("mask", &self.mask)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                mean: t.flag("mean", self.mean)?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            seq_broadcast(t.device, args)
        })
    }
}

/// All tokens, or each sequence by itself.
fn scope<'a>(t: &Tensors<'a>, cu_seqlens: &gradus_tensor) -> Result<QuantileScope<'a>> {
    let offsets: Option<View<'a, i64>> = t.opt_read("cu_seqlens", cu_seqlens)?;
    Ok(offsets.map_or(QuantileScope::All, QuantileScope::PerSequence))
}

impl Op for gradus_quantile_args {
    fn defaults(&mut self) {
        self.q = 0.5;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        use QuantileMethod as M;
        for_real!(t, "x", &self.x, R, {
            let args = Quantile::<R> {
                x: t.read("x", &self.x)?,
                mask: t.opt_read("mask", &self.mask)?,
                scope: scope(t, &self.cu_seqlens)?,
                q: self.q,
                method: t.choice("method", self.method, &[M::Linear, M::Lower, M::Higher])?,
                on_nan: t.choice("skip_nan", self.skip_nan, &[OnNan::Error, OnNan::Skip])?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            quantile(t.device, args)
        })
    }
}

impl Op for gradus_top_fraction_args {
    fn defaults(&mut self) {
        self.fraction = 1.0;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "x", &self.x, R, {
            let args = TopFraction::<R> {
                x: t.read("x", &self.x)?,
                class: self.ranked_class(t)?,
                scope: scope(t, &self.cu_seqlens)?,
                fraction: self.fraction,
                keep: t.write("keep", &self.keep)?,
                threshold: t.opt_write("threshold", &self.threshold)?,
            };
            t.disjoint()?;
            top_fraction(t.device, args)
        })
    }
}

impl gradus_top_fraction_args {
    fn ranked_class<'a>(&self, t: &Tensors<'a>) -> Result<Option<RankedClass<'a>>> {
        if is_absent(&self.class_ids) {
            return Ok(None);
        }
        let ranked = u8::try_from(self.ranked);
        Ok(Some(RankedClass {
            class: t.read("class_ids", &self.class_ids)?,
            ranked: ranked.map_err(|_| t.invalid("ranked", self.ranked, "0 to 255"))?,
            others: t.flag("others", self.others)?,
        }))
    }
}

/// Two tensors that come together or not at all.
pub(super) fn pair<'a, R: Real>(
    t: &Tensors<'a>,
    [chosen_name, rejected_name]: [&str; 2],
    chosen: &gradus_tensor,
    rejected: &gradus_tensor,
) -> Result<Pair<View<'a, R>>> {
    Ok(Pair { chosen: t.read(chosen_name, chosen)?, rejected: t.read(rejected_name, rejected)? })
}

/// Sizes of this header's other structs.
pub(super) const STRUCTS: [(&str, usize); 5] = [
    ("policy_settings", size_of::<gradus_policy_settings>()),
    ("policy_stats", size_of::<gradus_policy_stats>()),
    ("group_stats", size_of::<gradus_group_stats>()),
    ("whiten_stats", size_of::<gradus_whiten_stats>()),
    ("offpolicy_stats", size_of::<gradus_offpolicy_stats>()),
];
