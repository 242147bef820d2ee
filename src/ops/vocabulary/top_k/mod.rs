//! The K likeliest tokens of each row: what a teacher of top-k distillation says.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::ops::vocabulary::logprob::check_vocab;
use crate::view::{View, ViewMut};

/// Arguments of [`top_k`].
#[derive(Debug)]
pub struct TopK<'a, T> {
    /// `[T, V_alloc]` logits.
    pub logits: View<'a, T>,
    /// V: columns that exist.
    pub vocab: i64,
    /// `[T, K]` ids, rising within a row; K from 1 to V.
    pub ids: ViewMut<'a, i32>,
}

/// ids\[t\] = the K columns of the largest logits of row t, in rising order.
///
/// Of equal logits the lower ids come first. Logits are ordered as IEEE 754's totalOrder has them: −0 below
/// 0, a NaN with a clear sign bit above infinity.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit or a K outside `1..=vocab`.
///
/// # Cost
/// On the CPU one pass and a selection of expected linear time. On a GPU six passes over the row, by one
/// block; not yet measured on hardware.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{TopK, top_k}};
/// let (logits, mut ids) = ([0f32, 3.0, 1.0, 3.0, 2.0], [0i32; 3]);
/// top_k(&Device::Cpu, TopK {
///     logits: View::new(&logits, &[1, 5])?,
///     vocab: 5,
///     ids: ViewMut::new(&mut ids, &[1, 3])?,
/// })?;
/// assert_eq!(ids, [1, 3, 4]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn top_k<T: Float>(device: &Device, args: TopK<'_, T>) -> Result<()> {
    let check = Check("top_k");
    check.rank(device, "logits", &args.logits, 2)?;
    check_vocab(check, args.vocab, args.logits.extent(1))?;
    check.rank(device, "ids", &args.ids, 2)?;
    let k = args.ids.extent(1);
    check.shape(device, "ids", &args.ids, &[args.logits.extent(0), k])?;
    let expected = format!("K from 1 to vocab = {}", args.vocab);
    check.that((1..=args.vocab).contains(&(k as i64)), "ids", format!("K = {k}"), &expected)?;
    on_device!(device, check, args: TopK<T: Float> => cpu::top_k, gpu::top_k)
}
