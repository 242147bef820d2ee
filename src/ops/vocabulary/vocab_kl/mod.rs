//! Divergences between two distributions over the whole vocabulary, row by row.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::ops::vocabulary::logprob::{LogitTransform, check_vocab};
use crate::view::{View, ViewMut};

/// Which divergence between the policy q and the reference p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(p‖q) = Σ p·(log p − log q): the policy covers the reference.
    ForwardKl,
    /// KL(q‖p) = Σ q·(log q − log p): the policy seeks modes of the reference.
    ReverseKl,
    /// β·KL(p‖m) + (1 − β)·KL(q‖m), m = β·p + (1 − β)·q (Agarwal et al. 2024, GKD,
    /// arXiv:2306.13649, eq. 1). β in (0, 1).
    Jsd {
        /// Weight of the reference.
        beta: f64,
    },
    /// ½·Σ |p − q|.
    TotalVariation,
}

/// A second reference row for guidance: the teacher's logits are u + γ·(c − u), c being the
/// reference and u this one (classifier-free guidance; Ho & Salimans 2022, arXiv:2207.12598).
#[derive(Clone, Copy, Debug)]
pub struct Guidance<'a, T> {
    /// `[T, V_alloc]` unconditional logits u.
    pub logits: View<'a, T>,
    /// γ: 1 = the reference itself, 0 = u.
    pub gamma: f64,
}

/// Arguments of [`vocab_kl`].
#[derive(Debug)]
pub struct VocabKl<'a, T> {
    /// `[T, V_alloc]` logits of the policy q.
    pub policy: View<'a, T>,
    /// `[T, V_alloc]` logits of the reference p.
    pub reference: View<'a, T>,
    /// Second reference row, if guided.
    pub guidance: Option<Guidance<'a, T>>,
    /// V: columns that exist.
    pub vocab: i64,
    /// From stored logits to z, for policy and reference alike.
    pub transform: LogitTransform,
    /// The divergence.
    pub divergence: Divergence,
    /// `[T]` value of each row in nats (total variation: in [0, 1]).
    pub value: ViewMut<'a, f32>,
}

/// value\[t\] = D(policy\[t\], reference\[t\]) with D as \[`Divergence`\] says.
///
/// Rows are computed in f64. Equal logits give exactly 0; KL and JSD are never negative. Tokens of
/// probability 0 under the weighting distribution add nothing; a token that the other one cannot
/// produce makes a KL infinite.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, β outside (0, 1), γ that is not finite, or a bad
/// transform.
///
/// # Cost
/// Reads both rows; two exponentials per column (three for JSD).
///
/// # Example
/// ```
/// use gradus::{Device, View, ops::{Divergence, LogitTransform, VocabKl, vocab_kl}};
/// // Reference p = (3/4, 1/4), policy q = (1/2, 1/2).
/// let (policy, reference, mut value) = ([0f32; 2], [3f32.ln(), 0.0], vec![0f32]);
/// vocab_kl(&Device::Cpu, VocabKl {
///     policy: View::new(&policy, &[1, 2])?,
///     reference: View::new(&reference, &[1, 2])?,
///     guidance: None,
///     vocab: 2,
///     transform: LogitTransform::default(),
///     divergence: Divergence::ForwardKl,
///     value: (&mut value).into(),
/// })?;
/// let want = 0.75 * 1.5f32.ln() + 0.25 * 0.5f32.ln();
/// assert!((value[0] - want).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn vocab_kl<T: Float>(device: &Device, args: VocabKl<'_, T>) -> Result<()> {
    let check = Check("vocab_kl");
    let rows = check_pair(
        check,
        device,
        (&args.policy, &args.reference, &args.guidance),
        args.vocab,
        &args.transform,
        args.divergence,
    )?;
    check.shape(device, "value", &args.value, &[rows])?;
    on_device!(device, check, args: VocabKl<T: Float> => cpu::vocab_kl, gpu::vocab_kl)
}

