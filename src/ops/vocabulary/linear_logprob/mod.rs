//! logp = log-softmax-gather(hidden · Wᵀ) without storing the logits of all rows, and for a frozen
//! head the score vector ∂logp/∂hidden in the same pass.

pub(crate) mod cpu;
mod fused;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::Lora;
use crate::ops::support::dispatch::on_device;
use crate::ops::vocabulary::logprob::{LogitTransform, check_targets, check_vocab};
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// The head's weight `[V_alloc, H]`.
#[derive(Clone, Copy, Debug)]
pub enum Head<'a, T> {
    /// Stored in the hidden states' dtype.
    Dense(View<'a, T>),
    /// 4-bit.
    Nf4(Nf4View<'a>),
}

impl<T> Head<'_, T> {
    /// Rows (V_alloc) and columns (H).
    pub fn extents(&self) -> (usize, usize) {
        match self {
            Head::Dense(w) => (w.extent(0), w.extent(1)),
            Head::Nf4(w) => (w.n, w.k),
        }
    }
}

/// Arguments of [`linear_logprob`].
#[derive(Debug)]
pub struct LinearLogProb<'a, T> {
    /// `[T, H]` final hidden states.
    pub hidden: View<'a, T>,
    /// The head.
    pub head: Head<'a, T>,
    /// Adapters on the head; empty = none.
    pub lora: &'a [Lora<'a, T>],
    /// `[T]` token ids in `0..vocab`, or [`IGNORE`](crate::ops::logprob::IGNORE).
    pub targets: View<'a, i32>,
    /// V: rows of the head that exist.
    pub vocab: i64,
    /// From logits to z.
    pub transform: LogitTransform,
    /// `[T]` log-prob of the target.
    pub logp: ViewMut<'a, f32>,
    /// `[T]` log Σ exp(z), if wanted.
    pub lse: Option<ViewMut<'a, f32>>,
    /// `[T]` entropy in nats, if wanted.
    pub entropy: Option<ViewMut<'a, f32>>,
    /// `[T, H]` s = ∂logp/∂hidden = Σ_v (1[v = y] − q_v)·∂z_v/∂x_v·W_v, if wanted.
    pub score: Option<ViewMut<'a, T>>,
}

impl<'a, T> LinearLogProb<'a, T> {
    /// Log-probs alone, of the untransformed logits.
    pub fn new(
        hidden: View<'a, T>,
        head: Head<'a, T>,
        targets: View<'a, i32>,
        logp: ViewMut<'a, f32>,
    ) -> Self {
        LinearLogProb {
            hidden,
            lora: &[],
            targets,
            vocab: head.extents().0 as i64,
            head,
            transform: LogitTransform::default(),
            logp,
            lse: None,
            entropy: None,
            score: None,
        }
    }
}

/// logp\[t\] = z_y − log Σ_v exp(z_v) with x = hidden\[t\]·Wᵀ.
///
/// The result has the bits of [`matmul`](crate::ops::matmul()) followed by
/// [`logprob`](crate::ops::logprob()). With `score`, ∂L/∂hidden of any loss is
/// `dlogp[t]·score[t]` ([`score_scale`]): the backward pass does not touch the vocabulary.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, `vocab` outside `1..=V_alloc`, a target that is
/// neither in `0..vocab` nor ignored, or a bad transform.
///
/// # Cost
/// `2·T·H·V` flops, `4·T·H·V` with `score`. Workspace: logits of some rows at a time, see
/// [`linear_logprob_workspace`]; each such chunk reads the head once. The chunk changes no bit.
///
/// # Example
/// ```
/// use gradus::{Device, View, ops::{Head, LinearLogProb, linear_logprob}};
/// let (hidden, head, targets) = ([1f32, 0.0], [0f32; 4], vec![1]);
/// let mut logp = vec![0f32];
/// let head = Head::Dense(View::new(&head, &[2, 2])?);
/// let hidden = View::new(&hidden, &[1, 2])?;
/// linear_logprob(
///     &Device::Cpu,
///     LinearLogProb::new(hidden, head, (&targets).into(), (&mut logp).into()),
/// )?;
/// assert!((logp[0] - 0.5f32.ln()).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn linear_logprob<T: Float>(device: &Device, args: LinearLogProb<'_, T>) -> Result<()> {
    let check = Check("linear_logprob");
    let (rows, h) = check_head(check, device, &args.hidden, &args.head, args.vocab)?;
    check.shape(device, "targets", &args.targets, &[rows])?;
    check_targets(check, &args.targets, args.vocab)?;
    args.transform.check(check)?;
    check.shape(device, "logp", &args.logp, &[rows])?;
    check.opt_shape(device, "lse", &args.lse, &[rows])?;
    check.opt_shape(device, "entropy", &args.entropy, &[rows])?;
    check.opt_shape(device, "score", &args.score, &[rows, h])?;
    fused::linear_logprob(device, args)
}

