//! Recurrences along packed sequences and whitening on the GPU: a block a sequence; whitening takes
//! two launches, moments and result.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::gae::{DiscountedReturn, Gae, KlReward, MaskedReturn, Whiten, WhitenStats};

/// Threads of a block.
const THREADS: u32 = 256;

/// Tokens whose moments one block takes.
const CHUNK: usize = 4096;

/// `GaeParams` of `kernels/policy/gae.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GaeParams {
    reward: Column,
    value: Column,
    mask: Column,
    cu_seqlens: Column,
    bootstrap: Column,
    advantage: Column,
    returns: Column,
    tokens: i64,
    gamma: f64,
    lambda: f64,
}

pub(crate) fn gae<R: Real>(gpu: &Arc<Gpu>, a: Gae<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "gae");
    let sequences = a.cu_seqlens.extent(0) - 1;
    let params = GaeParams {
        reward: launch.column(&a.reward)?,
        value: launch.column(&a.value)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        bootstrap: launch.opt_column(&a.bootstrap)?,
        advantage: launch.column_out(a.advantage)?,
        returns: launch.column_out(a.returns)?,
        tokens: a.reward.numel(),
        gamma: a.gamma,
        lambda: a.lambda,
    };
    per_sequence::<R>(launch, "gae", sequences, &params)
}

/// `DiscountedReturnParams` of `kernels/policy/gae.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DiscountedReturnParams {
    reward: Column,
    mask: Column,
    cu_seqlens: Column,
    baseline: Column,
    returns: Column,
    tokens: i64,
    gamma: f64,
    reset: i64,
}

pub(crate) fn discounted_return<R: Real>(gpu: &Arc<Gpu>, a: DiscountedReturn<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "gae");
    let sequences = a.cu_seqlens.extent(0) - 1;
    let params = DiscountedReturnParams {
        reward: launch.column(&a.reward)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        baseline: launch.opt_column(&a.baseline)?,
        returns: launch.column_out(a.returns)?,
        tokens: a.reward.numel(),
        gamma: a.gamma,
        reset: (a.masked == MaskedReturn::Reset) as i64,
    };
    per_sequence::<R>(launch, "discounted_return", sequences, &params)
}

/// `KlRewardParams` of `kernels/policy/gae.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct KlRewardParams {
    score: Column,
    logp: Column,
    reference: Column,
    mask: Column,
    cu_seqlens: Column,
    reward: Column,
    tokens: i64,
    beta: f64,
    clamp: f64,
    estimator: i64,
}

pub(crate) fn kl_reward<R: Real>(gpu: &Arc<Gpu>, a: KlReward<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "gae");
    let sequences = a.cu_seqlens.extent(0) - 1;
    let params = KlRewardParams {
        score: launch.column(&a.score)?,
        logp: launch.column(&a.logp)?,
        reference: launch.column(&a.reference)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        reward: launch.column_out(a.reward)?,
        tokens: a.logp.numel(),
        beta: a.beta,
        clamp: a.clamp,
        estimator: a.estimator as i64,
    };
    per_sequence::<R>(launch, "kl_reward", sequences, &params)
}

/// One block a sequence, then the results go back.
fn per_sequence<R: Real>(
    launch: LaunchArgs<'_>,
    kernel: &str,
    sequences: usize,
    params: &impl Pod,
) -> Result<()> {
    let grid = Grid::linear(sequences as u32, THREADS);
    launch.start(&format!("{kernel}_{}", R::DTYPE.name()), grid, params)?;
    launch.finish()
}

/// `WhitenParams` of `kernels/policy/gae.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WhitenParams {
    x: Column,
    mask: Column,
    y: Column,
    chunks: u64,
    totals: u64,
    ticket: u64,
    tokens: i64,
    eps: f64,
    count_eps: f64,
    ddof: i64,
    eps_form: i64,
    shift_mean: i64,
}

/// Moments of a chunk of tokens: `Chunk` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Chunk {
    count: i64,
    moments: [f64; 4],
}

/// `WhitenTotals` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Totals {
    count: i64,
    low: f64,
    rise: f64,
    variance: f64,
    inverse: f64,
}

pub(crate) fn whiten<R: Real>(gpu: &Arc<Gpu>, a: Whiten<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, "gae");
    let tokens = a.x.extent(0);
    let blocks = tokens.div_ceil(CHUNK);
    let s = a.settings;
    let scratch = launch.scratch(blocks * size_of::<Chunk>() + size_of::<Totals>())?;
    let totals = scratch.ptr();
    let params = WhitenParams {
        x: launch.column(&a.x)?,
        mask: launch.opt_column(&a.mask)?,
        y: launch.column_out(a.y)?,
        chunks: totals + size_of::<Totals>() as u64,
        totals,
        ticket: scratch.ticket(),
        tokens: tokens as i64,
        eps: s.eps,
        count_eps: s.count_eps,
        ddof: s.ddof as i64,
        eps_form: s.eps_form as i64,
        shift_mean: s.shift_mean as i64,
    };
    let grid = Grid::linear(blocks as u32, THREADS);
    launch.start(&format!("whiten_moments_{}", R::DTYPE.name()), grid, &params)?;
    launch.start(&format!("whiten_{}", R::DTYPE.name()), grid, &params)?;
    // Device views may be empty: then there is nothing to fetch.
    let wanted = if a.stats.is_some() && blocks > 0 { 1 } else { 0 };
    let measured = launch.fetch::<Totals>(totals, wanted)?;
    drop(scratch);
    launch.finish()?;
    if let Some(stats) = a.stats {
        *stats = measured.first().map_or(WhitenStats::default(), |t| WhitenStats {
            count: t.count as usize,
            mean: t.low + t.rise,
            std: t.variance.sqrt(),
        });
    }
    Ok(())
}
