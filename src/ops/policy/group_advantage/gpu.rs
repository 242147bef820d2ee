//! Group advantages on the GPU: one launch, a warp a group.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::group_advantage::{
    EpsForm, GroupAdvantage, GroupBaseline, GroupScale, GroupStats, OnSingle,
};

/// Groups of a block.
const GROUPS: u64 = 4;

/// `GroupAdvantageParams` of `kernels/policy/group_advantage.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    reward: Column,
    offsets: Column,
    length: Column,
    advantage: Column,
    stats: u64,
    samples: i64,
    groups: i64,
    eps: f64,
    baseline: i32,
    scale: i32,
    eps_form: i32,
    ddof: i32,
    raw_single: i32,
    compares: i32,
}

/// `GroupStats` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Stats {
    size: i64,
    scorable: i64,
    mean: f64,
    std: f64,
    degenerate: i64,
}

pub(crate) fn group_advantage<R: Real>(gpu: &Arc<Gpu>, args: GroupAdvantage<'_, R>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::GROUP_ADVANTAGE);
    let s = &args.settings;
    let groups = args.offsets.extent(0) - 1;
    let params = Params {
        reward: launch.column(&args.reward)?,
        offsets: launch.column(&args.offsets)?,
        length: launch.opt_column(&args.length)?,
        stats: match args.groups {
            Some(_) => launch.values::<Stats>(groups)?,
            None => 0,
        },
        samples: args.reward.numel(),
        groups: groups as i64,
        advantage: launch.column_out(args.advantage)?,
        eps: s.eps,
        baseline: match s.baseline {
            GroupBaseline::None => 0,
            GroupBaseline::Mean => 1,
            GroupBaseline::LeaveOneOut => 2,
            GroupBaseline::LengthWeighted => 3,
            GroupBaseline::Max2 => 4,
        },
        scale: match s.scale {
            GroupScale::None => 0,
            GroupScale::GroupStd => 1,
            GroupScale::BatchStd => 2,
            GroupScale::LooStd => 3,
            GroupScale::NonzeroShare => 4,
        },
        eps_form: match s.eps_form {
            EpsForm::AddToStd => 0,
            EpsForm::AddToVariance => 1,
            EpsForm::FloorVariance => 2,
        },
        ddof: s.ddof as i32,
        raw_single: (s.on_single == OnSingle::Raw) as i32,
        compares: s.compares_in_group() as i32,
    };
    let grid = Grid::linear((groups as u64).div_ceil(GROUPS) as u32, 32 * GROUPS as u32);
    launch.start(&format!("group_advantage_{}", R::DTYPE.name()), grid, &params)?;
    let wanted = if args.groups.is_some() { groups } else { 0 };
    let stats = launch.fetch::<Stats>(params.stats, wanted)?;
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
