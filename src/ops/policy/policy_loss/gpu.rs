//! The token policy loss on the GPU: one launch, one block per sequence.

use std::sync::Arc;

use crate::device::params::policy_loss::{
    self as kernel, PolicyLossParams, THREADS, TOTALS, Total,
};
use crate::device::{Gpu, Grid, LaunchArgs, Ptr, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::policy_loss::{
    Advantage, ClipCenter, Denominator, KlEstimator, KlGradient, KlWeight, Loss, PolicyLoss,
    PolicySettings, PolicyStats, RatioLevel,
};

pub(crate) fn policy_loss<R: Real>(gpu: &Arc<Gpu>, a: PolicyLoss<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::POLICY_LOSS);
    let (tokens, sequences) = (a.logp.extent(0), a.seq_weight.extent(0));
    let (per_token, advantage) = match &a.advantage {
        Advantage::PerToken(x) => (true, x),
        Advantage::PerSequence(x) => (false, x),
    };
    let mut params = PolicyLossParams {
        logp: launch.column(&a.logp)?,
        old_logp: launch.opt_column(&a.old_logp)?,
        sampler_logp: launch.opt_column(&a.sampler_logp)?,
        ref_logp: launch.opt_column(&a.ref_logp)?,
        ref2_logp: launch.opt_column(&a.ref2_logp)?,
        token_weight: launch.opt_column(&a.token_weight)?,
        is_weight: launch.opt_column(&a.is_weight)?,
        entropy: launch.opt_column(&a.entropy)?,
        advantage: launch.column(advantage)?,
        seq_weight: launch.column(&a.seq_weight)?,
        mask: launch.opt_column(&a.mask)?,
        klass: launch.opt_column(&a.class_ids)?,
        selected: launch.opt_column(&a.selected)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        dlogp: launch.column_out(a.dlogp)?,
        dentropy: launch.column_out(a.dentropy)?,
        token_loss: launch.column_out(a.token_loss)?,
        partial: Ptr::NULL,
        totals: Ptr::NULL,
        ticket: Ptr::NULL,
        tokens: tokens as i64,
        sequences: sequences as i64,
        advantage_per_token: per_token as i64,
        s: lower(a.settings),
    };
    if sequences == 0 {
        *a.loss = 0.0;
        a.stats.into_iter().for_each(|stats| *stats = PolicyStats::default());
        return launch.finish();
    }
    let scratch = launch.scratch(sequences * TOTALS as usize * size_of::<f64>())?;
    (params.partial, params.ticket) = (scratch.ptr(), scratch.ticket());
    params.totals = launch.values(TOTALS as usize)?;
    let kernel = format!("policy_loss_{}", R::DTYPE.name());
    launch.start(&kernel, Grid::linear(sequences as u32, THREADS as u32), &params)?;
    drop(scratch);
    let totals = launch.fetch(params.totals, TOTALS as usize)?;
    *a.loss = totals[Total::Loss as usize];
    a.stats.into_iter().for_each(|stats| *stats = statistics(&totals));
    launch.finish()
}

/// The loss by its number in the kernel, and its parameters.
fn lower_loss(loss: Loss) -> (kernel::Loss, [f64; 4]) {
    match loss {
        Loss::CrossEntropy => (kernel::Loss::CrossEntropy, [0.0; 4]),
        Loss::Reinforce => (kernel::Loss::Reinforce, [0.0; 4]),
        Loss::PpoClip { lo, hi, dual } => (kernel::Loss::PpoClip, [lo, hi, dual, 0.0]),
        Loss::Cispo { lo, hi } => (kernel::Loss::Cispo, [lo, hi, 0.0, 0.0]),
        Loss::Sapo { tau_pos, tau_neg } => (kernel::Loss::Sapo, [tau_pos, tau_neg, 0.0, 0.0]),
        Loss::Vespo { pos, neg } => (kernel::Loss::Vespo, [pos.0, pos.1, neg.0, neg.1]),
        Loss::Gmpo { lo, hi } => (kernel::Loss::Gmpo, [lo, hi, 0.0, 0.0]),
        Loss::Dro { beta } => (kernel::Loss::Dro, [beta, 0.0, 0.0, 0.0]),
        Loss::DppoTv { lo, hi, cap } => (kernel::Loss::DppoTv, [lo, hi, cap, 0.0]),
        Loss::DppoKl { lo, hi, cap } => (kernel::Loss::DppoKl, [lo, hi, cap, 0.0]),
        Loss::Prime { lo, hi, kappa } => (kernel::Loss::Prime, [lo, hi, kappa, 0.0]),
        Loss::KlCov { kappa } => (kernel::Loss::KlCov, [kappa, 0.0, 0.0, 0.0]),
    }
}