/// Bytes of workspace that [`linear_logprob`] of T rows and a head of V_alloc rows takes on a GPU, or with
/// `gradients` the forward pass with `score` and [`linear_logprob_bwd`]. Given to
/// [`Gpu::reserve_workspace`](crate::device::Gpu::reserve_workspace) beforehand, no call allocates it.
///
/// Logits of up to 512 MiB, and of one row in any case, at a time; their gradients besides. (On the CPU: of up to
/// 2^22 elements.) 512 MiB are 2,048 rows of 128,256 logits in 16 bits.
///
/// # Example
/// ```
/// use gradus::ops::linear_logprob_workspace;
/// // One row of four logits in f32, in whole blocks of 256 bytes; gradients take as much again.
/// assert_eq!(linear_logprob_workspace::<f32>(1, 4, false), 256);
/// assert_eq!(linear_logprob_workspace::<f32>(1, 4, true), 512);
/// ```
pub fn linear_logprob_workspace<T: Float>(rows: usize, v_alloc: usize, gradients: bool) -> usize {
    fused::workspace_bytes::<T>(rows, v_alloc, if gradients { 2 } else { 1 })
}

/// Arguments of [`linear_logprob_bwd`].
#[derive(Debug)]
pub struct LinearLogProbBwd<'a, T> {
    /// `[T, H]` hidden states of the forward pass.
    pub hidden: View<'a, T>,
    /// The head.
    pub head: Head<'a, T>,
    /// Adapters on the head; their gradients come from [`lora_grad`](crate::ops::lora_grad()).
    pub lora: &'a [Lora<'a, T>],
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
    /// `[T, H]` gradient of the hidden states.
    pub dhidden: ViewMut<'a, T>,
    /// `[V_alloc, H]` gradient of a dense head, if wanted; added to what is there.
    pub dweight: Option<ViewMut<'a, f32>>,
}

