//! Losses over groups on the GPU.

use std::sync::Arc;

use crate::device::params::group_loss::{GroupLossParams, THREADS};
use crate::device::params::terms::LossTerms;
use crate::device::params::types::WARP;
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::group::GroupLoss;
use crate::ops::policy::pair_loss::terms_gpu::no_terms;

/// Launches `kernel` of `kernels/policy/group_loss.cu`.
pub(super) fn run<R: Real>(gpu: &Arc<Gpu>, mut a: GroupLoss<'_, R>, kernel: &str) -> Result<()> {
    if a.loss.numel() == 0 {
        return no_terms(&mut a.total);
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::GROUP_LOSS);
    let blocks = a.loss.extent(0).div_ceil((THREADS / WARP) as usize);
    let scratch = launch.scratch(blocks * size_of::<f64>())?;
    let params = GroupLossParams {
        samples: a.logp.numel(),
        logp: launch.column(&a.logp)?,
        reference: launch.opt_column(&a.reference)?,
        reward: launch.opt_column(&a.reward)?,
        offsets: launch.column(&a.offsets)?,
        d_logp: launch.column_out(a.dlogp)?,
        terms: LossTerms::new(&mut launch, &a.weight, a.loss, a.total, &scratch)?,
        beta: a.beta,
    };
    let grid = Grid::linear(blocks as u32, THREADS as u32);
    launch.start(&format!("{kernel}_{}", R::DTYPE.name()), grid, &params)?;
    drop(scratch);
    launch.finish()
}
