//! One launch over packed sequences.

use bytemuck::NoUninit;

use crate::device::params::gae::THREADS;
use crate::device::{Grid, LaunchArgs};
use crate::dtype::Real;
use crate::error::Result;

/// Launches one block per sequence and brings the results back.
pub(in crate::ops::policy) fn per_sequence<R: Real>(
    launch: LaunchArgs<'_>,
    kernel: &str,
    sequences: usize,
    params: &impl NoUninit,
) -> Result<()> {
    let grid = Grid::linear(sequences as u32, THREADS as u32);
    launch.start(&format!("{kernel}_{}", R::DTYPE.name()), grid, params)?;
    launch.finish()
}