/// Gradients of [`linear_logprob`] by recomputing the logits chunk by chunk.
///
/// # Errors
/// As [`linear_logprob`]; also `dweight` of a 4-bit head, which is frozen.
///
/// # Cost
/// `6·T·H·V` flops with `dweight`, `4·T·H·V` without. Workspace and chunks as [`linear_logprob`]; `dweight` is read
/// and written once per chunk, whose rows are summed first.
///
/// # Example
/// ```
/// use gradus::ops::{Head, LinearLogProbBwd, LogitTransform, linear_logprob_bwd};
/// use gradus::{Device, View, ViewMut};
/// let (hidden, weight, targets, dlogp) = ([1f32, 1.0], [1f32, 0.0, 0.0, 1.0], vec![0], vec![1f32]);
/// let (mut dhidden, mut dweight) = ([0f32; 2], [0f32; 4]);
/// linear_logprob_bwd(&Device::Cpu, LinearLogProbBwd {
///     hidden: View::new(&hidden, &[1, 2])?,
///     head: Head::Dense(View::new(&weight, &[2, 2])?),
///     lora: &[],
///     targets: (&targets).into(),
///     vocab: 2,
///     transform: LogitTransform::default(),
///     dlogp: (&dlogp).into(),
///     dentropy: None,
///     dhidden: ViewMut::new(&mut dhidden, &[1, 2])?,
///     dweight: Some(ViewMut::new(&mut dweight, &[2, 2])?),
/// })?;
/// let near = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6);
/// assert!(near(&dhidden, &[0.5, -0.5]) && near(&dweight, &[0.5, 0.5, -0.5, -0.5]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn linear_logprob_bwd<T: Float>(device: &Device, args: LinearLogProbBwd<'_, T>) -> Result<()> {
    let check = Check("linear_logprob_bwd");
    let (rows, h) = check_head(check, device, &args.hidden, &args.head, args.vocab)?;
    check.shape(device, "targets", &args.targets, &[rows])?;
    check_targets(check, &args.targets, args.vocab)?;
    args.transform.check(check)?;
    check.shape(device, "dlogp", &args.dlogp, &[rows])?;
    check.opt_shape(device, "dentropy", &args.dentropy, &[rows])?;
    check.shape(device, "dhidden", &args.dhidden, &[rows, h])?;
    check.opt_shape(device, "dweight", &args.dweight, &[args.head.extents().0, h])?;
    let frozen = matches!(args.head, Head::Nf4(_)) && args.dweight.is_some();
    check.that(
        !frozen,
        "dweight",
        "a gradient of a 4-bit head",
        "none: 4-bit weights are frozen",
    )?;
    fused::linear_logprob_bwd(device, args)
}

/// Arguments of [`score_scale`].
#[derive(Debug)]
pub struct ScoreScale<'a, T> {
    /// `[T, H]` score vectors of [`linear_logprob`].
    pub score: View<'a, T>,
    /// `[T]` gradient of each log-prob.
    pub dlogp: View<'a, f32>,
    /// `[T, H]` gradient of the hidden states.
    pub dhidden: ViewMut<'a, T>,
}

/// dhidden\[t\] = dlogp\[t\] · score\[t\].
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit.
///
/// # Cost
/// `2·T·H` elements moved.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{ScoreScale, score_scale}};
/// let (score, dlogp, mut dhidden) = ([1f32, 2.0], vec![3f32], [0f32; 2]);
/// score_scale(&Device::Cpu, ScoreScale {
///     score: View::new(&score, &[1, 2])?,
///     dlogp: (&dlogp).into(),
///     dhidden: ViewMut::new(&mut dhidden, &[1, 2])?,
/// })?;
/// assert_eq!(dhidden, [3.0, 6.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn score_scale<T: Float>(device: &Device, args: ScoreScale<'_, T>) -> Result<()> {
    let check = Check("score_scale");
    check.rank(device, "score", &args.score, 2)?;
    let (rows, h) = (args.score.extent(0), args.score.extent(1));
    check.shape(device, "dlogp", &args.dlogp, &[rows])?;
    check.shape(device, "dhidden", &args.dhidden, &[rows, h])?;
    on_device!(device, check, args: ScoreScale<T: Float> => cpu::score_scale, gpu::score_scale)
}

fn check_head<T: Float>(
    check: Check,
    device: &Device,
    hidden: &View<'_, T>,
    head: &Head<'_, T>,
    vocab: i64,
) -> Result<(usize, usize)> {
    check.rank(device, "hidden", hidden, 2)?;
    let (rows, h) = (hidden.extent(0), hidden.extent(1));
    let (columns, width) = head.extents();
    match head {
        Head::Dense(w) => check.rank(device, "head", w, 2)?,
        Head::Nf4(w) => w.check(check, device, "head")?,
    }
    let got = format!("{columns} x {width}");
    check.that(width == h, "head", got, &format!("{h} columns, as `hidden`"))?;
    check_vocab(check, vocab, columns)?;
    Ok((rows, h))
}
