//! The token policy loss on the GPU: one launch, a block a sequence.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::policy_loss::{
    Advantage, ClipCenter, Denominator, KlEstimator, KlGradient, KlWeight, Loss, PolicyLoss,
    PolicySettings, PolicyStats, RatioLevel,
};

/// Threads of a block.
const THREADS: u32 = 128;

/// Values a block sums: `Total` of the kernel.
const TOTALS: usize = 26;

/// `PolicyLossParams` of `kernels/policy/policy_loss.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    inputs: [Column; 14],
    outputs: [Column; 3],
    partial: u64,
    totals: u64,
    ticket: u64,
    tokens: i64,
    sequences: i64,
    advantage_per_token: i64,
    settings: Settings,
}

/// `PolicySettings` of `kernels/policy/policy_terms.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Settings {
    x: [f64; 4],
    log_ratio_clamp: f64,
    seq_log_ratio_max: f64,
    entropy_coef: f64,
    opsm: f64,
    kl_coef: f64,
    kl_clamp_in: f64,
    kl_clamp_out: f64,
    kl_mix: f64,
    class_weight: [f64; 8],
    loss: i32,
    ratio: i32,
    sampler_denominator: i32,
    stale_center: i32,
    kl: i32,
    kl_estimator: i32,
    kl_gradient: i32,
    kl_weight: i32,
    class_self_ratio: [u8; 8],
}

pub(crate) fn policy_loss<R: Real>(gpu: &Arc<Gpu>, a: PolicyLoss<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::POLICY_LOSS);
    let (tokens, sequences) = (a.logp.extent(0), a.seq_weight.extent(0));
    let (per_token, advantage) = match &a.advantage {
        Advantage::PerToken(x) => (true, x),
        Advantage::PerSequence(x) => (false, x),
    };
    let inputs = [
        launch.column(&a.logp)?,
        launch.opt_column(&a.old_logp)?,
        launch.opt_column(&a.sampler_logp)?,
        launch.opt_column(&a.ref_logp)?,
        launch.opt_column(&a.ref2_logp)?,
        launch.opt_column(&a.token_weight)?,
        launch.opt_column(&a.is_weight)?,
        launch.opt_column(&a.entropy)?,
        launch.column(advantage)?,
        launch.column(&a.seq_weight)?,
        launch.opt_column(&a.mask)?,
        launch.opt_column(&a.class_ids)?,
        launch.opt_column(&a.selected)?,
        launch.column(&a.cu_seqlens)?,
    ];
    let outputs = [
        launch.column_out(a.dlogp)?,
        launch.column_out(a.dentropy)?,
        launch.column_out(a.token_loss)?,
    ];
    if sequences == 0 {
        *a.loss = 0.0;
        a.stats.into_iter().for_each(|stats| *stats = PolicyStats::default());
        return launch.finish();
    }
    let scratch = launch.scratch(sequences * TOTALS * size_of::<f64>())?;
    let params = Params {
        inputs,
        outputs,
        partial: scratch.ptr(),
        totals: launch.values::<f64>(TOTALS)?,
        ticket: scratch.ticket(),
        tokens: tokens as i64,
        sequences: sequences as i64,
        advantage_per_token: per_token as i64,
        settings: lower(a.settings),
    };
    let kernel = format!("policy_loss_{}", R::DTYPE.name());
    launch.start(&kernel, Grid::linear(sequences as u32, THREADS), &params)?;
    drop(scratch);
    let totals = launch.fetch::<f64>(params.totals, TOTALS)?;
    *a.loss = totals[0];
    a.stats.into_iter().for_each(|stats| *stats = statistics(&totals));
    launch.finish()
}

/// The settings in the kernel's numbers.
fn lower(s: &PolicySettings) -> Settings {
    let (loss, x) = match s.loss {
        Loss::CrossEntropy => (0, [0.0; 4]),
        Loss::Reinforce => (1, [0.0; 4]),
        Loss::PpoClip { lo, hi, dual } => (2, [lo, hi, dual, 0.0]),
        Loss::Cispo { lo, hi } => (3, [lo, hi, 0.0, 0.0]),
        Loss::Sapo { tau_pos, tau_neg } => (4, [tau_pos, tau_neg, 0.0, 0.0]),
        Loss::Vespo { pos, neg } => (5, [pos.0, pos.1, neg.0, neg.1]),
        Loss::Gmpo { lo, hi } => (6, [lo, hi, 0.0, 0.0]),
        Loss::Dro { beta } => (7, [beta, 0.0, 0.0, 0.0]),
        Loss::DppoTv { lo, hi, cap } => (8, [lo, hi, cap, 0.0]),
        Loss::DppoKl { lo, hi, cap } => (9, [lo, hi, cap, 0.0]),
        Loss::Prime { lo, hi, kappa } => (10, [lo, hi, kappa, 0.0]),
        Loss::KlCov { kappa } => (11, [kappa, 0.0, 0.0, 0.0]),
    };
    let mut out = Settings {
        x,
        log_ratio_clamp: s.log_ratio_clamp,
        seq_log_ratio_max: s.seq_log_ratio_max,
        entropy_coef: s.entropy_coef,
        opsm: s.opsm,
        class_weight: s.class_weight,
        loss,
        ratio: match s.ratio {
            RatioLevel::Token => 0,
            RatioLevel::SequenceMean => 1,
            RatioLevel::SequenceMeanToken => 2,
            RatioLevel::SequenceSum => 3,
        },
        sampler_denominator: (s.denominator == Denominator::Sampler) as i32,
        stale_center: (s.center == ClipCenter::OldOverSampler) as i32,
        class_self_ratio: s.class_self_ratio.map(u8::from),
        ..Settings::zeroed()
    };
    if let Some(kl) = &s.kl {
        out.kl = 1;
        (out.kl_coef, out.kl_mix) = (kl.coef, kl.mix);
        (out.kl_clamp_in, out.kl_clamp_out) = (kl.clamp_in, kl.clamp_out);
        out.kl_estimator = match kl.estimator {
            KlEstimator::K1 => 0,
            KlEstimator::K2 => 1,
            KlEstimator::K3 => 2,
            KlEstimator::Abs => 3,
        };
        out.kl_gradient = match kl.gradient {
            KlGradient::Same => 0,
            KlGradient::K2 => 1,
            KlGradient::None => 2,
        };
        out.kl_weight = match kl.weight {
            KlWeight::One => 0,
            KlWeight::Ratio => 1,
            KlWeight::RatioDetached => 2,
        };
    }
    out
}

/// The statistics out of the kernel's totals.
fn statistics(t: &[f64]) -> PolicyStats {
    let count = |i: usize| t[i] as u64;
    let mut grad2_by_class = [0.0; 8];
    grad2_by_class.copy_from_slice(&t[15..23]);
    PolicyStats {
        n_tokens: count(1),
        n_sequences: count(2),
        n_empty: count(3),
        n_clip_lo: count(4),
        n_clip_hi: count(5),
        n_dual: count(6),
        n_opsm: count(7),
        n_nonfinite: count(8),
        sum_ratio: t[9],
        sum_ratio2: t[10],
        sum_entropy: t[11],
        sum_kl: [t[12], t[13], t[14]],
        grad2_by_class,
        min_ratio: t[23],
        max_ratio: t[24],
        max_abs_log_ratio: t[25],
    }
}
