//! Rewards per token on the CPU, in f64.

use crate::check::Check;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::kl_reward::{KlReward, RewardKl};
use crate::ops::policy::tokens::cpu::{per_sequence, store};
use crate::ops::policy::tokens::is_action;

pub(crate) fn kl_reward<R: Real>(a: KlReward<'_, R>) -> Result<()> {
    let check = Check("kl_reward");
    let reward = per_sequence(&a.cu_seqlens, |i, start, out| {
        let mut score = a.score.at(i).to_f64();
        for (j, out) in out.iter_mut().enumerate().rev() {
            let t = start + j;
            if is_action(&a.mask, t) {
                let d = a.logp.at(t).to_f64() - a.reference.at(t).to_f64();
                // An estimator may overflow; a penalty of weight 0 must not turn that into NaN.
                let penalize = a.beta > 0.0;
                let kl = if penalize { a.estimator.value(d.clamp(-a.clamp, a.clamp)) } else { 0.0 };
                *out = score - a.beta * kl;
                score = 0.0;
            }
        }
    });
    check.in_range::<R>("reward", reward.iter().copied())?;
    store(a.reward, &reward);
    Ok(())
}

impl RewardKl {
    fn value(self, d: f64) -> f64 {
        match self {
            RewardKl::K1 => d,
            RewardKl::K2 => 0.5 * d * d,
            RewardKl::K3 => (-d).exp_m1() + d,
            RewardKl::Abs => d.abs(),
        }
    }
}
