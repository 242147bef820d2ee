//! Preference losses on the GPU.

use std::sync::Arc;

use crate::device::params::pair_loss::{Kind, PreferenceParams, Score, THREADS};
use crate::device::params::terms::LossTerms;
use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::preference_loss::{
    Pair, PreferenceKind, PreferenceLoss, PreferenceScore,
};
use crate::ops::policy::pair_loss::terms_gpu::no_terms;

pub(crate) fn preference_loss<R: Real>(gpu: &Arc<Gpu>, mut a: PreferenceLoss<'_, R>) -> Result<()> {
    let blocks = a.loss.extent(0).div_ceil(THREADS as usize);
    if blocks == 0 {
        return no_terms(&mut a.total);
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::PAIR_LOSS);
    let scratch = launch.scratch(blocks * size_of::<f64>())?;
    let (kind, x, y) = match a.kind {
        PreferenceKind::Sigmoid { label_smoothing, margin } => {
            (Kind::Sigmoid, label_smoothing, margin)
        }
        PreferenceKind::Hinge => (Kind::Hinge, 0.0, 0.0),
        PreferenceKind::Ipo => (Kind::Ipo, 0.0, 0.0),
        PreferenceKind::Robust { label_smoothing } => (Kind::Robust, label_smoothing, 0.0),
        PreferenceKind::Exo { label_smoothing } => (Kind::Exo, label_smoothing, 0.0),
        PreferenceKind::Nca => (Kind::Nca, 0.0, 0.0),
        PreferenceKind::Bco { reference_point } => (Kind::Bco, reference_point, 0.0),
        PreferenceKind::SppoHard => (Kind::SppoHard, 0.0, 0.0),
        PreferenceKind::ApoZero => (Kind::ApoZero, 0.0, 0.0),
        PreferenceKind::ApoDown => (Kind::ApoDown, 0.0, 0.0),
        PreferenceKind::Discopop { temperature } => (Kind::Discopop, temperature, 0.0),
        PreferenceKind::Orpo => (Kind::Orpo, 0.0, 0.0),
    };
    let (score, alpha) = match a.score {
        PreferenceScore::ReverseKl => (Score::ReverseKl, 0.0),
        PreferenceScore::JensenShannon => (Score::JensenShannon, 0.0),
        PreferenceScore::ForwardKl => (Score::Alpha, 0.0),
        PreferenceScore::Alpha(alpha) => (Score::Alpha, alpha),
    };
    let params = PreferenceParams {
        logp: [launch.column(&a.logp.chosen)?, launch.column(&a.logp.rejected)?],
        reference: both(&a.reference, |v| launch.column(v))?,
        length: both(&a.length, |v| launch.column(v))?,
        d_logp: [launch.column_out(a.dlogp.chosen)?, launch.column_out(a.dlogp.rejected)?],
        reward: match a.reward {
            Some(r) => [launch.column_out(r.chosen)?, launch.column_out(r.rejected)?],
            None => [Column::NONE; 2],
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
fn both<V, T>(
    pair: &Option<Pair<V>>,
    mut column: impl FnMut(&V) -> Result<Column<T>>,
) -> Result<[Column<T>; 2]> {
    match pair {
        Some(pair) => Ok([column(&pair.chosen)?, column(&pair.rejected)?]),
        None => Ok([Column::NONE; 2]),
    }
}
