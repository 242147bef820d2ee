//! Reward-difference prediction on the GPU.

use std::sync::Arc;

use crate::device::params::pair_loss::{PrdpParams, THREADS};
use crate::device::params::terms::LossTerms;
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::prdp_loss::PrdpLoss;
use crate::ops::policy::pair_loss::terms_gpu::no_terms;

pub(crate) fn prdp_loss<R: Real>(gpu: &Arc<Gpu>, mut a: PrdpLoss<'_, R>) -> Result<()> {
    let sequences = a.cu_seqlens.extent(0) - 1;
    if sequences == 0 {
        return no_terms(&mut a.total);
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::PAIR_LOSS);
    let column = sequences * size_of::<f64>();
    let scratch = launch.scratch(2 * column)?;
    let params = PrdpParams {
        tokens: a.logp.numel(),
        logp: launch.column(&a.logp)?,
        old: launch.column(&a.old)?,
        reference: launch.column(&a.reference)?,
        reward: launch.column(&a.reward)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        d_logp: launch.column_out(a.dlogp)?,
        terms: LossTerms::new(&mut launch, &a.weight, a.loss, a.total, &scratch)?,
        pair_stride: a.pairs.stride(0),
        pairs: launch.input(&a.pairs)?,
        sequences: sequences as i64,
        free_sums: scratch.ptr(),
        bounded_sums: scratch.ptr().byte_add(column),
        beta: a.beta,
        clip: a.clip,
    };
    let name = R::DTYPE.name();
    let grid = Grid::linear(sequences as u32, THREADS as u32);
    launch.start(&format!("prdp_{name}"), grid, &params)?;
    launch.start(&format!("prdp_grad_{name}"), grid, &params)?;
    drop(scratch);
    launch.finish()
}
