//! Deltas on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::delta::{CHUNK, DeltaApplyParams, DeltaParams, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Element;
use crate::error::Result;
use crate::ops::optim::delta::{DeltaApply, DeltaEncode};
use crate::view::View;

/// Number of elements whose bits differ.
pub(crate) fn delta_count<T: Element>(
    gpu: &Arc<Gpu>,
    old: View<'_, T>,
    new: View<'_, T>,
) -> Result<usize> {
    let mut launch = LaunchArgs::new(gpu, &shipped::DELTA);
    let mut params = operands(&mut launch, &old, &new)?;
    count(&mut launch, &mut params, bits::<T>())
}

/// Encodes, or returns the number of changes if there is no room for them.
pub(crate) fn delta_encode<T: Element>(
    gpu: &Arc<Gpu>,
    a: DeltaEncode<'_, T>,
) -> Result<std::result::Result<(), usize>> {
    let mut launch = LaunchArgs::new(gpu, &shipped::DELTA);
    let capacity = a.index.extent(0);
    let mut params = operands(&mut launch, &a.old_value, &a.new_value)?;
    let changes = count(&mut launch, &mut params, bits::<T>())?;
    if changes > capacity {
        return Ok(Err(changes));
    }
    // What lies behind the changes keeps its content.
    params.index = launch.update(a.index)?;
    params.value = launch.update(a.value)?.untyped_mut();
    params.capacity = capacity as i64;
    if changes > 0 {
        let kernel = format!("delta_encode_b{}", bits::<T>());
        launch.start(&kernel, chunks(params.n), &params)?;
    }
    launch.finish()?;
    *a.count = changes;
    Ok(Ok(()))
}

fn bits<T>() -> usize {
    8 * size_of::<T>()
}

fn chunks(n: i64) -> Grid {
    Grid::linear((n as u64).div_ceil(CHUNK) as u32, THREADS as u32)
}

fn operands<T: Element>(
    launch: &mut LaunchArgs<'_>,
    old: &View<'_, T>,
    new: &View<'_, T>,
) -> Result<DeltaParams> {
    let (old, now, n) = (launch.input(old)?.untyped(), launch.input(new)?.untyped(), old.numel());
    Ok(DeltaParams { old, now, n, ..DeltaParams::zeroed() })
}

/// Counts the changes before each chunk and all of them.
fn count(launch: &mut LaunchArgs<'_>, params: &mut DeltaParams, bits: usize) -> Result<usize> {
    let grid = chunks(params.n);
    if params.n == 0 {
        return Ok(0);
    }
    let count = grid.blocks[0] as usize;
    params.before = launch.values::<i64>(count + 1)?;
    let scratch = launch.scratch(1)?;
    params.ticket = scratch.ticket();
    launch.start(&format!("delta_count_b{bits}"), grid, params)?;
    drop(scratch);
    let total = params.before.byte_add(count * size_of::<i64>());
    Ok(launch.fetch(total, 1)?[0] as usize)
}

pub(crate) fn delta_apply<T: Element>(gpu: &Arc<Gpu>, a: DeltaApply<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::DELTA);
    let params = DeltaApplyParams {
        index: launch.input(&a.index)?,
        value: launch.input(&a.value)?.untyped(),
        n: a.target.numel(),
        target: launch.update(a.target)?.untyped_mut(),
        count: a.index.numel(),
    };
    let blocks = (params.count as u64).div_ceil(THREADS) as u32;
    launch.start(
        &format!("delta_apply_b{}", bits::<T>()),
        Grid::linear(blocks, THREADS as u32),
        &params,
    )?;
    launch.finish()
}
