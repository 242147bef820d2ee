//! Rewards per token on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::kl_reward::KlReward;
use crate::ops::policy::tokens::gpu::per_sequence;

/// `KlRewardParams` of `kernels/policy/gae.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct KlRewardParams {
    score: Column,
    logp: Column,
    reference: Column,
    mask: Column,
    cu_seqlens: Column,
    reward: Column,
    tokens: i64,
    beta: f64,
    clamp: f64,
    estimator: i64,
}

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
        estimator: a.estimator as i64,
    };
    per_sequence::<R>(launch, "kl_reward", sequences, &params)
}
