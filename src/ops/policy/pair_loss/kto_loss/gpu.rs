//! The loss of KTO on the GPU.

use std::sync::Arc;

use crate::device::params::pair_loss::{KtoParams, THREADS};
use crate::device::params::terms::LossTerms;
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::kto_loss::KtoLoss;
use crate::ops::policy::pair_loss::terms_gpu::no_terms;

pub(crate) fn kto_loss<R: Real>(gpu: &Arc<Gpu>, mut a: KtoLoss<'_, R>) -> Result<()> {
    let blocks = a.loss.extent(0).div_ceil(THREADS as usize);
    if blocks == 0 {
        return no_terms(&mut a.total);
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::PAIR_LOSS);
    let scratch = launch.scratch(blocks * size_of::<f64>())?;
    let params = KtoParams {
        logp: launch.column(&a.logp)?,
        reference: launch.column(&a.reference)?,
        desirable: launch.column(&a.desirable)?,
        d_logp: launch.column_out(a.dlogp)?,
        terms: LossTerms::new(&mut launch, &a.weight, a.loss, a.total, &scratch)?,
        beta: a.beta,
        kl: a.kl,
        desirable_weight: a.desirable_weight,
        undesirable_weight: a.undesirable_weight,
    };
    let grid = Grid::linear(blocks as u32, THREADS as u32);
    launch.start(&format!("kto_{}", R::DTYPE.name()), grid, &params)?;
    drop(scratch);
    launch.finish()
}
