//! Rows of a matrix gathered, scattered, or both: y\[to_rows\[i\]\] = x\[from_rows\[i\]\]. Hidden states of the
//! tokens that are scored, their gradients on the way back, keys and values into a paged cache.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc;
use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`copy_rows`].
#[derive(Debug)]
pub struct CopyRows<'a, T> {
    /// `[S, D]` rows to choose from.
    pub x: View<'a, T>,
    /// `[R]` row of `x`; -1 gives zeros. `None` takes row i, and then R = S.
    pub from_rows: Option<View<'a, i32>>,
    /// `[R]` row of `y`; -1 copies nothing. `None` writes row i, and then R = Q. The rows that are
    /// named must be distinct.
    pub to_rows: Option<View<'a, i32>>,
    /// `[Q, D]` output; rows that are not named keep their values.
    pub y: ViewMut<'a, T>,
}

impl<T: Float> CopyRows<'_, T> {
    /// R.
    pub(crate) fn rows(&self) -> usize {
        let table = self.from_rows.as_ref().or(self.to_rows.as_ref());
        table.map_or(self.x.extent(0), |table| table.extent(0))
    }
}

/// y\[to_rows\[i\]\] = x\[from_rows\[i\]\] for i in 0..R, bit for bit.
///
/// Tables in device memory are not looked at by the host: there a row of `x` that does not exist
/// is zeros, a row of `y` that does not exist is not written, and which of two rows with one target
/// stays is not defined.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a non-contiguous last dimension, an `x` and `y`
/// that share memory and, where a table is in host memory, an id below -1 or beyond the rows or a
/// target that is named twice.
///
/// # Cost
/// Reads R rows and writes R rows: `2·R·D` elements and the tables, no flops, one launch.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{CopyRows, copy_rows}};
/// let x = [1.0f32, 2.0, 3.0, 4.0];
/// let mut y = [9f32; 6];
/// copy_rows(&Device::Cpu, CopyRows {
///     x: View::new(&x, &[2, 2])?,
///     from_rows: Some(View::new(&[1, -1], &[2])?),
///     to_rows: Some(View::new(&[2, 0], &[2])?),
///     y: ViewMut::new(&mut y, &[3, 2])?,
/// })?;
/// assert_eq!(y, [0.0, 0.0, 9.0, 9.0, 3.0, 4.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn copy_rows<T: Float>(device: &Device, args: CopyRows<'_, T>) -> Result<()> {
    let check = Check("copy_rows");
    check.rank(device, "x", &args.x, 2)?;
    check.rank(device, "y", &args.y, 2)?;
    let (sources, targets) = (args.x.extent(0), args.y.extent(0));
    check.shape(device, "y", &args.y, &[targets, args.x.extent(1)])?;
    let rows = args.rows();
    check.opt_shape(device, "from_rows", &args.from_rows, &[rows])?;
    check.opt_shape(device, "to_rows", &args.to_rows, &[rows])?;
    let all = |given: bool, extent: usize| given || extent == rows;
    check.that(
        all(args.from_rows.is_some(), sources),
        "x",
        Rows(sources),
        &whole("from_rows", rows),
    )?;
    check.that(
        all(args.to_rows.is_some(), targets),
        "y",
        Rows(targets),
        &whole("to_rows", rows),
    )?;
    check_table(check, "from_rows", &args.from_rows, sources, false)?;
    check_table(check, "to_rows", &args.to_rows, targets, true)?;
    check.disjoint(("y", &args.y), ("x", &args.x))?;
    on_device!(device, check, args: CopyRows<T: Float> => cpu::copy_rows, gpu::copy_rows)
}

/// A number of rows, for messages.
struct Rows(usize);

impl std::fmt::Display for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows", self.0)
    }
}

fn whole(table: &str, rows: usize) -> String {
    format!("{rows} rows, as many as are copied, or a table `{table}`")
}

/// Ids of a table in host memory are rows or -1, and no row occurs twice if they are to be distinct.
pub(crate) fn check_table(
    check: Check,
    arg: &str,
    table: &Option<View<'_, i32>>,
    rows: usize,
    distinct: bool,
) -> Result<()> {
    let Some(table) = table.as_ref().filter(|table| table.is_host()) else { return Ok(()) };
    let mut named = alloc::or_out_of_memory(check.0, || {
        alloc::room(if distinct { table.extent(0) } else { 0 })
    })?;
    for i in 0..table.extent(0) {
        let id = table.at(i);
        if id < -1 || id as i64 >= rows as i64 {
            let expected = format!("-1 or a row, 0..{rows}");
            return check.that(false, arg, format!("{id} at index {i}"), &expected);
        }
        if distinct && id >= 0 {
            named.push(id);
        }
    }
    // Tables mostly ascend, which costs a sort one pass.
    named.sort_unstable();
    let twice = named.windows(2).find(|pair| pair[0] == pair[1]);
    let got = twice.map_or(String::new(), |pair| format!("row {} twice", pair[0]));
    check.that(twice.is_none(), arg, got, "distinct rows")
}
