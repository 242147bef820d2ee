//! Token embedding: a row of the table for each token id, and its gradient.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`embedding`].
#[derive(Debug)]
pub struct Embedding<'a, T> {
    /// `[T]` token ids, `0..V`.
    pub ids: View<'a, i32>,
    /// `[V, D]` table.
    pub table: View<'a, T>,
    /// `[T, D]` output.
    pub y: ViewMut<'a, T>,
}

/// y\[t\] = table\[ids\[t\]\].
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a non-contiguous last dimension or an id outside
/// the table.
///
/// # Cost
/// Reads T rows and writes T rows: `2·T·D` elements, no flops.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Embedding, embedding}};
/// let table = [0.0f32, 1.0, 10.0, 11.0, 20.0, 21.0];
/// let mut y = [0f32; 4];
/// embedding(&Device::Cpu, Embedding {
///     ids: View::new(&[2, 0], &[2])?,
///     table: View::new(&table, &[3, 2])?,
///     y: ViewMut::new(&mut y, &[2, 2])?,
/// })?;
/// assert_eq!(y, [20.0, 21.0, 0.0, 1.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn embedding<T: Float>(device: &Device, args: Embedding<'_, T>) -> Result<()> {
    let check = Check("embedding");
    check.rank(device, "ids", &args.ids, 1)?;
    check.rank(device, "table", &args.table, 2)?;
    check.shape(device, "y", &args.y, &[args.ids.extent(0), args.table.extent(1)])?;
    check_ids(&check, &args.ids, args.table.extent(0))?;
    on_device!(device, check, args: Embedding<T: Float> => cpu::embedding, gpu::embedding)
}

/// Arguments of [`embedding_bwd`].
#[derive(Debug)]
pub struct EmbeddingBwd<'a, T> {
    /// `[T]` token ids, `0..V`.
    pub ids: View<'a, i32>,
    /// `[T, D]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[V, D]` gradient of the table; added to what is there.
    pub dtable: ViewMut<'a, f32>,
}

/// dtable\[v\] += Σ_{t: ids\[t\] = v} dy\[t\], each sum in f64 in the order of t and rounded once. Rows
/// whose id does not occur are not touched.
///
/// # Errors
/// As [`embedding`].
///
/// # Cost
/// Reads dy, reads and writes the rows that occur: at most `3·T·D` elements, `T·D` flops; a sort
/// of T ids and `16·T` bytes of workspace.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{EmbeddingBwd, embedding_bwd}};
/// let (dy, mut dtable) = ([1f32, 10.0, 3.0], [0f32; 3]);
/// embedding_bwd(&Device::Cpu, EmbeddingBwd {
///     ids: View::new(&[2, 0, 2], &[3])?,
///     dy: View::new(&dy, &[3, 1])?,
///     dtable: ViewMut::new(&mut dtable, &[3, 1])?,
/// })?;
/// assert_eq!(dtable, [10.0, 0.0, 4.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn embedding_bwd<T: Float>(device: &Device, args: EmbeddingBwd<'_, T>) -> Result<()> {
    let check = Check("embedding_bwd");
    check.rank(device, "ids", &args.ids, 1)?;
    check.rank(device, "dtable", &args.dtable, 2)?;
    check.shape(device, "dy", &args.dy, &[args.ids.extent(0), args.dtable.extent(1)])?;
    check_ids(&check, &args.ids, args.dtable.extent(0))?;
    on_device!(device, check, args: EmbeddingBwd<T: Float> => cpu::embedding_bwd, gpu::embedding_bwd)
}

fn check_ids(check: &Check, ids: &View<'_, i32>, rows: usize) -> Result<()> {
    if !ids.is_host() {
        return Ok(());
    }
    for t in 0..ids.extent(0) {
        let id = ids.at(t);
        if id < 0 || id as usize >= rows {
            let expected = format!("a row of the table, 0..{rows}");
            check.that(false, "ids", format!("{id} at index {t}"), &expected)?;
        }
    }
    Ok(())
}
