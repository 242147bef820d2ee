//! Off-policy weights on the GPU: one launch, two where the weights are normalised.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::offpolicy_weight::{
    OffPolicyBound, OffPolicyLevel, OffPolicyStats, OffPolicyWeight, RejectBy, RejectLevel,
};

/// Threads of a block.
const THREADS: u32 = 128;

/// Values a block sums: `Total` of the kernel.
const TOTALS: usize = 9;

/// `OffPolicyParams` of `kernels/policy/offpolicy_weight.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    old_logp: Column,
    sampler_logp: Column,
    mask: Column,
    cu_seqlens: Column,
    weight: Column,
    partial: u64,
    totals: u64,
    ticket: u64,
    tokens: i64,
    sequences: i64,
    min: f64,
    max: f64,
    clamp: f64,
    reject_lo: f64,
    reject_hi: f64,
    level: i32,
    bound: i32,
    rejects: i32,
    reject_by: i32,
    reject_level: i32,
    writes: i32,
    divides: i32,
    unused: i32,
}

pub(crate) fn offpolicy_weight<R: Real>(gpu: &Arc<Gpu>, a: OffPolicyWeight<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::OFFPOLICY_WEIGHT);
    let s = &a.settings;
    let sequences = a.cu_seqlens.extent(0) - 1;
    if sequences == 0 {
        a.stats.into_iter().for_each(|stats| *stats = statistics(&[0.0; TOTALS]));
        return launch.finish();
    }
    let scratch = launch.scratch(sequences * TOTALS * size_of::<f64>())?;
    let mut params = Params {
        old_logp: launch.column(&a.old_logp)?,
        sampler_logp: launch.column(&a.sampler_logp)?,
        mask: launch.opt_column(&a.mask)?,
        cu_seqlens: launch.column(&a.cu_seqlens)?,
        weight: launch.column_out(a.weight)?,
        partial: scratch.ptr(),
        totals: launch.values::<f64>(TOTALS)?,
        ticket: scratch.ticket(),
        tokens: a.old_logp.numel(),
        sequences: sequences as i64,
        min: s.min,
        max: s.max,
        clamp: s.clamp,
        level: match s.level {
            OffPolicyLevel::Token => 0,
            OffPolicyLevel::SequenceSum => 1,
            OffPolicyLevel::SequenceMean => 2,
        },
        bound: match s.bound {
            OffPolicyBound::Truncate => 0,
            OffPolicyBound::Mask => 1,
            OffPolicyBound::SequenceMask => 2,
        },
        writes: !s.normalize as i32,
        ..Params::zeroed()
    };
    if let Some(reject) = &s.reject {
        params.rejects = 1;
        (params.reject_lo, params.reject_hi) = (reject.lo, reject.hi);
        params.reject_by = match reject.by {
            RejectBy::K1 => 0,
            RejectBy::K2 => 1,
            RejectBy::K3 => 2,
        };
        params.reject_level = match reject.level {
            RejectLevel::Token => 0,
            RejectLevel::SequenceSum => 1,
            RejectLevel::SequenceMean => 2,
            RejectLevel::SequenceMax => 3,
        };
    }
    let kernel = format!("offpolicy_weight_{}", R::DTYPE.name());
    let grid = Grid::linear(sequences as u32, THREADS);
    launch.start(&kernel, grid, &params)?;
    if s.normalize {
        (params.writes, params.divides) = (1, 1);
        launch.start(&kernel, grid, &params)?;
    }
    drop(scratch);
    if let Some(out) = a.stats {
        *out = statistics(&launch.fetch::<f64>(params.totals, TOTALS)?);
    }
    launch.finish()
}

fn statistics(t: &[f64]) -> OffPolicyStats {
    let n = t[0].max(1.0);
    let (sum, squares) = (t[3], t[4]);
    OffPolicyStats {
        tokens: t[0] as u64,
        dropped: t[1] as u64,
        nan_sampler: t[2] as u64,
        min: if t[0] > 0.0 { t[7] } else { f64::INFINITY },
        max: if t[0] > 0.0 { t[8] } else { f64::NEG_INFINITY },
        mean: sum / n,
        ess: if squares > 0.0 { sum * sum / squares / n } else { 0.0 },
        chi2: squares / n - 1.0,
    }
}
