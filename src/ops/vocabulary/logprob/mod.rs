//! log π(y) = z_y − log Σ_v exp(z_v) with z = cap·tanh(scale·x / cap) / temperature: the fused
//! log-softmax-gather, its statistics and its gradient, one row at a time and never a row of
//! probabilities in memory.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::{Check, LARGEST};
use crate::device::Device;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Target id of a row that is left out: it is not read, its outputs and gradients are 0.
pub const IGNORE: i32 = -100;

/// How stored logits x become the z of the softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitTransform {
    /// Divides; > 0. 1 leaves the logits alone.
    pub temperature: f64,
    /// Multiplies before everything else; finite, not 0 (Cohere, Granite). 1 = off.
    pub scale: f64,
    /// cap·tanh(·/cap) (Gemma 2); > 0, infinity = off.
    pub softcap: f64,
}

impl Default for LogitTransform {
    fn default() -> LogitTransform {
        LogitTransform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY }
    }
}

impl LogitTransform {
    pub(crate) fn check(&self, check: Check) -> Result<()> {
        // Factors that leave a finite logit finite in f32, and some of its digits above 0.
        const FITS: std::ops::RangeInclusive<f64> = 1.0 / LARGEST..=LARGEST;
        let (scale, temperature) = (self.scale, self.temperature);
        let expected = "a number whose magnitude is 1e-18 to 1e18";
        check.that(FITS.contains(&scale.abs()), "transform.scale", scale, expected)?;
        let fits = FITS.contains(&temperature) && FITS.contains(&(scale / temperature).abs());
        let expected = "a number > 0, it and |scale| / temperature within 1e-18 to 1e18";
        check.that(fits, "transform.temperature", temperature, expected)?;
        let fits = self.softcap == f64::INFINITY || FITS.contains(&self.softcap);
        let expected = "a number within 1e-18 to 1e18, or infinity (off)";
        check.that(fits, "transform.softcap", self.softcap, expected)
    }
}

/// Arguments of [`logprob`].
#[derive(Debug)]
pub struct LogProb<'a, T> {
    /// `[T, V_alloc]` logits.
    pub logits: View<'a, T>,
    /// `[T]` token ids in `0..vocab`, or [`IGNORE`].
    pub targets: View<'a, i32>,
    /// V: columns that exist. Columns behind it are padding of the head and are never read.
    pub vocab: i64,
    /// From stored logits to z.
    pub transform: LogitTransform,
    /// `[T]` log-prob of the target.
    pub logp: ViewMut<'a, f32>,
    /// `[T]` log Σ exp(z), if wanted.
    pub lse: Option<ViewMut<'a, f32>>,
    /// `[T]` entropy −Σ p·log p in nats, if wanted.
    pub entropy: Option<ViewMut<'a, f32>>,
    /// `[T]` log Σ p², if wanted.
    pub log_sum_sq: Option<ViewMut<'a, f32>>,
    /// `[T]` 1 where the target is the row's first maximum, if wanted.
    pub top1: Option<ViewMut<'a, u8>>,
}

impl<'a, T> LogProb<'a, T> {
    /// Log-probs alone, of the untransformed logits.
    pub fn new(logits: View<'a, T>, targets: View<'a, i32>, logp: ViewMut<'a, f32>) -> Self {
        LogProb {
            vocab: logits.extent(1) as i64,
            logits,
            targets,
            transform: LogitTransform::default(),
            logp,
            lse: None,
            entropy: None,
            log_sum_sq: None,
            top1: None,
        }
    }
}

