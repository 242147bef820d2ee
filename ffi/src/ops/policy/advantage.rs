//! Advantages and rewards of tokens: the second part of `include/gradus/policy.h`.

use gradus::Result;
use gradus::ops::*;

use crate::args::Op;
use crate::field::{Field, call, for_dtype, impl_op};
use crate::sys::*;
use crate::tensor::Tensors;

impl Op for gradus_group_advantage_args {
    fn defaults(&mut self) {
        self.baseline = gradus_baseline::GRADUS_BASELINE_MEAN as i32;
        self.scale = gradus_scale::GRADUS_SCALE_GROUP_STD as i32;
        (self.ddof, self.eps) = (1, 1e-4);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = GroupSettings {
            baseline: Field::get(t, "baseline", &self.baseline)?,
            scale: Field::get(t, "scale", &self.scale)?,
            ddof: t.choice("ddof", self.ddof, &[0, 1])?,
            eps: self.eps,
            eps_form: Field::get(t, "eps_form", &self.eps_form)?,
            on_single: Field::get(t, "on_single", &self.on_single)?,
        };
        let mut groups = Vec::new();
        let offsets = t.read::<i64>("offsets", &self.offsets)?;
        let count = offsets.extent(0).saturating_sub(1);
        let wanted = !self.groups.is_null();
        for_dtype!(real t, "reward", &self.reward, R, {
            call!(self, t, group_advantage(GroupAdvantage::<R> {
                reward,
                offsets: offsets,
                length,
                settings: settings,
                advantage,
                groups: wanted.then_some(&mut groups),
            }))
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

impl_op!(gradus_discounted_return_args {
    real reward,
    defaults { gamma: 1.0 },
    |args, t| discounted_return(DiscountedReturn {
        reward, mask, cu_seqlens, gamma,
        masked: t.choice("reset", args.reset, &[MaskedReturn::Skip, MaskedReturn::Reset])?,
        baseline, returns,
    })
});

impl Op for gradus_whiten_args {
    fn defaults(&mut self) {
        (self.eps, self.eps_form) = (1e-8, gradus_eps_form::GRADUS_ADD_TO_VARIANCE as i32);
        (self.ddof, self.shift_mean) = (1, 1);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = WhitenSettings {
            ddof: t.choice("ddof", self.ddof, &[0, 1])?,
            eps: self.eps,
            eps_form: Field::get(t, "eps_form", &self.eps_form)?,
            count_eps: self.count_eps,
            shift_mean: t.flag("shift_mean", self.shift_mean)?,
        };
        let stats = t.opt_result("stats", self.stats)?;
        let mut measured = WhitenStats { count: 0, mean: 0.0, std: 0.0 };
        for_dtype!(real t, "x", &self.x, R, {
            call!(self, t, whiten(Whiten::<R> {
                x, mask,
                settings: settings,
                y,
                stats: stats.is_wanted().then_some(&mut measured),
            }))
        })?;
        let WhitenStats { count, mean, std } = measured;
        stats.set(gradus_whiten_stats { count: count as i64, mean, std });
        Ok(())
    }
}
