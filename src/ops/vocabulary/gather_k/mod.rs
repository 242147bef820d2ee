//! Log-probs of K tokens per row, over the full vocabulary or renormalized over the K.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc;
use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::support::dispatch::on_device;
use crate::ops::vocabulary::logprob::{IGNORE, LogitTransform, check_vocab};
use crate::view::{View, ViewMut};

/// Arguments of [`gather_k`].
#[derive(Debug)]
pub struct GatherK<'a, T> {
    /// `[T, V_alloc]` logits.
    pub logits: View<'a, T>,
    /// `[T, K]` token ids, different within a row; [`IGNORE`] leaves an entry out.
    pub ids: View<'a, i32>,
    /// V: columns that exist.
    pub vocab: i64,
    /// From stored logits to z.
    pub transform: LogitTransform,
    /// Normalize over the row's ids alone: the distribution a top-k or top-p sampler drew from.
    pub renormalize: bool,
    /// `[T, K]` log-probs; 0 for entries left out.
    pub logp: ViewMut<'a, f32>,
    /// `[T]` share of the full vocabulary's mass that the row's ids hold, if wanted.
    pub mass: Option<ViewMut<'a, f32>>,
}

/// logp[t, k] = z[t, ids[t, k]] − lse, lse over the full vocabulary or over the row's ids.
///
/// Without `renormalize` an entry has the bits that [`logprob`](crate::ops::logprob()) gives for
/// the same token.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, an id that is neither in `0..vocab` nor
/// [`IGNORE`], an id that a row names twice, or a bad transform.
///
/// # Cost
/// One pass over the logits, one exponential each; without reading the rest of the row when
/// renormalized and `mass` is not wanted.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{GatherK, LogitTransform, gather_k}};
/// let (logits, ids, mut logp) = ([0f32; 4], [1, 3], [0f32; 2]);
/// let mut mass = vec![0f32];
/// gather_k(&Device::Cpu, GatherK {
///     logits: View::new(&logits, &[1, 4])?,
///     ids: View::new(&ids, &[1, 2])?,
///     vocab: 4,
///     transform: LogitTransform::default(),
///     renormalize: true,
///     logp: ViewMut::new(&mut logp, &[1, 2])?,
///     mass: Some((&mut mass).into()),
/// })?;
/// assert!(logp.iter().all(|&l| (l - 0.5f32.ln()).abs() < 1e-6));
/// assert!((mass[0] - 0.5).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn gather_k<T: Float>(device: &Device, args: GatherK<'_, T>) -> Result<()> {
    let check = Check("gather_k");
    let (rows, k) = check_ids(check, device, &args.logits, &args.ids, args.vocab)?;
    args.transform.check(check)?;
    check.shape(device, "logp", &args.logp, &[rows, k])?;
    check.opt_shape(device, "mass", &args.mass, &[rows])?;
    on_device!(device, check, args: GatherK<T: Float> => cpu::gather_k, gpu::gather_k)
}

/// Arguments of [`gather_k_bwd`].
#[derive(Debug)]
pub struct GatherKBwd<'a, T> {
    /// `[T, V_alloc]` logits of the forward pass.
    pub logits: View<'a, T>,
    /// `[T, K]` ids of the forward pass.
    pub ids: View<'a, i32>,
    /// V of the forward pass.
    pub vocab: i64,
    /// Transform of the forward pass.
    pub transform: LogitTransform,
    /// Normalization of the forward pass.
    pub renormalize: bool,
    /// `[T, K]` gradient of each log-prob; entries left out are not read.
    pub dlogp: View<'a, f32>,
    /// `[T, V_alloc]` gradient of the logits; columns from V on are set to 0.
    pub dlogits: ViewMut<'a, T>,
}

/// dx_v = [Σ_k g_k·1[v = id_k] − q_v·Σ_k g_k]·∂z/∂x, q the softmax over the full vocabulary or over
/// the row's ids.
///
/// # Errors
/// As [`gather_k`].
///
/// # Cost
/// Reads the logits, writes as many gradients.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{GatherKBwd, LogitTransform, gather_k_bwd}};
/// let (logits, ids, dlogp, mut dlogits) = ([0f32; 4], [1, 3], [1f32, 0.0], [0f32; 4]);
/// gather_k_bwd(&Device::Cpu, GatherKBwd {
///     logits: View::new(&logits, &[1, 4])?,
///     ids: View::new(&ids, &[1, 2])?,
///     vocab: 4,
///     transform: LogitTransform::default(),
///     renormalize: true,
///     dlogp: View::new(&dlogp, &[1, 2])?,
///     dlogits: ViewMut::new(&mut dlogits, &[1, 4])?,
/// })?;
/// assert!(dlogits.iter().zip([0.0, 0.5, 0.0, -0.5]).all(|(d, want)| (d - want).abs() < 1e-6));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn gather_k_bwd<T: Float>(device: &Device, args: GatherKBwd<'_, T>) -> Result<()> {
    let check = Check("gather_k_bwd");
    let (rows, k) = check_ids(check, device, &args.logits, &args.ids, args.vocab)?;
    args.transform.check(check)?;
    check.shape(device, "dlogp", &args.dlogp, &[rows, k])?;
    check.shape(device, "dlogits", &args.dlogits, &[rows, args.logits.extent(1)])?;
    on_device!(device, check, args: GatherKBwd<T: Float> => cpu::gather_k_bwd, gpu::gather_k_bwd)
}

fn check_ids<T>(
    check: Check,
    device: &Device,
    logits: &View<'_, T>,
    ids: &View<'_, i32>,
    vocab: i64,
) -> Result<(usize, usize)> {
    check.rank(device, "logits", logits, 2)?;
    check.rank(device, "ids", ids, 2)?;
    let (rows, k) = (logits.extent(0), ids.extent(1));
    check.shape(device, "ids", ids, &[rows, k])?;
    check_vocab(check, vocab, logits.extent(1))?;
    if !ids.is_host() {
        return Ok((rows, k));
    }
    let mut sorted = alloc::or_out_of_memory(check.0, || alloc::room(k))?;
    for t in 0..rows {
        sorted.clear();
        sorted.extend(ids.row(t).iter().filter(|&&id| id != IGNORE));
        sorted.sort_unstable();
        let outside = sorted.iter().find(|&&&id| !(0..vocab).contains(&(id as i64)));
        if let Some(id) = outside {
            let expected = format!("0..{vocab} or {IGNORE} (ignored)");
            return Err(Error::invalid(check.0, "ids", format!("{id} in row {t}"), expected));
        }
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let got = format!("{} twice in row {t}", twice[0]);
            return Err(Error::invalid(check.0, "ids", got, "different ids within a row"));
        }
    }
    Ok((rows, k))
}
