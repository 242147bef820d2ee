//! Log-probs of rows and their gradients on the GPU.

use std::sync::Arc;

use crate::device::params::logprob::{LogProbBwdParams, LogProbParams};
use crate::device::{Column, Gpu, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::vocabulary::logprob::{LogProb, LogProbBwd, LogProbFused};
use crate::ops::vocabulary::rows_gpu::{Plan, check_dtype};

pub(crate) fn logprob<T: Float>(gpu: &Arc<Gpu>, a: LogProb<'_, T>) -> Result<()> {
    check_dtype::<T>("logprob")?;
    let mut launch = LaunchArgs::new(gpu, &shipped::LOGPROB);
    let (rows, columns) = (a.logits.extent(0), a.logits.extent(1));
    let plan = plan::<T>(gpu, a.vocab).streaming();
    let params = LogProbParams {
        set: plan.row_set(a.vocab, columns, &a.transform),
        row_stride: a.logits.stride(0),
        logits: launch.input(&a.logits)?.untyped(),
        target: launch.column(&a.targets)?,
        logp: launch.column_out(a.logp)?,
        lse: launch.column_out(a.lse)?,
        entropy: launch.column_out(a.entropy)?,
        log_sum_sq: launch.column_out(a.log_sum_sq)?,
        top1: launch.column_out(a.top1)?,
    };
    let kernel = format!("logprob_{}", T::DTYPE.name());
    launch.start(&kernel, plan.grid("logprob", rows)?, &params)?;
    launch.finish()
}

pub(crate) fn logprob_bwd<T: Float>(gpu: &Arc<Gpu>, a: LogProbBwd<'_, T>) -> Result<()> {
    check_dtype::<T>("logprob_bwd")?;
    let mut launch = LaunchArgs::new(gpu, &shipped::LOGPROB);
    let (rows, columns) = (a.logits.extent(0), a.logits.extent(1));
    let plan = plan::<T>(gpu, a.vocab);
    let params = LogProbBwdParams {
        set: plan.row_set(a.vocab, columns, &a.transform),
        row_stride: a.logits.stride(0),
        out_stride: a.dlogits.stride(0),
        logits: launch.input(&a.logits)?.untyped(),
        target: launch.column(&a.targets)?,
        dlogp: launch.column(&a.dlogp)?,
        dentropy: launch.opt_column(&a.dentropy)?,
        dlse: launch.opt_column(&a.dlse)?,
        dlogits: launch.output(a.dlogits)?.untyped_mut(),
        logp: Column::NONE,
        entropy: Column::NONE,
    };
    let kernel = format!("logprob_bwd_{}", T::DTYPE.name());
    launch.start(&kernel, plan.grid("logprob_bwd", rows)?, &params)?;
    launch.finish()
}

pub(crate) fn logprob_fused<T: Float>(gpu: &Arc<Gpu>, a: LogProbFused<'_, T>) -> Result<()> {
    check_dtype::<T>("logprob_fused")?;
    let mut launch = LaunchArgs::new(gpu, &shipped::LOGPROB);
    let (rows, columns) = (a.logits.extent(0), a.logits.extent(1));
    let plan = plan::<T>(gpu, a.vocab);
    let stride = a.logits.stride(0);
    let logits = launch.update(a.logits)?.untyped_mut();
    let params = LogProbBwdParams {
        set: plan.row_set(a.vocab, columns, &a.transform),
        row_stride: stride,
        out_stride: stride,
        logits: logits.as_const(),
        dlogits: logits,
        target: launch.column(&a.targets)?,
        dlogp: launch.column(&a.dlogp)?,
        dentropy: Column::NONE,
        dlse: Column::NONE,
        logp: launch.column_out(a.logp)?,
        entropy: launch.column_out(a.entropy)?,
    };
    let kernel = format!("logprob_bwd_{}", T::DTYPE.name());
    launch.start(&kernel, plan.grid("logprob_fused", rows)?, &params)?;
    launch.finish()
}

fn plan<T: Float>(gpu: &Gpu, vocab: i64) -> Plan {
    Plan::new(vocab, size_of::<T>(), gpu.kernel_set(), gpu.info().shared_per_block, 1)
}
