//! Rewards per token on the GPU.

use std::sync::Arc;

use crate::device::params::gae::{self, KlRewardParams};
use crate::device::{Gpu, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::kl_reward::{KlReward, RewardKl};
use crate::ops::policy::tokens::gpu::per_sequence;

pub(crate) fn kl_reward<R: Real>(gpu: &Arc<Gpu>, a: KlReward<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GAE);
    let sequences = a.cu_seqlens.extent(0) - 1;
    let params = KlRewardParams {
        score: launch.column(&a.score)?,
        logp: launch.column(&a.logp)?,
        reference: launch.column(&a.reference)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        reward: launch.column_out(a.reward)?,
        tokens: a.logp.numel(),
        beta: a.beta,
        clamp: a.clamp,
        estimator: match a.estimator {
            RewardKl::K1 => gae::RewardKl::K1,
            RewardKl::K2 => gae::RewardKl::K2,
            RewardKl::K3 => gae::RewardKl::K3,
            RewardKl::Abs => gae::RewardKl::Abs,
        },
        unused: 0,
    };
    per_sequence::<R>(launch, "kl_reward", sequences, &params)
}
