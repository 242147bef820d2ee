//! The K likeliest tokens on the GPU.

use std::sync::Arc;

use crate::device::params::top_k::{THREADS, TopKParams};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::vocabulary::rows_gpu::check_dtype;
use crate::ops::vocabulary::top_k::TopK;

pub(crate) fn top_k<T: Float>(gpu: &Arc<Gpu>, a: TopK<'_, T>) -> Result<()> {
    check_dtype::<T>("top_k")?;
    let mut launch = LaunchArgs::new(gpu, &shipped::TOP_K);
    let rows = a.logits.extent(0);
    let params = TopKParams {
        row_stride: a.logits.stride(0),
        ids_stride: a.ids.stride(0),
        vocab: a.vocab,
        count: a.ids.extent(1) as i64,
        logits: launch.input(&a.logits)?.untyped(),
        ids: launch.output(a.ids)?,
    };
    let kernel = format!("top_k_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(rows as u32, THREADS as u32), &params)?;
    launch.finish()
}
