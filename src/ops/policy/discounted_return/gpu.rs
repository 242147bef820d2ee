//! Discounted returns on the GPU.

use std::sync::Arc;

use crate::device::params::gae::DiscountedReturnParams;
use crate::device::{Gpu, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::discounted_return::{DiscountedReturn, MaskedReturn};
use crate::ops::policy::tokens::gpu::per_sequence;

pub(crate) fn discounted_return<R: Real>(gpu: &Arc<Gpu>, a: DiscountedReturn<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GAE);
    let sequences = a.cu_seqlens.extent(0) - 1;
    let params = DiscountedReturnParams {
        reward: launch.column(&a.reward)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        baseline: launch.opt_column(&a.baseline)?,
        returns: launch.column_out(a.returns)?,
        tokens: a.reward.numel(),
        gamma: a.gamma,
        reset: (a.masked == MaskedReturn::Reset) as i64,
    };
    per_sequence::<R>(launch, "discounted_return", sequences, &params)
}
