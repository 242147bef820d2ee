//! Order statistics of per-token values, and the mask of the largest ones.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::policy::tokens::is_action;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Which tokens one quantile is taken over. It decides the result: a quantile per micro-batch is
/// not the quantile of the batch.
#[derive(Clone, Copy, Debug)]
pub enum QuantileScope<'a> {
    /// All tokens of the call.
    All,
    /// Each packed sequence by itself: `[B + 1]` offsets.
    PerSequence(View<'a, i64>),
}

impl QuantileScope<'_> {
    /// Checks the offsets; returns the number of quantiles.
    fn check(&self, check: &Check, device: &Device, tokens: usize) -> Result<usize> {
        match self {
            QuantileScope::All => Ok(1),
            QuantileScope::PerSequence(offsets) => {
                check.cu_seqlens(device, "scope", offsets, tokens)
            }
        }
    }
}

/// What stands at a rank between two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantileMethod {
    /// The line between them (the default of torch.quantile and numpy).
    Linear,
    /// The smaller one.
    Lower,
    /// The larger one.
    Higher,
}

/// What a NaN among the values does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNan {
    /// The op refuses.
    Error,
    /// It is left out.
    Skip,
}

/// Arguments of [`quantile`].
#[derive(Debug)]
pub struct Quantile<'a, R> {
    /// `[T]` values.
    pub x: View<'a, R>,
    /// `[T]` nonzero where a token counts; others are never read.
    pub mask: Option<View<'a, u8>>,
    /// Over what.
    pub scope: QuantileScope<'a>,
    /// In [0, 1]: 0 is the smallest element, 1 the largest.
    pub q: f64,
    /// What stands between two ranks.
    pub method: QuantileMethod,
    /// What a NaN does.
    pub on_nan: OnNan,
    /// `[1]` or, per sequence, `[B]`; NaN where nothing counts.
    pub y: ViewMut<'a, R>,
}

/// y = x at rank q·(n − 1) of the n sorted values that count. Selection, no sort; the result does
/// not depend on the order of the values.
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit or `q` outside [0, 1]; `NonFinite` for a
/// NaN under [`OnNan::Error`]; a NaN in device memory, which is not looked at before the launch, makes
/// the result NaN.
///
/// # Cost
/// `O(T)` on average and `8·T` bytes of scratch; on a GPU a pass over x for each byte of its type, and no
/// scratch.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{OnNan, Quantile, QuantileMethod, QuantileScope, quantile}};
/// let (x, mut y) = (vec![4.0f32, 1.0, 3.0, 2.0], vec![0f32]);
/// quantile(&Device::Cpu, Quantile {
///     x: (&x).into(),
///     mask: None,
///     scope: QuantileScope::All,
///     q: 0.5,
///     method: QuantileMethod::Linear,
///     on_nan: OnNan::Error,
///     y: (&mut y).into(),
/// })?;
/// assert_eq!(y, [2.5]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn quantile<R: Real>(device: &Device, args: Quantile<'_, R>) -> Result<()> {
    let check = Check("quantile");
    check.rank(device, "x", &args.x, 1)?;
    let tokens = args.x.extent(0);
    check.opt_shape(device, "mask", &args.mask, &[tokens])?;
    let outputs = args.scope.check(&check, device, tokens)?;
    check.shape(device, "y", &args.y, &[outputs])?;
    check.that((0.0..=1.0).contains(&args.q), "q", args.q, "a number in [0, 1]")?;
    let known = args.x.is_host() && args.mask.as_ref().is_none_or(|m| m.is_host());
    if known && args.on_nan == OnNan::Error {
        no_nan(&check, &args.x, |t| is_action(&args.mask, t))?;
    }
    on_device!(device, check, args: Quantile<R: Real> => cpu::quantile, gpu::quantile)
}

/// The tokens that [`top_fraction`] ranks.
#[derive(Clone, Copy, Debug)]
pub struct RankedClass<'a> {
    /// `[T]` class of each token.
    pub class_ids: View<'a, u8>,
    /// The class that is ranked; tokens of other classes are left to `others`.
    pub ranked: u8,
    /// What tokens of other classes get in the mask: true keeps them.
    pub others: bool,
}

/// Arguments of [`top_fraction`].
#[derive(Debug)]
pub struct TopFraction<'a, R> {
    /// `[T]` values, for example entropies.
    pub x: View<'a, R>,
    /// Restricts the ranking to one class; all tokens are ranked without.
    pub class: Option<RankedClass<'a>>,
    /// Over what.
    pub scope: QuantileScope<'a>,
    /// Share ρ of tokens to keep, in [0, 1].
    pub fraction: f64,
    /// `[T]` 1 where kept, else 0.
    pub keep: ViewMut<'a, u8>,
    /// `[1]` or `[B]` thresholds, if wanted; NaN where nothing is ranked.
    pub threshold: Option<ViewMut<'a, R>>,
}

/// keep_t = [x_t >= quantile(x, 1 − ρ)] over the ranked tokens: the top-entropy mask of
/// arXiv:2506.01939 (ρ = 0.2, all tokens) and of Prefix-RFT (arXiv:2507.01679; demonstration tokens
/// only). Values equal to the threshold are all kept; ρ = 0 keeps none.
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit or a `fraction` outside [0, 1];
/// `NonFinite` for a ranked NaN; one in device memory makes the threshold NaN, which keeps nothing.
///
/// # Cost
/// As [`quantile`], and one pass to write the mask.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{QuantileScope, TopFraction, top_fraction}};
/// let (entropy, mut keep) = (vec![0.1f32, 0.9, 0.5, 0.7, 0.3], vec![0u8; 5]);
/// top_fraction(&Device::Cpu, TopFraction {
///     x: (&entropy).into(),
///     class: None,
///     scope: QuantileScope::All,
///     fraction: 0.4,
///     keep: (&mut keep).into(),
///     threshold: None,
/// })?;
/// assert_eq!(keep, [0, 1, 0, 1, 0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn top_fraction<R: Real>(device: &Device, args: TopFraction<'_, R>) -> Result<()> {
    let check = Check("top_fraction");
    check.rank(device, "x", &args.x, 1)?;
    let tokens = args.x.extent(0);
    if let Some(class) = &args.class {
        check.shape(device, "class.class_ids", &class.class_ids, &[tokens])?;
    }
    let outputs = args.scope.check(&check, device, tokens)?;
    check.shape(device, "keep", &args.keep, &[tokens])?;
    check.opt_shape(device, "threshold", &args.threshold, &[outputs])?;
    let fraction = args.fraction;
    check.that((0.0..=1.0).contains(&fraction), "fraction", fraction, "a number in [0, 1]")?;
    if args.x.is_host() && args.class.as_ref().is_none_or(|c| c.class_ids.is_host()) {
        no_nan(&check, &args.x, |t| is_ranked(&args.class, t))?;
    }
    on_device!(device, check, args: TopFraction<R: Real> => cpu::top_fraction, gpu::top_fraction)
}

/// True if token `t` takes part in the ranking.
pub(crate) fn is_ranked(class: &Option<RankedClass<'_>>, t: usize) -> bool {
    class.as_ref().is_none_or(|c| c.class_ids.at(t) == c.ranked)
}

fn no_nan<R: Real>(check: &Check, x: &View<'_, R>, used: impl Fn(usize) -> bool) -> Result<()> {
    match (0..x.extent(0)).find(|&t| used(t) && x.at(t).to_f64().is_nan()) {
        Some(index) => Err(Error::NonFinite { op: check.0, arg: "x".into(), index }),
        None => Ok(()),
    }
}
