//! Score vectors times the gradient of their log-probs on the GPU.

use std::sync::Arc;

use crate::device::params::linear_logprob::{ScoreScaleParams, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::ScoreScale;

pub(crate) fn score_scale<T: Float>(gpu: &Arc<Gpu>, a: ScoreScale<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::LINEAR_LOGPROB);
    let (rows, columns) = (a.score.extent(0), a.score.extent(1));
    let params = ScoreScaleParams {
        score: launch.input(&a.score)?,
        dlogp: launch.column(&a.dlogp)?,
        columns: columns as i64,
        score_stride: a.score.stride(0),
        dhidden_stride: a.dhidden.stride(0),
        dhidden: launch.output(a.dhidden)?,
    };
    let kernel = format!("score_scale_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(rows as u32, THREADS as u32), &params)?;
    launch.finish()
}