/// logp\[t\] = z\[t, targets\[t\]\] − log Σ_v exp(z\[t, v\]).
///
/// Outputs are within 4 ulp (f32, at the size of max(|logp|, |lse|)) of the f64 result. A row's
/// outputs depend on that row alone, bit for bit. Logits of −∞ are tokens that cannot occur; a row
/// of nothing else has lse −∞, logp −∞ and entropy 0. A NaN or +∞ logit makes its own row NaN.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, `vocab` outside `1..=V_alloc`, a target that is
/// neither in `0..vocab` nor [`IGNORE`], or a bad transform.
///
/// # Cost
/// Reads the logits twice, the second time from cache; one exponential per logit.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{LogProb, logprob}};
/// let (logits, targets, mut logp) = ([0.0f32, 0.0, 1.0, 3.0], [0i32, 1], [0f32; 2]);
/// let args = LogProb::new(
///     View::new(&logits, &[2, 2])?,
///     View::from(&targets[..]),
///     ViewMut::from(&mut logp[..]),
/// );
/// logprob(&Device::Cpu, args)?;
/// assert_eq!(logp, [-0.6931472, -0.12692802]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn logprob<T: Float>(device: &Device, args: LogProb<'_, T>) -> Result<()> {
    let check = Check("logprob");
    let rows = check_rows(check, device, &args.logits, &args.targets, args.vocab, &args.transform)?;
    check.shape(device, "logp", &args.logp, &[rows])?;
    check.opt_shape(device, "lse", &args.lse, &[rows])?;
    check.opt_shape(device, "entropy", &args.entropy, &[rows])?;
    check.opt_shape(device, "log_sum_sq", &args.log_sum_sq, &[rows])?;
    check.opt_shape(device, "top1", &args.top1, &[rows])?;
    on_device!(device, check, args: LogProb<T: Float> => cpu::logprob, gpu::logprob)
}

/// Arguments of [`logprob_bwd`].
#[derive(Debug)]
pub struct LogProbBwd<'a, T> {
    /// `[T, V_alloc]` logits of the forward pass.
    pub logits: View<'a, T>,
    /// `[T]` targets of the forward pass.
    pub targets: View<'a, i32>,
    /// V of the forward pass.
    pub vocab: i64,
    /// Transform of the forward pass.
    pub transform: LogitTransform,
    /// `[T]` gradient of each log-prob.
    pub dlogp: View<'a, f32>,
    /// `[T]` gradient of each entropy, if any.
    pub dentropy: Option<View<'a, f32>>,
    /// `[T]` gradient of each lse, if any (z-loss λ·lse²: pass 2λ·lse).
    pub dlse: Option<View<'a, f32>>,
    /// `[T, V_alloc]` gradient of the logits; columns from V on are set to 0.
    pub dlogits: ViewMut<'a, T>,
}

impl<'a, T> LogProbBwd<'a, T> {
    /// Gradient of log-probs of untransformed logits.
    pub fn new(
        logits: View<'a, T>,
        targets: View<'a, i32>,
        dlogp: View<'a, f32>,
        dlogits: ViewMut<'a, T>,
    ) -> Self {
        LogProbBwd {
            vocab: logits.extent(1) as i64,
            logits,
            targets,
            transform: LogitTransform::default(),
            dlogp,
            dentropy: None,
            dlse: None,
            dlogits,
        }
    }
}

/// dx_v = [g·1[v = y] + q_v·(g_lse − g + g_H·(E − z_v))]·∂z/∂x, q = softmax(z), E = Σ q·z.
///
/// One pass serves log-prob, entropy and lse together. The normalizer is recomputed in f64, so the
/// gradient is not limited by the rounding of a stored lse. Rows with target [`IGNORE`] get 0.
///
/// # Errors
/// As [`logprob`].
///
/// # Cost
/// Reads the logits (twice from cache), writes as many gradients; two exponentials per logit.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{LogProbBwd, logprob_bwd}};
/// let (logits, targets, dlogp, mut dlogits) = ([0f32; 2], vec![0], vec![1f32], [0f32; 2]);
/// logprob_bwd(&Device::Cpu, LogProbBwd::new(
///     View::new(&logits, &[1, 2])?,
///     (&targets).into(),
///     (&dlogp).into(),
///     ViewMut::new(&mut dlogits, &[1, 2])?,
/// ))?;
/// assert!((dlogits[0] - 0.5).abs() < 1e-6 && (dlogits[1] + 0.5).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn logprob_bwd<T: Float>(device: &Device, args: LogProbBwd<'_, T>) -> Result<()> {
    let check = Check("logprob_bwd");
    let rows = check_rows(check, device, &args.logits, &args.targets, args.vocab, &args.transform)?;
    check.shape(device, "dlogp", &args.dlogp, &[rows])?;
    check.opt_shape(device, "dentropy", &args.dentropy, &[rows])?;
    check.opt_shape(device, "dlse", &args.dlse, &[rows])?;
    check.shape(device, "dlogits", &args.dlogits, &[rows, args.logits.extent(1)])?;
    on_device!(device, check, args: LogProbBwd<T: Float> => cpu::logprob_bwd, gpu::logprob_bwd)
}

