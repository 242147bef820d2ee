//! Rows gathered and scattered on the GPU.

use std::sync::Arc;

use crate::device::params::copy_rows::{CopyRowsParams, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::CopyRows;

pub(crate) fn copy_rows<T: Float>(gpu: &Arc<Gpu>, a: CopyRows<'_, T>) -> Result<()> {
    let (rows, columns) = (a.rows(), a.x.extent(1));
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let lanes = lanes(&a);
    let mut launch = LaunchArgs::new(gpu, &shipped::COPY_ROWS);
    let params = CopyRowsParams {
        x: launch.input(&a.x)?,
        from: launch.opt_column(&a.from_rows)?,
        to: launch.opt_column(&a.to_rows)?,
        rows: rows as i64,
        x_rows: a.x.extent(0) as i64,
        y_rows: a.y.extent(0) as i64,
        columns: columns as i64,
        x_stride: a.x.stride(0),
        y_stride: a.y.stride(0),
        // Rows that are not named keep their values.
        y: launch.update(a.y)?,
        shift: lanes.trailing_zeros() as i64,
    };
    let blocks = rows.div_ceil(THREADS as usize / lanes);
    let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32);
    let Some(blocks) = blocks else {
        return Err(Error::invalid(
            "copy_rows",
            "to_rows",
            format!("{rows} rows"),
            "fewer on a GPU",
        ));
    };
    let kernel = format!("copy_rows_b{}", 8 * size_of::<T>());
    launch.start(&kernel, Grid::linear(blocks, THREADS as u32), &params)?;
    launch.finish()
}

/// Lanes that copy a row: one for every four moves, of 16 bytes where rows start at multiples of 16
/// bytes, of an element where not.
fn lanes<T: Float>(a: &CopyRows<'_, T>) -> usize {
    let size = size_of::<T>();
    let aligned = |at: usize, stride: i64| {
        at.is_multiple_of(16) && (stride as usize * size).is_multiple_of(16)
    };
    // Operands of host memory are staged at aligned addresses.
    let at = |host: bool, at: usize| if host { 0 } else { at };
    let whole = aligned(at(a.x.is_host(), a.x.as_ptr() as usize), a.x.stride(0))
        && aligned(at(a.y.is_host(), a.y.as_ptr() as usize), a.y.stride(0));
    let step = if whole { 16 / size } else { 1 };
    a.x.extent(1).div_ceil(4 * step).next_power_of_two().min(THREADS as usize)
}
