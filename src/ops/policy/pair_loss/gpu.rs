//! Pair losses on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, Scratch};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::pair_loss::{
    KtoLoss, Pair, PrdpLoss, PreferenceKind, PreferenceLoss, PreferenceScore,
};
use crate::view::{View, ViewMut};

/// Threads of a block.
const THREADS: usize = 128;

/// `LossTerms` of `kernels/policy/terms.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct LossTerms {
    pub weight: Column,
    pub loss: Column,
    pub total: u64,
    pub partial: u64,
    pub ticket: u64,
    pub count: i64,
}

impl LossTerms {
    /// The terms of a launch whose blocks leave their shares at the start of `scratch`.
    pub fn new<'a, R: Real>(
        launch: &mut LaunchArgs<'a>,
        weight: &Option<View<'_, R>>,
        loss: ViewMut<'a, R>,
        total: Option<ViewMut<'a, f64>>,
        scratch: &Scratch<'_>,
    ) -> Result<LossTerms> {
        Ok(LossTerms {
            count: loss.numel(),
            weight: launch.opt_column(weight)?,
            loss: launch.column_out(loss)?,
            total: launch.opt_output(total)?,
            partial: scratch.ptr(),
            ticket: scratch.ticket(),
        })
    }
}

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
    let mut launch = LaunchArgs::new(gpu, "pair_loss");
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
        d_logp: [launch.column_out(a.d_logp.chosen)?, launch.column_out(a.d_logp.rejected)?],
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

/// The total of nothing is 0.
pub(crate) fn no_terms(total: &mut Option<ViewMut<'_, f64>>) -> Result<()> {
    if let Some(total) = total.as_mut().filter(|total| total.is_host()) {
        total.set(0, 0.0);
    }
    Ok(())
}

/// `KtoParams` of `kernels/policy/pair_loss.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct KtoParams {
    logp: Column,
    reference: Column,
    desirable: Column,
    d_logp: Column,
    terms: LossTerms,
    beta: f64,
    kl: f64,
    desirable_weight: f64,
    undesirable_weight: f64,
}

pub(crate) fn kto_loss<R: Real>(gpu: &Arc<Gpu>, mut a: KtoLoss<'_, R>) -> Result<()> {
    let blocks = a.loss.extent(0).div_ceil(THREADS);
    if blocks == 0 {
        return no_terms(&mut a.total);
    }
    let mut launch = LaunchArgs::new(gpu, "pair_loss");
    let scratch = launch.scratch(blocks * size_of::<f64>())?;
    let params = KtoParams {
        logp: launch.column(&a.logp)?,
        reference: launch.column(&a.reference)?,
        desirable: launch.column(&a.desirable)?,
        d_logp: launch.column_out(a.d_logp)?,
        terms: LossTerms::new(&mut launch, &a.weight, a.loss, a.total, &scratch)?,
        beta: a.beta,
        kl: a.kl,
        desirable_weight: a.desirable_weight,
        undesirable_weight: a.undesirable_weight,
    };
    let grid = Grid::linear(blocks as u32, THREADS as u32);
    launch.start(&format!("kto_{}", R::DTYPE.name()), grid, &params)?;
    drop(scratch);
    launch.finish()
}

/// `PrdpParams` of `kernels/policy/pair_loss.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PrdpParams {
    logp: Column,
    old: Column,
    reference: Column,
    reward: Column,
    mask: Column,
    cu_seqlens: Column,
    d_logp: Column,
    terms: LossTerms,
    pairs: u64,
    pair_stride: i64,
    tokens: i64,
    sequences: i64,
    free_sums: u64,
    bounded_sums: u64,
    beta: f64,
    clip: f64,
}

pub(crate) fn prdp_loss<R: Real>(gpu: &Arc<Gpu>, mut a: PrdpLoss<'_, R>) -> Result<()> {
    let sequences = a.cu_seqlens.extent(0) - 1;
    if sequences == 0 {
        return no_terms(&mut a.total);
    }
    let mut launch = LaunchArgs::new(gpu, "pair_loss");
    let column = sequences * size_of::<f64>();
    let scratch = launch.scratch(2 * column)?;
    let params = PrdpParams {
        tokens: a.logp.numel(),
        logp: launch.column(&a.logp)?,
        old: launch.column(&a.old)?,
        reference: launch.column(&a.reference)?,
        reward: launch.column(&a.reward)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        d_logp: launch.column_out(a.d_logp)?,
        terms: LossTerms::new(&mut launch, &a.weight, a.loss, a.total, &scratch)?,
        pair_stride: a.pairs.stride(0),
        pairs: launch.input(&a.pairs)?,
        sequences: sequences as i64,
        free_sums: scratch.ptr(),
        bounded_sums: scratch.ptr() + column as u64,
        beta: a.beta,
        clip: a.clip,
    };
    let name = R::DTYPE.name();
    let grid = Grid::linear(sequences as u32, THREADS as u32);
    launch.start(&format!("prdp_{name}"), grid, &params)?;
    launch.start(&format!("prdp_grad_{name}"), grid, &params)?;
    drop(scratch);
    launch.finish()
}
