//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) in the half-split layout
//! of GPT-NeoX and Llama: element `i` is paired with element `i + D/2`.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::decoder::copy_rows::check_table;
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
    check_heads(check, device, ("x", &args.x), &args.positions, [&args.cos, &args.sin])?;
    on_device!(device, check, args: Rope<T: Float> => cpu::rope, gpu::rope)
}

/// Where a token's key and value go.
#[derive(Debug)]
pub struct CacheRows<'a, T> {
    /// `[T, W]` values, with W = Hkv·D.
    pub v: View<'a, T>,
    /// `[T]` row of the cache for each token; -1 stores nowhere. The rows that are named must be distinct.
    pub rows: View<'a, i32>,
    /// `[S, W]` keys of the cache; rows that are not named keep their values.
    pub keys: ViewMut<'a, T>,
    /// `[S, W]` its values.
    pub values: ViewMut<'a, T>,
}

/// Arguments of [`rope_store`].
#[derive(Debug)]
pub struct RopeStore<'a, T> {
    /// `[T, Hq, D]` queries, rotated in place.
    pub q: ViewMut<'a, T>,
    /// `[T, Hkv, D]` keys, rotated in place. With a cache the heads of a token lie side by side.
    pub k: ViewMut<'a, T>,
    /// `[T]` row of the tables for each token, `0..P`.
    pub positions: View<'a, i32>,
    /// `[P, D/2]` cosines.
    pub cos: View<'a, f32>,
    /// `[P, D/2]` sines.
    pub sin: View<'a, f32>,
    /// Where rotated keys and the values go besides.
    pub cache: Option<CacheRows<'a, T>>,
}

/// [`rope`] of queries and keys, and [`copy_rows`](crate::ops::copy_rows()) of keys and values into a cache: bit for bit
/// those, in one launch on a GPU.
///
/// # Errors
/// As [`rope`] and [`copy_rows`](crate::ops::copy_rows()).
///
/// # Cost
/// `2·T·(Hq + Hkv)·D` elements, `3·T·Hkv·D` more with a cache.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{CacheRows, RopeStore, rope_store}};
/// let (mut q, mut k, v) = ([1f32, 2.0], [3f32, 4.0], [5f32, 6.0]);
/// let (mut keys, mut values) = ([0f32; 4], [0f32; 4]);
/// let half_turn = [1.0f32, -1.0]; // angles 0 and pi
/// rope_store(&Device::Cpu, RopeStore {
///     q: ViewMut::new(&mut q, &[1, 1, 2])?,
///     k: ViewMut::new(&mut k, &[1, 1, 2])?,
///     positions: View::new(&[1], &[1])?,
///     cos: View::new(&half_turn, &[2, 1])?,
///     sin: View::new(&[0.0, 0.0], &[2, 1])?,
///     cache: Some(CacheRows {
///         v: View::new(&v, &[1, 2])?,
///         rows: View::new(&[1], &[1])?,
///         keys: ViewMut::new(&mut keys, &[2, 2])?,
///         values: ViewMut::new(&mut values, &[2, 2])?,
///     }),
/// })?;
/// assert_eq!((q, k), ([-1.0, -2.0], [-3.0, -4.0]));
/// assert_eq!((keys, values), ([0.0, 0.0, -3.0, -4.0], [0.0, 0.0, 5.0, 6.0]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn rope_store<T: Float>(device: &Device, args: RopeStore<'_, T>) -> Result<()> {
    let check = Check("rope_store");
    let tables = [&args.cos, &args.sin];
    check_heads(check, device, ("q", &args.q), &args.positions, tables)?;
    check_heads(check, device, ("k", &args.k), &args.positions, tables)?;
    if let Some(cache) = &args.cache {
        let (tokens, width) = (args.k.extent(0), args.k.extent(1) * args.k.extent(2));
        let whole = args.k.extent(1) <= 1 || args.k.stride(1) == args.k.extent(2) as i64;
        let got = format!("heads {} elements apart", args.k.stride(1));
        check.that(whole, "k", got, "heads side by side, where there is a cache")?;
        check.shape(device, "cache.v", &cache.v, &[tokens, width])?;
        check.shape(device, "cache.rows", &cache.rows, &[tokens])?;
        check.rank(device, "cache.keys", &cache.keys, 2)?;
        let rows = cache.keys.extent(0);
        check.shape(device, "cache.keys", &cache.keys, &[rows, width])?;
        check.shape(device, "cache.values", &cache.values, &[rows, width])?;
        check_table(check, "cache.rows", &Some(cache.rows), rows, true)?;
        for (name, pages) in [("cache.keys", &cache.keys), ("cache.values", &cache.values)] {
            check.disjoint((name, pages), ("q", &args.q))?;
            check.disjoint((name, pages), ("k", &args.k))?;
            check.disjoint((name, pages), ("cache.v", &cache.v))?;
        }
    }
    on_device!(device, check, args: RopeStore<T: Float> => cpu::rope_store, gpu::rope_store)
}

/// Heads that the tables fit, and tokens that stand in them.
fn check_heads<T: Float>(
    check: Check,
    device: &Device,
    (name, x): (&str, &ViewMut<'_, T>),
    positions: &View<'_, i32>,
    [cos, sin]: [&View<'_, f32>; 2],
) -> Result<()> {
    check.rank(device, name, x, 3)?;
    let (tokens, d) = (x.extent(0), x.extent(2));
    check.that(d > 0 && d.is_multiple_of(2), name, format!("D = {d}"), "an even D > 0")?;
    check.shape(device, "positions", positions, &[tokens])?;
    check.rank(device, "cos", cos, 2)?;
    let rows = cos.extent(0);
    check.shape(device, "cos", cos, &[rows, d / 2])?;
    check.shape(device, "sin", sin, &[rows, d / 2])?;
    check_positions(check, positions, rows)
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
