//! Reductions of packed per-token values to one value per sequence, and the way back.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::tokens::Tokens;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// How the tokens of a sequence become one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqReduction {
    /// Sum; 0 without tokens.
    Sum,
    /// Mean; 0 without tokens.
    Mean,
    /// Largest; −infinity without tokens, NaN if a token is NaN.
    Max,
    /// Smallest; infinity without tokens, NaN if a token is NaN.
    Min,
}

/// Arguments of [`seq_reduce`].
#[derive(Debug)]
pub struct SeqReduce<'a, R> {
    /// `[T]` values.
    pub x: View<'a, R>,
    /// `[T]` nonzero where a token counts; others are never read.
    pub mask: Option<View<'a, u8>>,
    /// `[B + 1]` offsets of the packed sequences; empty ones are legal.
    pub cu_seqlens: View<'a, i64>,
    /// Sum, mean, max or min.
    pub reduction: SeqReduction,
    /// `[B]` output.
    pub y: ViewMut<'a, R>,
    /// `[B]` number of tokens that counted, if wanted.
    pub count: Option<ViewMut<'a, i64>>,
}

/// y_i = Σ_t x_t (or mean, max, min) over the tokens of sequence i, in f64 in token order: the same
/// bits alone and in any batch.
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit.
///
/// # Cost
/// Reads `T` elements once.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{SeqReduce, SeqReduction, seq_reduce}};
/// let (logp, cu_seqlens) = (vec![-1.0f32, -2.0, -4.0], vec![0i64, 2, 2, 3]);
/// let mut sums = vec![0f32; 3];
/// seq_reduce(&Device::Cpu, SeqReduce {
///     x: (&logp).into(),
///     mask: None,
///     cu_seqlens: (&cu_seqlens).into(),
///     reduction: SeqReduction::Sum,
///     y: (&mut sums).into(),
///     count: None,
/// })?;
/// assert_eq!(sums, [-3.0, 0.0, -4.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn seq_reduce<R: Real>(device: &Device, args: SeqReduce<'_, R>) -> Result<()> {
    let check = Check("seq_reduce");
    let tokens = Tokens::of(&check, device, "x", &args.x, &args.mask, &args.cu_seqlens)?;
    check.shape(device, "y", &args.y, &[tokens.sequences])?;
    check.opt_shape(device, "count", &args.count, &[tokens.sequences])?;
    on_device!(device, check, args: SeqReduce<R: Real> => cpu::seq_reduce, gpu::seq_reduce)
}

/// Arguments of [`seq_broadcast`].
#[derive(Debug)]
pub struct SeqBroadcast<'a, R> {
    /// `[B]` values.
    pub x: View<'a, R>,
    /// `[T]` nonzero where a token counts; others get 0.
    pub mask: Option<View<'a, u8>>,
    /// `[B + 1]` offsets of the packed sequences.
    pub cu_seqlens: View<'a, i64>,
    /// Divide by the number of tokens that count.
    pub mean: bool,
    /// `[T]` output.
    pub y: ViewMut<'a, R>,
}

/// y_t = x_i (or x_i / N_i) on the tokens of sequence i: an advantage on its tokens, and the
/// gradient of [`seq_reduce`]'s sum (or mean).
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit.
///
/// # Cost
/// Writes `T` elements.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{SeqBroadcast, seq_broadcast}};
/// let (x, cu_seqlens, mut y) = (vec![2f32, -1.0], vec![0i64, 2, 3], vec![0f32; 3]);
/// seq_broadcast(&Device::Cpu, SeqBroadcast {
///     x: (&x).into(),
///     mask: None,
///     cu_seqlens: (&cu_seqlens).into(),
///     mean: false,
///     y: (&mut y).into(),
/// })?;
/// assert_eq!(y, [2.0, 2.0, -1.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn seq_broadcast<R: Real>(device: &Device, args: SeqBroadcast<'_, R>) -> Result<()> {
    let check = Check("seq_broadcast");
    let (y, mask) = (args.y.as_view(), &args.mask);
    let tokens = Tokens::of(&check, device, "y", &y, mask, &args.cu_seqlens)?;
    check.shape(device, "x", &args.x, &[tokens.sequences])?;
    on_device!(device, check, args: SeqBroadcast<R: Real> => cpu::seq_broadcast, gpu::seq_broadcast)
}
