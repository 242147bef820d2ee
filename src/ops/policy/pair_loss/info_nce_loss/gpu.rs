//! Contrast between contexts and completions on the GPU.

use std::sync::Arc;

use crate::device::params::group_loss::{InfoNceParams, THREADS};
use crate::device::params::terms::LossTerms;
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::info_nce_loss::InfoNceLoss;

pub(crate) fn info_nce_loss<R: Real>(gpu: &Arc<Gpu>, mut a: InfoNceLoss<'_, R>) -> Result<()> {
    let n = a.logp.extent(0);
    if n == 0 && a.loss.is_host() {
        a.loss.set(0, R::from_f64(0.0));
        return Ok(());
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::GROUP_LOSS);
    // One partial per block, the two normalizers of every row and column, and the total.
    let column = n * size_of::<f64>();
    let scratch = launch.scratch(3 * column + size_of::<f64>())?;
    let at = |i: usize| scratch.ptr().byte_add(i * column);
    let mut params = InfoNceParams {
        row_stride: a.logp.stride(0),
        logp: launch.input(&a.logp)?,
        d_row_stride: a.dlogp.stride(0),
        d_logp: launch.output(a.dlogp)?,
        length: launch.opt_column(&a.length)?,
        terms: LossTerms::new(&mut launch, &None, a.loss, None, &scratch)?,
        row_lse: at(1),
        col_lse: at(2),
        n: n as i64,
    };
    params.terms.total = at(3);
    let name = R::DTYPE.name();
    let grid = Grid::linear(n as u32, THREADS as u32);
    launch.start(&format!("info_nce_{name}"), grid, &params)?;
    launch.start(&format!("info_nce_grad_{name}"), grid, &params)?;
    drop(scratch);
    launch.finish()
}
