//! Off-policy weights on the GPU: one launch, two where the weights are normalized.

use std::sync::Arc;

use crate::device::params::offpolicy_weight::{
    self as kernel, Bound, Level, OffPolicyParams, THREADS, TOTALS, Total,
};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::offpolicy_weight::{
    OffPolicyBound, OffPolicyLevel, OffPolicyStats, OffPolicyWeight, Reject, RejectBy, RejectLevel,
};

pub(crate) fn offpolicy_weight<R: Real>(gpu: &Arc<Gpu>, a: OffPolicyWeight<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::OFFPOLICY_WEIGHT);
    let s = &a.settings;
    let sequences = a.cu_seqlens.extent(0) - 1;
    if sequences == 0 {
        a.stats.into_iter().for_each(|stats| *stats = statistics(&[0.0; TOTALS as usize]));
        return launch.finish();
    }
    let scratch = launch.scratch(sequences * TOTALS as usize * size_of::<f64>())?;
    let mut params = OffPolicyParams {
        old_logp: launch.column(&a.old_logp)?,
        sampler_logp: launch.column(&a.sampler_logp)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        weight: launch.column_out(a.weight)?,
        partial: scratch.ptr(),
        totals: launch.values(TOTALS as usize)?,
        ticket: scratch.ticket(),
        tokens: a.old_logp.numel(),
        sequences: sequences as i64,
        min: s.min,
        max: s.max,
        clamp: s.clamp,
        level: level(s.level),
        bound: bound(s.bound),
        rejects: 0,
        reject_by: kernel::RejectBy::K1,
        reject_level: kernel::RejectLevel::Token,
        reject_lo: 0.0,
        reject_hi: 0.0,
        writes: !s.normalize as i32,
        divides: 0,
        unused: 0,
    };
    if let Some(reject) = &s.reject {
        set_reject(&mut params, reject);
    }
    let name = format!("offpolicy_weight_{}", R::DTYPE.name());
    let grid = Grid::linear(sequences as u32, THREADS as u32);
    launch.start(&name, grid, &params)?;
    if s.normalize {
        (params.writes, params.divides) = (1, 1);
        launch.start(&name, grid, &params)?;
    }
    drop(scratch);
    if let Some(out) = a.stats {
        *out = statistics(&launch.fetch(params.totals, TOTALS as usize)?);
    }
    launch.finish()
}

fn level(level: OffPolicyLevel) -> Level {
    match level {
        OffPolicyLevel::Token => Level::Token,
        OffPolicyLevel::SequenceSum => Level::SequenceSum,
        OffPolicyLevel::SequenceMean => Level::SequenceMean,
    }
}

fn bound(bound: OffPolicyBound) -> Bound {
    match bound {
        OffPolicyBound::Truncate => Bound::Truncate,
        OffPolicyBound::Mask => Bound::Mask,
        OffPolicyBound::SequenceMask => Bound::SequenceMask,
    }
}

fn set_reject<R>(params: &mut OffPolicyParams<R>, reject: &Reject) {
    params.rejects = 1;
    (params.reject_lo, params.reject_hi) = (reject.lo, reject.hi);
    params.reject_by = match reject.by {
        RejectBy::K1 => kernel::RejectBy::K1,
        RejectBy::K2 => kernel::RejectBy::K2,
        RejectBy::K3 => kernel::RejectBy::K3,
    };
    params.reject_level = match reject.level {
        RejectLevel::Token => kernel::RejectLevel::Token,
        RejectLevel::SequenceSum => kernel::RejectLevel::SequenceSum,
        RejectLevel::SequenceMean => kernel::RejectLevel::SequenceMean,
        RejectLevel::SequenceMax => kernel::RejectLevel::SequenceMax,
    };
}

fn statistics(t: &[f64]) -> OffPolicyStats {
    let of = |what: Total| t[what as usize];
    let (tokens, sum, squares) = (of(Total::Tokens), of(Total::Sum), of(Total::Squares));
    let n = tokens.max(1.0);
    OffPolicyStats {
        tokens: tokens as u64,
        dropped: of(Total::Dropped) as u64,
        nan_sampler: of(Total::Nan) as u64,
        min: if tokens > 0.0 { of(Total::Min) } else { f64::INFINITY },
        max: if tokens > 0.0 { of(Total::Max) } else { f64::NEG_INFINITY },
        mean: sum / n,
        ess: if squares > 0.0 { sum * sum / squares / n } else { 0.0 },
        chi2: squares / n - 1.0,
    }
}