/// The settings in the kernel's numbers.
fn lower(s: &PolicySettings) -> kernel::PolicySettings {
    let (loss, x) = lower_loss(s.loss);
    let mut out = kernel::PolicySettings {
        x,
        log_ratio_clamp: s.log_ratio_clamp,
        seq_log_ratio_max: s.seq_log_ratio_max,
        entropy_coef: s.entropy_coef,
        opsm: s.opsm,
        class_weight: s.class_weight,
        loss,
        ratio: match s.ratio {
            RatioLevel::Token => kernel::RatioLevel::Token,
            RatioLevel::SequenceMean => kernel::RatioLevel::SequenceMean,
            RatioLevel::SequenceMeanToken => kernel::RatioLevel::SequenceMeanToken,
            RatioLevel::SequenceSum => kernel::RatioLevel::SequenceSum,
        },
        sampler_denominator: (s.denominator == Denominator::Sampler) as i32,
        stale_center: (s.center == ClipCenter::OldOverSampler) as i32,
        class_self_ratio: s.class_self_ratio.map(u8::from),
        kl: 0,
        kl_coef: 0.0,
        kl_mix: 0.0,
        kl_clamp_in: 0.0,
        kl_clamp_out: 0.0,
        kl_estimator: kernel::KlEstimator::K1,
        kl_gradient: kernel::KlGradient::Same,
        kl_weight: kernel::KlWeight::One,
    };
    if let Some(kl) = &s.kl {
        out.kl = 1;
        (out.kl_coef, out.kl_mix) = (kl.coef, kl.mix);
        (out.kl_clamp_in, out.kl_clamp_out) = (kl.clamp_in, kl.clamp_out);
        out.kl_estimator = match kl.estimator {
            KlEstimator::K1 => kernel::KlEstimator::K1,
            KlEstimator::K2 => kernel::KlEstimator::K2,
            KlEstimator::K3 => kernel::KlEstimator::K3,
            KlEstimator::Abs => kernel::KlEstimator::Abs,
        };
        out.kl_gradient = match kl.gradient {
            KlGradient::Same => kernel::KlGradient::Same,
            KlGradient::K2 => kernel::KlGradient::K2,
            KlGradient::None => kernel::KlGradient::None,
        };
        out.kl_weight = match kl.weight {
            KlWeight::One => kernel::KlWeight::One,
            KlWeight::Ratio => kernel::KlWeight::Ratio,
            KlWeight::RatioDetached => kernel::KlWeight::RatioDetached,
        };
    }
    out
}

/// The statistics out of the kernel's totals.
fn statistics(t: &[f64]) -> PolicyStats {
    let of = |what: Total| t[what as usize];
    let count = |what: Total| of(what) as u64;
    let mut grad2_by_class = [0.0; 8];
    let first = Total::Grad2 as usize;
    grad2_by_class.copy_from_slice(&t[first..first + 8]);
    PolicyStats {
        n_tokens: count(Total::Tokens),
        n_sequences: count(Total::Sequences),
        n_empty: count(Total::Empty),
        n_clip_lo: count(Total::ClipLo),
        n_clip_hi: count(Total::ClipHi),
        n_dual: count(Total::Dual),
        n_opsm: count(Total::Opsm),
        n_nonfinite: count(Total::Nonfinite),
        sum_ratio: of(Total::Ratio),
        sum_ratio2: of(Total::Ratio2),
        sum_entropy: of(Total::Entropy),
        sum_kl: [of(Total::Kl1), of(Total::Kl2), of(Total::Kl3)],
        grad2_by_class,
        min_ratio: of(Total::MinRatio),
        max_ratio: of(Total::MaxRatio),
        max_abs_log_ratio: of(Total::MaxLogRatio),
    }
}
