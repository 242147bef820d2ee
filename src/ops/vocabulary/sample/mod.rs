//! Draws a token from a row of logits and reports its log-prob, the same bits as
//! [`logprob`](crate::ops::logprob()).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::support::dispatch::on_device;
use crate::ops::vocabulary::logprob::{LogitTransform, check_vocab};
use crate::view::{View, ViewMut};

/// Arguments of [`sample`].
#[derive(Debug)]
pub struct Sample<'a, T> {
    /// `[T, V_alloc]` logits.
    pub logits: View<'a, T>,
    /// V: columns that exist.
    pub vocab: i64,
    /// From stored logits to z; its temperature is the sampling temperature.
    pub transform: LogitTransform,
    /// Keeps the k largest logits; 0 = all.
    pub top_k: i64,
    /// Of those, keeps the smallest set of likeliest tokens with at least this share of their
    /// mass; in (0, 1], 1 = all.
    pub top_p: f64,
    /// Of those, keeps tokens at least `min_p` times as likely as the likeliest; in [0, 1], 0 = all.
    pub min_p: f64,
    /// Takes the likeliest token instead of drawing.
    pub greedy: bool,
    /// `[T]` uniform draws in [0, 1).
    pub uniform: View<'a, f64>,
    /// `[T]` token drawn.
    pub token: ViewMut<'a, i32>,
    /// `[T]` its log-prob over the full vocabulary.
    pub logp: ViewMut<'a, f32>,
    /// `[T]` its log-prob over the kept tokens, if wanted.
    pub logp_kept: Option<ViewMut<'a, f32>>,
    /// `[T]` share of the full vocabulary's mass that was kept, if wanted.
    pub kept_mass: Option<ViewMut<'a, f32>>,
    /// `[T]` entropy of the full vocabulary's distribution in nats, if wanted.
    pub entropy: Option<ViewMut<'a, f32>>,
}

/// token\[t\] = min { y kept : Σ_{v ≤ y, kept} p_v > uniform\[t\]·Σ_kept p }: the inverse of the
/// cumulative distribution over token ids, in f64.
///
/// Filters apply in the order top-k, top-p, min-p (the order of Hugging Face's processors), ties
/// going to the lower id. `greedy` takes the first maximum. The draw is a function of the row and
/// of its uniform number, nothing else.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, settings out of range, a uniform draw outside
/// [0, 1), or a row without a finite maximum (nothing can be drawn from it).
///
/// # Cost
/// Two passes over a row; sorting only the candidates when `top_k` or `top_p` filter.
///
/// # Example
/// ```
/// use gradus::{Device, View, ops::{LogitTransform, Sample, sample}};
/// let (logits, uniform) = ([0f32; 2], vec![0.75]);
/// let (mut token, mut logp) = (vec![0], vec![0f32]);
/// sample(&Device::Cpu, Sample {
///     logits: View::new(&logits, &[1, 2])?,
///     vocab: 2,
///     transform: LogitTransform::default(),
///     top_k: 0,
///     top_p: 1.0,
///     min_p: 0.0,
///     greedy: false,
///     uniform: (&uniform).into(),
///     token: (&mut token).into(),
///     logp: (&mut logp).into(),
///     logp_kept: None,
///     kept_mass: None,
///     entropy: None,
/// })?;
/// assert_eq!(token, [1]); // 0.75 is in the upper half of the mass
/// assert!((logp[0] - 0.5f32.ln()).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn sample<T: Float>(device: &Device, args: Sample<'_, T>) -> Result<()> {
    let check = Check("sample");
    check.rank(device, "logits", &args.logits, 2)?;
    let rows = args.logits.extent(0);
    check_vocab(check, args.vocab, args.logits.extent(1))?;
    args.transform.check(check)?;
    check.that(args.top_k >= 0, "top_k", args.top_k, "an integer >= 0 (0 = off)")?;
    check.that(args.top_p > 0.0 && args.top_p <= 1.0, "top_p", args.top_p, "a number in (0, 1]")?;
    check.that((0.0..=1.0).contains(&args.min_p), "min_p", args.min_p, "a number in [0, 1]")?;
    check.shape(device, "uniform", &args.uniform, &[rows])?;
    check.shape(device, "token", &args.token, &[rows])?;
    check.shape(device, "logp", &args.logp, &[rows])?;
    check.opt_shape(device, "logp_kept", &args.logp_kept, &[rows])?;
    check.opt_shape(device, "kept_mass", &args.kept_mass, &[rows])?;
    check.opt_shape(device, "entropy", &args.entropy, &[rows])?;
    for t in 0..if args.uniform.is_host() { rows } else { 0 } {
        let u = args.uniform.at(t);
        if !(0.0..1.0).contains(&u) {
            let got = format!("{u} at index {t}");
            return Err(Error::invalid(check.0, "uniform", got, "numbers in [0, 1)"));
        }
    }
    on_device!(device, check, args: Sample<T: Float> => cpu::sample, gpu::sample)
}

/// The error of [`sample()`] for the first row that nothing can be drawn from, if there is one. On a GPU such a row
/// gets a token below 0. A caller whose tokens stay in device memory calls this when it reads them.
///
/// # Errors
/// `InvalidArgument` if `undrawn` names a row.
///
/// # Example
/// ```
/// use gradus::ops::check_drawn;
/// let tokens = [4, -1];
/// let error = check_drawn(tokens.iter().position(|&token| token < 0)).unwrap_err();
/// assert!(error.to_string().contains("row 1"), "{error}");
/// ```
pub fn check_drawn(undrawn: Option<usize>) -> Result<()> {
    let got =
        undrawn.map_or(String::new(), |t| format!("row {t} without a finite maximum or with NaN"));
    let expected = "rows that something can be drawn from";
    Check("sample").that(undrawn.is_none(), "logits", got, expected)
}