/// Arguments of [`logprob_fused`].
#[derive(Debug)]
pub struct LogProbFused<'a, T> {
    /// `[T, V_alloc]` logits on entry, their gradient on return; columns from V on become 0.
    pub logits: ViewMut<'a, T>,
    /// `[T]` token ids in `0..vocab`, or [`IGNORE`].
    pub targets: View<'a, i32>,
    /// V: columns that exist.
    pub vocab: i64,
    /// From stored logits to z.
    pub transform: LogitTransform,
    /// `[T]` gradient of each log-prob, known beforehand: supervised training, or a first
    /// on-policy update, where it is minus the weighted advantage.
    pub dlogp: View<'a, f32>,
    /// `[T]` log-prob of the target.
    pub logp: ViewMut<'a, f32>,
    /// `[T]` entropy in nats, if wanted.
    pub entropy: Option<ViewMut<'a, f32>>,
}

/// [`logprob`] and [`logprob_bwd`] in one call that overwrites the logits by their gradient, with
/// the bits of the two.
///
/// # Errors
/// As [`logprob`].
///
/// # Cost
/// Reads and writes each row once; a row is held in a buffer meanwhile.
///
/// # Example
/// ```
/// use gradus::{Device, ViewMut, ops::{LogProbFused, LogitTransform, logprob_fused}};
/// let (mut logits, targets, dlogp, mut logp) = ([0f32; 2], vec![0], vec![1f32], vec![0f32]);
/// logprob_fused(&Device::Cpu, LogProbFused {
///     logits: ViewMut::new(&mut logits, &[1, 2])?,
///     targets: (&targets).into(),
///     vocab: 2,
///     transform: LogitTransform::default(),
///     dlogp: (&dlogp).into(),
///     logp: (&mut logp).into(),
///     entropy: None,
/// })?;
/// assert!((logp[0] - 0.5f32.ln()).abs() < 1e-6);
/// assert!((logits[0] - 0.5).abs() < 1e-6 && (logits[1] + 0.5).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn logprob_fused<T: Float>(device: &Device, args: LogProbFused<'_, T>) -> Result<()> {
    let check = Check("logprob_fused");
    let logits = args.logits.as_view();
    let rows = check_rows(check, device, &logits, &args.targets, args.vocab, &args.transform)?;
    check.shape(device, "dlogp", &args.dlogp, &[rows])?;
    check.shape(device, "logp", &args.logp, &[rows])?;
    check.opt_shape(device, "entropy", &args.entropy, &[rows])?;
    on_device!(device, check, args: LogProbFused<T: Float> => cpu::logprob_fused, gpu::logprob_fused)
}

/// The checks all row ops share; returns the number of rows.
pub(crate) fn check_rows<T>(
    check: Check,
    device: &Device,
    logits: &View<'_, T>,
    targets: &View<'_, i32>,
    vocab: i64,
    transform: &LogitTransform,
) -> Result<usize> {
    check.rank(device, "logits", logits, 2)?;
    let rows = logits.extent(0);
    check.shape(device, "targets", targets, &[rows])?;
    check_vocab(check, vocab, logits.extent(1))?;
    transform.check(check)?;
    check_targets(check, targets, vocab)?;
    Ok(rows)
}

/// `vocab` is in `1..=columns`.
pub(crate) fn check_vocab(check: Check, vocab: i64, columns: usize) -> Result<()> {
    let ok = vocab >= 1 && vocab as u64 <= columns as u64;
    check.that(ok, "vocab", vocab, &format!("1..={columns}"))
}

/// Every target is in `0..vocab` or [`IGNORE`]. Targets in device memory are the kernel's to check.
pub(crate) fn check_targets(check: Check, targets: &View<'_, i32>, vocab: i64) -> Result<()> {
    if !targets.is_host() {
        return Ok(());
    }
    for t in 0..targets.extent(0) {
        let target = targets.at(t);
        if target != IGNORE && !(0..vocab).contains(&(target as i64)) {
            let got = format!("{target} at index {t}");
            let expected = format!("0..{vocab} or {IGNORE} (ignored)");
            return Err(Error::invalid(check.0, "targets", got, expected));
        }
    }
    Ok(())
}
