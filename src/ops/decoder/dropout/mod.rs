//! Dropout with masks that are a function of a key and of where a row stands, not of a generator's
//! state (Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting").

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::rng::philox;
use crate::view::{View, ViewMut};

/// Elements that one block of random words decides.
const QUAD: usize = 4;

/// Arguments of [`dropout`].
#[derive(Debug)]
pub struct Dropout<'a, T> {
    /// `[R, K]` input; K at most 2³².
    pub x: View<'a, T>,
    /// `[R]` the sequence that each row is of.
    pub streams: View<'a, i32>,
    /// `[R]` the place of each row in its sequence.
    pub positions: View<'a, i32>,
    /// Share of the elements that become 0, in \[0, 1).
    pub p: f64,
    /// Multiplies what stays, beside 1/(1 − p); the product of both is finite in f32.
    pub scale: f64,
    /// Names the mask. Another key, another mask.
    pub key: u64,
    /// Adds to `y`.
    pub accumulate: bool,
    /// `[R, K]` output.
    pub y: ViewMut<'a, T>,
}

/// y\[i, j\] = scale/(1 − p)·x\[i, j\] where the mask has a 1, else 0; with `accumulate` added to what is
/// there. The gradient is the same function with the same key.
///
/// The mask is keyed: it is 0 where word j mod 4 of the Philox4x32-10 block of the counter
/// (⌊j/4⌋, positions\[i\], streams\[i\], 0) is below p·2³². So a row has its mask in every batch, on every
/// device, and in the backward pass, and nothing of it needs memory. An element that is dropped is 0
/// whatever `x` is. Products and the sum are formed in f64 and rounded once.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a non-contiguous last dimension, `p` outside \[0, 1) or a
/// scale that is not finite.
///
/// # Cost
/// Reads x, writes y, and reads y to accumulate: `2·R·K` or `3·R·K` elements; a block of ten Philox rounds
/// for each four elements.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Dropout, dropout}};
/// let (x, mut y) = (vec![1f32; 1000], vec![0f32; 1000]);
/// dropout(&Device::Cpu, Dropout {
///     x: View::rows_of(&x, 100)?,
///     streams: (&[0; 10][..]).into(),
///     positions: (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9][..]).into(),
///     p: 0.5,
///     scale: 1.0,
///     key: 7,
///     accumulate: false,
///     y: ViewMut::rows_of(&mut y, 100)?,
/// })?;
/// assert!(y.iter().all(|&y| y == 0.0 || y == 2.0));
/// let kept = y.iter().filter(|&&y| y == 2.0).count();
/// assert!((400..600).contains(&kept), "{kept}");
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn dropout<T: Float>(device: &Device, args: Dropout<'_, T>) -> Result<()> {
    let check = Check("dropout");
    check.rank(device, "x", &args.x, 2)?;
    let (rows, columns) = (args.x.extent(0), args.x.extent(1));
    check.shape(device, "streams", &args.streams, &[rows])?;
    check.shape(device, "positions", &args.positions, &[rows])?;
    check.shape(device, "y", &args.y, &[rows, columns])?;
    let fits = columns as u64 <= 1 << 32;
    check.that(fits, "x", format!("{columns} columns"), "at most 2^32 columns")?;
    check.that((0.0..1.0).contains(&args.p), "p", args.p, "0 <= p < 1")?;
    let finite = (factor(args.p, args.scale) as f32).is_finite();
    check.that(finite, "scale", args.scale, "scale / (1 - p) is finite in f32")?;
    check.disjoint(("y", &args.y), ("x", &args.x))?;
    on_device!(device, check, args: Dropout<T: Float> => cpu::dropout, gpu::dropout)
}

/// What multiplies the elements that stay.
fn factor(p: f64, scale: f64) -> f64 {
    scale / (1.0 - p)
}

/// Words below this drop their element.
fn threshold(p: f64) -> u32 {
    (p * (1u64 << 32) as f64) as u32
}

/// Words of the elements `QUAD·quad` to `QUAD·quad + 3` of a row.
fn words(key: u64, stream: i32, position: i32, quad: usize) -> [u32; QUAD] {
    let key = [key as u32, (key >> 32) as u32];
    philox([quad as u32, position as u32, stream as u32, 0], key)
}
