//! Losses over groups on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::group::GroupLoss;
use crate::ops::policy::pair_loss::terms_gpu::{LossTerms, no_terms};

/// Threads of a block.
const THREADS: u32 = 128;

/// Groups of a block: one a warp.
const GROUPS: usize = 4;

/// `GroupLossParams` of `kernels/policy/group_loss.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    logp: Column,
    reference: Column,
    reward: Column,
    offsets: Column,
    d_logp: Column,
    terms: LossTerms,
    samples: i64,
    beta: f64,
}

/// Launches `kernel` of `kernels/policy/group_loss.cu`.
pub(super) fn run<R: Real>(gpu: &Arc<Gpu>, mut a: GroupLoss<'_, R>, kernel: &str) -> Result<()> {
    if a.loss.numel() == 0 {
        return no_terms(&mut a.total);
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::GROUP_LOSS);
    let blocks = a.loss.extent(0).div_ceil(GROUPS);
    let scratch = launch.scratch(blocks * size_of::<f64>())?;
    let params = Params {
        samples: a.logp.numel(),
        logp: launch.column(&a.logp)?,
        reference: launch.opt_column(&a.reference)?,
        reward: launch.opt_column(&a.reward)?,
        offsets: launch.column(&a.offsets)?,
        d_logp: launch.column_out(a.dlogp)?,
        terms: LossTerms::new(&mut launch, &a.weight, a.loss, a.total, &scratch)?,
        beta: a.beta,
    };
    let grid = Grid::linear(blocks as u32, THREADS);
    launch.start(&format!("{kernel}_{}", R::DTYPE.name()), grid, &params)?;
    drop(scratch);
    launch.finish()
}
