//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) in the half-split layout
//! of GPT-NeoX and Llama: element `i` is paired with element `i + D/2`.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`rope`].
#[derive(Debug)]
pub struct Rope<'a, T> {
    /// `[T, H, D]` queries or keys, rotated in place; `D` is even.
    pub x: ViewMut<'a, T>,
    /// `[T]` row of the tables for each token, `0..P`.
    pub positions: View<'a, i32>,
    /// `[P, D/2]` cosines.
    pub cos: View<'a, f32>,
    /// `[P, D/2]` sines.
    pub sin: View<'a, f32>,
    /// Rotates by the negative angle: the inverse, which is also the transpose and so the
    /// gradient of the forward rotation.
    pub inverse: bool,
}

/// (x_i, x_{i+D/2}) ← (x_i·c − x_{i+D/2}·s, x_{i+D/2}·c + x_i·s) with c, s = cos, sin\[positions\[t\], i\].
///
/// Products and the sum are formed in f64 and rounded once.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, an odd `D`, a non-contiguous last dimension or a
/// position outside the tables.
///
/// # Cost
/// Reads and writes x: `2·T·H·D` elements, `3·T·H·D` flops; the table rows stay in cache.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Rope, rope}};
/// let mut x = [1.0f32, 2.0];
/// rope(&Device::Cpu, Rope {
///     x: ViewMut::new(&mut x, &[1, 1, 2])?,
///     positions: View::new(&[1], &[1])?,
///     cos: View::new(&[1.0, 0.0], &[2, 1])?, // angles 0 and pi/2
///     sin: View::new(&[0.0, 1.0], &[2, 1])?,
///     inverse: false,
/// })?;
/// assert_eq!(x, [-2.0, 1.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn rope<T: Float>(device: &Device, args: Rope<'_, T>) -> Result<()> {
    let check = Check("rope");
    check.rank(device, "x", &args.x, 3)?;
    let (tokens, d) = (args.x.extent(0), args.x.extent(2));
    check.that(d > 0 && d.is_multiple_of(2), "x", format!("D = {d}"), "an even D > 0")?;
    check.shape(device, "positions", &args.positions, &[tokens])?;
    check.rank(device, "cos", &args.cos, 2)?;
    let rows = args.cos.extent(0);
    check.shape(device, "cos", &args.cos, &[rows, d / 2])?;
    check.shape(device, "sin", &args.sin, &[rows, d / 2])?;
    check_positions(check, &args.positions, rows)?;
    on_device!(device, check, args: Rope<T: Float> => cpu::rope, gpu::rope)
}

/// Every token stands at a row of the tables. Positions in device memory cannot be looked at without
/// waiting for the device: the kernel leaves tokens outside the tables as they are.
fn check_positions(check: Check, positions: &View<'_, i32>, rows: usize) -> Result<()> {
    if !positions.is_host() {
        return Ok(());
    }
    for t in 0..positions.extent(0) {
        let position = positions.at(t);
        if position < 0 || position as usize >= rows {
            let expected = format!("a row of `cos` and `sin`, 0..{rows}");
            check.that(false, "positions", format!("{position} at index {t}"), &expected)?;
        }
    }
    Ok(())
}