/// Arguments of [`vocab_kl_bwd`].
#[derive(Debug)]
pub struct VocabKlBwd<'a, T> {
    /// `[T, V_alloc]` logits of the policy.
    pub policy: View<'a, T>,
    /// `[T, V_alloc]` logits of the reference; no gradient flows into it.
    pub reference: View<'a, T>,
    /// Second reference row of the forward pass.
    pub guidance: Option<Guidance<'a, T>>,
    /// V of the forward pass.
    pub vocab: i64,
    /// Transform of the forward pass.
    pub transform: LogitTransform,
    /// Divergence of the forward pass.
    pub divergence: Divergence,
    /// `[T]` gradient of each value.
    pub dvalue: View<'a, f32>,
    /// `[T, V_alloc]` gradient of the policy's logits; columns from V on are set to 0.
    pub dpolicy: ViewMut<'a, T>,
}

/// Gradient with respect to the policy's logits z:
/// forward KL q − p; reverse KL q·(log q − log p − KL); JSD (1 − β)·q·(log q − log m − KL(q‖m));
/// total variation q·(½·sgn(q − p) − Σ q·½·sgn(q − p)); each times dvalue·∂z/∂x.
///
/// # Errors
/// As [`vocab_kl`].
///
/// # Cost
/// Reads both rows, writes one.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Divergence, LogitTransform, VocabKlBwd, vocab_kl_bwd}};
/// // Reference p = (3/4, 1/4), policy q = (1/2, 1/2): the gradient is q - p.
/// let (policy, reference) = ([0f32; 2], [3f32.ln(), 0.0]);
/// let (dvalue, mut dpolicy) = (vec![1f32], [0f32; 2]);
/// vocab_kl_bwd(&Device::Cpu, VocabKlBwd {
///     policy: View::new(&policy, &[1, 2])?,
///     reference: View::new(&reference, &[1, 2])?,
///     guidance: None,
///     vocab: 2,
///     transform: LogitTransform::default(),
///     divergence: Divergence::ForwardKl,
///     dvalue: (&dvalue).into(),
///     dpolicy: ViewMut::new(&mut dpolicy, &[1, 2])?,
/// })?;
/// assert!((dpolicy[0] + 0.25).abs() < 1e-6 && (dpolicy[1] - 0.25).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn vocab_kl_bwd<T: Float>(device: &Device, args: VocabKlBwd<'_, T>) -> Result<()> {
    let check = Check("vocab_kl_bwd");
    let rows = check_pair(
        check,
        device,
        (&args.policy, &args.reference, &args.guidance),
        args.vocab,
        &args.transform,
        args.divergence,
    )?;
    check.shape(device, "dvalue", &args.dvalue, &[rows])?;
    check.shape(device, "dpolicy", &args.dpolicy, &[rows, args.policy.extent(1)])?;
    on_device!(device, check, args: VocabKlBwd<T: Float> => cpu::vocab_kl_bwd, gpu::vocab_kl_bwd)
}

fn check_pair<T: Float>(
    check: Check,
    device: &Device,
    (policy, reference, guidance): (&View<'_, T>, &View<'_, T>, &Option<Guidance<'_, T>>),
    vocab: i64,
    transform: &LogitTransform,
    divergence: Divergence,
) -> Result<usize> {
    check.rank(device, "policy", policy, 2)?;
    let shape = [policy.extent(0), policy.extent(1)];
    check.shape(device, "reference", reference, &shape)?;
    if let Some(guidance) = guidance {
        check.shape(device, "guidance.logits", &guidance.logits, &shape)?;
        let gamma = guidance.gamma;
        check.factor("guidance.gamma", gamma)?;
    }
    check_vocab(check, vocab, shape[1])?;
    transform.check(check)?;
    if let Divergence::Jsd { beta } = divergence {
        let ok = beta > 0.0 && beta < 1.0;
        check.that(ok, "divergence.beta", beta, "a number in (0, 1); the ends are the two KLs")?;
    }
    Ok(shape[0])
}
