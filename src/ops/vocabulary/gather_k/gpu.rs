//! Log-probs of K tokens per row on the GPU.

use std::sync::Arc;

use crate::device::params::gather_k::GatherKParams;
use crate::device::{Column, Gpu, LaunchArgs, Ptr, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::vocabulary::gather_k::{GatherK, GatherKBwd};
use crate::ops::vocabulary::rows_gpu::{Plan, check_dtype};

pub(crate) fn gather_k<T: Float>(gpu: &Arc<Gpu>, a: GatherK<'_, T>) -> Result<()> {
    check_dtype::<T>("gather_k")?;
    let mut launch = LaunchArgs::new(gpu, &shipped::GATHER_K);
    let (rows, columns) = (a.logits.extent(0), a.logits.extent(1));
    let whole = !a.renormalize || a.mass.is_some();
    let plan = plan::<T>(gpu, a.vocab, whole).streaming();
    let params = GatherKParams {
        set: plan.row_set(a.vocab, columns, &a.transform),
        row_stride: a.logits.stride(0),
        ids_stride: a.ids.stride(0),
        logp_stride: a.logp.stride(0),
        count: a.ids.extent(1) as i64,
        renormalize: a.renormalize as i32,
        logits: launch.input(&a.logits)?.untyped(),
        ids: launch.input(&a.ids)?,
        logp: launch.output(a.logp)?,
        mass: launch.column_out(a.mass)?,
        dlogits: Ptr::NULL,
        dlogp: Ptr::NULL,
        out_stride: 0,
        dlogp_stride: 0,
        unused: 0,
    };
    let kernel = format!("gather_k_{}", T::DTYPE.name());
    launch.start(&kernel, plan.grid("gather_k", rows)?, &params)?;
    launch.finish()
}

pub(crate) fn gather_k_bwd<T: Float>(gpu: &Arc<Gpu>, a: GatherKBwd<'_, T>) -> Result<()> {
    check_dtype::<T>("gather_k_bwd")?;
    let mut launch = LaunchArgs::new(gpu, &shipped::GATHER_K);
    let (rows, columns) = (a.logits.extent(0), a.logits.extent(1));
    let plan = plan::<T>(gpu, a.vocab, !a.renormalize);
    let params = GatherKParams {
        set: plan.row_set(a.vocab, columns, &a.transform),
        row_stride: a.logits.stride(0),
        ids_stride: a.ids.stride(0),
        dlogp_stride: a.dlogp.stride(0),
        out_stride: a.dlogits.stride(0),
        count: a.ids.extent(1) as i64,
        renormalize: a.renormalize as i32,
        logits: launch.input(&a.logits)?.untyped(),
        ids: launch.input(&a.ids)?,
        dlogp: launch.input(&a.dlogp)?,
        dlogits: launch.output(a.dlogits)?.untyped_mut(),
        logp: Ptr::NULL,
        logp_stride: 0,
        mass: Column::NONE,
        unused: 0,
    };
    let kernel = format!("gather_k_bwd_{}", T::DTYPE.name());
    launch.start(&kernel, plan.grid("gather_k_bwd", rows)?, &params)?;
    launch.finish()
}

/// The plan of `logprob`, so that entries have its bits; nothing is staged if the row is not read.
fn plan<T: Float>(gpu: &Gpu, vocab: i64, whole: bool) -> Plan {
    let (set, limit) = (gpu.kernel_set(), gpu.info().shared_per_block);
    let plan = Plan::new(vocab, size_of::<T>(), set, limit, 1);
    if whole { plan } else { plan.streaming() }
}
