//! Contrastive policy gradient on the GPU.

use std::sync::Arc;

use crate::device::Gpu;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::group::GroupLoss;
use crate::ops::policy::pair_loss::group_gpu::run;

pub(crate) fn copg_loss<R: Real>(gpu: &Arc<Gpu>, a: GroupLoss<'_, R>) -> Result<()> {
    run(gpu, a, "copg")
}
