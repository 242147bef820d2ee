//! Group advantages on the GPU: one launch, one warp per group.

use std::sync::Arc;

use crate::device::params::group_advantage::{Baseline, GroupAdvantageParams, Scale, THREADS};
use crate::device::params::moments;
use crate::device::params::types::WARP;
use crate::device::{Gpu, Grid, LaunchArgs, Ptr, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::group_advantage::{
    EpsForm, GroupAdvantage, GroupBaseline, GroupScale, GroupStats, OnSingle,
};

pub(crate) fn group_advantage<R: Real>(gpu: &Arc<Gpu>, args: GroupAdvantage<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GROUP_ADVANTAGE);
    let s = &args.settings;
    let groups = args.offsets.extent(0) - 1;
    let params = GroupAdvantageParams {
        reward: launch.column(&args.reward)?,
        offsets: launch.column(&args.offsets)?,
        length: launch.opt_column(&args.length)?,
        stats: match args.groups {
            Some(_) => launch.values(groups)?,
            None => Ptr::NULL,
        },
        samples: args.reward.numel(),
        groups: groups as i64,
        advantage: launch.column_out(args.advantage)?,
        eps: s.eps,
        baseline: match s.baseline {
            GroupBaseline::None => Baseline::None,
            GroupBaseline::Mean => Baseline::Mean,
            GroupBaseline::LeaveOneOut => Baseline::LeaveOneOut,
            GroupBaseline::LengthWeighted => Baseline::Length,
            GroupBaseline::Max2 => Baseline::Max2,
        },
        scale: match s.scale {
            GroupScale::None => Scale::None,
            GroupScale::GroupStd => Scale::GroupStd,
            GroupScale::BatchStd => Scale::BatchStd,
            GroupScale::LooStd => Scale::LooStd,
            GroupScale::NonzeroShare => Scale::NonzeroShare,
        },
        eps_form: s.eps_form.of_kernel(),
        ddof: s.ddof as i32,
        raw_single: (s.on_single == OnSingle::Raw) as i32,
        compares: s.compares_in_group() as i32,
    };
    let grid = Grid::linear((groups as u64).div_ceil(THREADS / WARP) as u32, THREADS as u32);
    launch.start(&format!("group_advantage_{}", R::DTYPE.name()), grid, &params)?;
    let wanted = if args.groups.is_some() { groups } else { 0 };
    let stats = launch.fetch(params.stats, wanted)?;
    launch.finish()?;
    if let Some(out) = args.groups {
        out.clear();
        out.extend(stats.iter().map(|s| GroupStats {
            size: s.size as usize,
            scorable: s.scorable as usize,
            mean: s.mean,
            std: s.std,
            degenerate: s.degenerate != 0,
        }));
    }
    Ok(())
}

impl EpsForm {
    /// The kernels' number of the form.
    pub(crate) fn of_kernel(self) -> moments::EpsForm {
        match self {
            EpsForm::AddToStd => moments::EpsForm::AddToStd,
            EpsForm::AddToVariance => moments::EpsForm::AddToVariance,
            EpsForm::FloorVariance => moments::EpsForm::FloorVariance,
        }
    }
}
