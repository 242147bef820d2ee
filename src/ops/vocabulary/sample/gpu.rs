//! Sampling on the GPU.

use std::sync::Arc;

use crate::device::params::sample::SampleParams;
use crate::device::{Gpu, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::vocabulary::rows_gpu::{Plan, check_dtype};
use crate::ops::vocabulary::sample::{Sample, check_drawn};

/// Most columns whose weights of up to 2^40 sum below 2^63.
const MAX_VOCAB: i64 = 1 << 23;

pub(crate) fn sample<T: Float>(gpu: &Arc<Gpu>, a: Sample<'_, T>) -> Result<()> {
    check_dtype::<T>("sample")?;
    if a.vocab > MAX_VOCAB {
        let reason = format!("{} columns; the kernel's exact sums take {MAX_VOCAB}", a.vocab);
        return Err(Error::Unsupported { op: "sample", reason });
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::SAMPLE);
    let (rows, columns) = (a.logits.extent(0), a.logits.extent(1));
    // The plan of `logprob`, so that the token's log-prob has its bits.
    let (set, limit) = (gpu.kernel_set(), gpu.info().shared_per_block);
    let plan = Plan::new(a.vocab, size_of::<T>(), set, limit, 1);
    let look = a.token.is_host();
    let params = SampleParams {
        set: plan.row_set(a.vocab, columns, &a.transform),
        row_stride: a.logits.stride(0),
        logits: launch.input(&a.logits)?.untyped(),
        uniform: launch.column(&a.uniform)?,
        token: launch.column_out(a.token)?,
        logp: launch.column_out(a.logp)?,
        logp_kept: launch.column_out(a.logp_kept)?,
        kept_mass: launch.column_out(a.kept_mass)?,
        entropy: launch.column_out(a.entropy)?,
        top_k: a.top_k,
        top_p: a.top_p,
        min_p: a.min_p as f32,
        greedy: a.greedy as i32,
    };
    let kernel = format!("sample_{}", T::DTYPE.name());
    launch.start(&kernel, plan.grid("sample", rows)?, &params)?;
    if look && rows > 0 {
        let stride = params.token.stride as usize;
        let tokens: Vec<i32> = launch.fetch(params.token.at, (rows - 1) * stride + 1)?;
        check_drawn((0..rows).find(|t| tokens[t * stride] < 0))?;
    }
    launch.finish()
}
