//! Generalized advantage estimation on the GPU.

use std::sync::Arc;

use crate::device::params::gae::GaeParams;
use crate::device::{Gpu, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::gae::Gae;
use crate::ops::policy::tokens::gpu::per_sequence;

pub(crate) fn gae<R: Real>(gpu: &Arc<Gpu>, a: Gae<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GAE);
    let sequences = a.cu_seqlens.extent(0) - 1;
    let params = GaeParams {
        reward: launch.column(&a.reward)?,
        value: launch.column(&a.value)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        bootstrap: launch.opt_column(&a.bootstrap)?,
        advantage: launch.column_out(a.advantage)?,
        returns: launch.column_out(a.returns)?,
        tokens: a.reward.numel(),
        gamma: a.gamma,
        lambda: a.gae_lambda,
    };
    per_sequence::<R>(launch, "gae", sequences, &params)
}
