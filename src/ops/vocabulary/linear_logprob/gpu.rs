//! Score vectors times the gradient of their log-probs on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::ScoreScale;

/// `ScoreScaleParams` of `kernels/vocabulary/linear_logprob.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    score: u64,
    dhidden: u64,
    dlogp: Column,
    columns: i64,
    score_stride: i64,
    dhidden_stride: i64,
}

pub(crate) fn score_scale<T: Float>(gpu: &Arc<Gpu>, a: ScoreScale<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::LINEAR_LOGPROB);
    let (rows, columns) = (a.score.extent(0), a.score.extent(1));
    let params = Params {
        score: launch.input(&a.score)?,
        dlogp: launch.column(&a.dlogp)?,
        columns: columns as i64,
        score_stride: a.score.stride(0),
        dhidden_stride: a.dhidden.stride(0),
        dhidden: launch.output(a.dhidden)?,
    };
    let kernel = format!("score_scale_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(rows as u32, 256), &params)?;
    launch.finish()
}
