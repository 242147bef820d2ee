//! Preference losses on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::preference_loss::{
    Pair, PreferenceKind, PreferenceLoss, PreferenceScore,
};
use crate::ops::policy::pair_loss::terms_gpu::{LossTerms, no_terms};

/// Threads of a block.
const THREADS: usize = 128;

/// `PreferenceParams` of `kernels/policy/pair_loss.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PreferenceParams {
    logp: [Column; 2],
    reference: [Column; 2],
    length: [Column; 2],
    d_logp: [Column; 2],
    reward: [Column; 2],
    terms: LossTerms,
    beta: f64,
    likelihood: f64,
    alpha: f64,
    x: f64,
    y: f64,
    kind: i32,
    score: i32,
}

pub(crate) fn preference_loss<R: Real>(gpu: &Arc<Gpu>, mut a: PreferenceLoss<'_, R>) -> Result<()> {
    let blocks = a.loss.extent(0).div_ceil(THREADS);
    if blocks == 0 {
        return no_terms(&mut a.total);
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::PAIR_LOSS);
    let scratch = launch.scratch(blocks * size_of::<f64>())?;
    let (kind, x, y) = match a.kind {
        PreferenceKind::Sigmoid { label_smoothing, margin } => (0, label_smoothing, margin),
        PreferenceKind::Hinge => (1, 0.0, 0.0),
        PreferenceKind::Ipo => (2, 0.0, 0.0),
        PreferenceKind::Robust { label_smoothing } => (3, label_smoothing, 0.0),
        PreferenceKind::Exo { label_smoothing } => (4, label_smoothing, 0.0),
        PreferenceKind::Nca => (5, 0.0, 0.0),
        PreferenceKind::Bco { reference_point } => (6, reference_point, 0.0),
        PreferenceKind::SppoHard => (7, 0.0, 0.0),
        PreferenceKind::ApoZero => (8, 0.0, 0.0),
        PreferenceKind::ApoDown => (9, 0.0, 0.0),
        PreferenceKind::Discopop { temperature } => (10, temperature, 0.0),
        PreferenceKind::Orpo => (11, 0.0, 0.0),
    };
    let (score, alpha) = match a.score {
        PreferenceScore::ReverseKl => (0, 0.0),
        PreferenceScore::JensenShannon => (1, 0.0),
        PreferenceScore::ForwardKl => (2, 0.0),
        PreferenceScore::Alpha(alpha) => (2, alpha),
    };
    let params = PreferenceParams {
        logp: [launch.column(&a.logp.chosen)?, launch.column(&a.logp.rejected)?],
        reference: both(&a.reference, |v| launch.column(v))?,
        length: both(&a.length, |v| launch.column(v))?,
        d_logp: [launch.column_out(a.dlogp.chosen)?, launch.column_out(a.dlogp.rejected)?],
        reward: match a.reward {
            Some(r) => [launch.column_out(r.chosen)?, launch.column_out(r.rejected)?],
            None => [Column::default(); 2],
        },
        terms: LossTerms::new(&mut launch, &a.weight, a.loss, a.total, &scratch)?,
        beta: a.beta,
        likelihood: a.likelihood,
        alpha,
        x,
        y,
        kind,
        score,
    };
    let grid = Grid::linear(blocks as u32, THREADS as u32);
    launch.start(&format!("preference_{}", R::DTYPE.name()), grid, &params)?;
    drop(scratch);
    launch.finish()
}

/// Both columns of an optional pair.
fn both<T>(
    pair: &Option<Pair<T>>,
    mut column: impl FnMut(&T) -> Result<Column>,
) -> Result<[Column; 2]> {
    match pair {
        Some(pair) => Ok([column(&pair.chosen)?, column(&pair.rejected)?]),
        None => Ok([Column::default(); 2]),
    }
}
