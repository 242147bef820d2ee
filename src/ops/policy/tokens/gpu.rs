//! One launch over packed sequences.

use bytemuck::Pod;

use crate::device::{Grid, LaunchArgs};
use crate::dtype::Real;
use crate::error::Result;

/// Threads of a block.
const THREADS: u32 = 256;

/// Launches one block per sequence and brings the results back.
pub(in crate::ops::policy) fn per_sequence<R: Real>(
    launch: LaunchArgs<'_>,
    kernel: &str,
    sequences: usize,
    params: &impl Pod,
) -> Result<()> {
    let grid = Grid::linear(sequences as u32, THREADS);
    launch.start(&format!("{kernel}_{}", R::DTYPE.name()), grid, params)?;
    launch.finish()
}
