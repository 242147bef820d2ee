//! AdamW over many tensors in one call (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2),
//! with 32-bit state or with 8-bit block-wise state (Dettmers et al. 2022, arXiv:2110.02861).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc;
use crate::check::{Check, Operand};
use crate::device::Device;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{View, ViewMut};

/// Elements per block of the 8-bit state.
pub(crate) const STATE_BLOCK: usize = 256;

/// When the weight decay acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecayOrder {
    /// Decay, then step (torch): p ← p·(1 − lr·λ) − lr·u.
    Before,
    /// Step, then decay (bitsandbytes on CUDA): p ← (p − lr·u)·(1 − lr·λ).
    After,
}

/// Settings of [`adamw`] and [`adamw_8bit`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Learning rate, >= 0.
    pub lr: f64,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment; > 0 in f32.
    pub eps: f64,
    /// Decoupled weight decay λ, >= 0.
    pub weight_decay: f64,
    /// Number of this step, the first being 1.
    pub step: u64,
    /// When the weight decay acts.
    pub decay: DecayOrder,
    /// Every gradient is multiplied by this, >= 0: the clip coefficient.
    pub grad_scale: f64,
}

impl Default for AdamWSettings {
    fn default() -> AdamWSettings {
        AdamWSettings {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: 1,
            decay: DecayOrder::Before,
            grad_scale: 1.0,
        }
    }
}

/// What [`adamw`] and [`adamw_8bit`] report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdamWOutcome {
    /// Tensor and flat element of the first gradient that is NaN or infinite, or whose scaled
    /// square is not finite in f32. If there is one, nothing was written.
    pub non_finite: Option<(usize, usize)>,
    /// Elements the step acted on (not masked out).
    pub updated: u64,
    /// Of these, elements whose f32 value is the same as before.
    pub unchanged: u64,
    /// Elements whose f32 value changed but whose bf16 rounding did not: a bf16 copy of the
    /// parameter absorbs the update.
    pub absorbed_bf16: u64,
}

/// One parameter of [`adamw`]. All views have one shape, of any rank, and are contiguous.
#[derive(Debug)]
pub struct AdamWTensor<'a> {
    /// Parameter, updated.
    pub param: ViewMut<'a, f32>,
    /// Gradient.
    pub grad: View<'a, f32>,
    /// First moment, updated; zeros before the first step.
    pub m: ViewMut<'a, f32>,
    /// Second moment, updated; zeros before the first step.
    pub v: ViewMut<'a, f32>,
    /// Elements with a 0 are skipped: neither read for the finiteness check nor written.
    pub mask: Option<View<'a, u8>>,
}

/// Arguments of [`adamw`].
#[derive(Debug)]
pub struct AdamW<'a> {
    /// Parameters with gradients and state.
    pub tensors: Vec<AdamWTensor<'a>>,
    /// Settings.
    pub settings: AdamWSettings,
    /// Written in any case.
    pub outcome: &'a mut AdamWOutcome,
}

/// m ← β1·m + (1 − β1)·g; v ← β2·v + (1 − β2)·g²; u = m̂ / (√v̂ + ε) with m̂ = m / (1 − β1ᵗ),
/// v̂ = v / (1 − β2ᵗ); p ← p·(1 − lr·λ) − lr·u.
///
/// In f32, element by element, with constants computed in f64 and rounded once (`·` and `√` round,
/// `fma` rounds once): g = grad_scale·grad; m = fma(β1, m, (1−β1)·g); v = fma(β2, v, ((1−β2)·g)·g);
/// q = m / fma(√v, 1/√(1−β2ᵗ), ε); s = lr/(1−β1ᵗ); p = p − fma(s, q, (lr·λ)·p), or with
/// [`DecayOrder::After`] p = p − fma(s, q, (lr·λ)·fma(−s, q, p)). The parameter itself is rounded
/// once.
///
/// A gradient that is not finite is an outcome, not an error: nothing is written and
/// [`AdamWOutcome::non_finite`] names it.
///
/// # Errors
/// `InvalidArgument` for shapes that differ, views with gaps, or settings out of range. The values
/// of `param`, `m` and `v` are not looked at: NaN there stays NaN.
///
/// # Cost
/// Reads the gradient twice, reads and writes three f32 per element: 32 bytes, 13 flops.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{AdamW, AdamWOutcome, AdamWSettings, AdamWTensor, adamw}};
/// let (mut param, grad) = (vec![1f32, 2.0], vec![0.5f32, -0.5]);
/// let (mut m, mut v) = (vec![0f32; 2], vec![0f32; 2]);
/// let mut outcome = AdamWOutcome::default();
/// adamw(&Device::Cpu, AdamW {
///     tensors: vec![AdamWTensor {
///         param: (&mut param).into(),
///         grad: (&grad).into(),
///         m: (&mut m).into(),
///         v: (&mut v).into(),
///         mask: None,
///     }],
///     settings: AdamWSettings { lr: 0.25, ..AdamWSettings::default() },
///     outcome: &mut outcome,
/// })?;
/// assert_eq!(outcome.non_finite, None);
/// assert!((param[0] - 0.75).abs() < 1e-6 && (param[1] - 2.25).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn adamw(device: &Device, args: AdamW<'_>) -> Result<()> {
    let check = Check("adamw");
    check_settings(check, &args.settings)?;
    for (i, t) in args.tensors.iter().enumerate() {
        let shape = param_shape(check, device, i, &t.param)?;
        same(check, device, i, "grad", &t.grad, &shape)?;
        same(check, device, i, "m", &t.m, &shape)?;
        same(check, device, i, "v", &t.v, &shape)?;
        if let Some(mask) = &t.mask {
            same(check, device, i, "mask", mask, &shape)?;
        }
        check.disjoint(("param", &t.param), ("grad", &t.grad))?;
        check.disjoint(("m", &t.m), ("grad", &t.grad))?;
        check.disjoint(("v", &t.v), ("grad", &t.grad))?;
        check.disjoint(("m", &t.m), ("param", &t.param))?;
        check.disjoint(("v", &t.v), ("param", &t.param))?;
        check.disjoint(("v", &t.v), ("m", &t.m))?;
    }
    match device {
        Device::Cpu => alloc::or_out_of_memory(check.0, || cpu::adamw(args))?,
        Device::Gpu(gpu) => gpu::adamw(gpu, args)?,
    }
    Ok(())
}

/// One parameter of [`adamw_8bit`]. `param`, `grad`, `m`, `v` and `mask` have one shape, of any
/// rank, and are contiguous; blocks of 256 run over it in row-major order, the last may be short.
#[derive(Debug)]
pub struct AdamW8bitTensor<'a> {
    /// Parameter, updated.
    pub param: ViewMut<'a, f32>,
    /// Gradient.
    pub grad: View<'a, f32>,
    /// Codes of the first moment in the signed dynamic map, updated.
    pub m: ViewMut<'a, u8>,
    /// Codes of the second moment in the unsigned dynamic map, updated.
    pub v: ViewMut<'a, u8>,
    /// `[ceil(numel / 256)]` maxima of |m|, updated; zeros before the first step.
    pub m_absmax: ViewMut<'a, f32>,
    /// `[ceil(numel / 256)]` maxima of v, updated; zeros before the first step.
    pub v_absmax: ViewMut<'a, f32>,
    /// Elements with a 0 keep their parameter; their state is only written anew, as a block's
    /// elements share one maximum.
    pub mask: Option<View<'a, u8>>,
}

/// Arguments of [`adamw_8bit`].
#[derive(Debug)]
pub struct AdamW8bit<'a> {
    /// Parameters with gradients and state.
    pub tensors: Vec<AdamW8bitTensor<'a>>,
    /// Settings.
    pub settings: AdamWSettings,
    /// Written in any case.
    pub outcome: &'a mut AdamWOutcome,
}

/// [`adamw`] whose moments are stored in 8 bits: `m = signed_map[code]·m_absmax`, `v =
/// unsigned_map[code]·v_absmax` per block of 256, decoded, updated in f32, used for the step, then
/// divided by the new maximum and rounded to the nearest map entry (ties to the lower).
///
/// As in bitsandbytes' CUDA kernel a negative m whose nearest entry is 0 takes the entry below, so
/// that it keeps its sign. Unlike there, a gradient that is not finite stops the whole step.
///
/// # Errors
/// As [`adamw`]; `InvalidArgument` also for a block maximum that is negative or not finite.
///
/// # Cost
/// 16 bytes per element and 16 per block; 16 comparisons and 15 flops per element.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{AdamW8bit, AdamW8bitTensor, AdamWOutcome, AdamWSettings, adamw_8bit}};
/// let (mut param, grad) = (vec![1f32, 2.0], vec![0.5f32, -0.5]);
/// let (mut m, mut v) = (vec![0u8; 2], vec![0u8; 2]);
/// let (mut m_absmax, mut v_absmax) = (vec![0f32], vec![0f32]);
/// let mut outcome = AdamWOutcome::default();
/// adamw_8bit(&Device::Cpu, AdamW8bit {
///     tensors: vec![AdamW8bitTensor {
///         param: (&mut param).into(),
///         grad: (&grad).into(),
///         m: (&mut m).into(),
///         v: (&mut v).into(),
///         m_absmax: (&mut m_absmax).into(),
///         v_absmax: (&mut v_absmax).into(),
///         mask: None,
///     }],
///     settings: AdamWSettings { lr: 0.25, ..AdamWSettings::default() },
///     outcome: &mut outcome,
/// })?;
/// assert_eq!(outcome.non_finite, None);
/// assert!((param[0] - 0.75).abs() < 1e-6 && (param[1] - 2.25).abs() < 1e-6);
/// assert!((m_absmax[0] - 0.05).abs() < 1e-7);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn adamw_8bit(device: &Device, args: AdamW8bit<'_>) -> Result<()> {
    let check = Check("adamw_8bit");
    check_settings(check, &args.settings)?;
    for (i, t) in args.tensors.iter().enumerate() {
        let shape = param_shape(check, device, i, &t.param)?;
        let blocks = [(t.param.numel() as usize).div_ceil(STATE_BLOCK)];
        same(check, device, i, "grad", &t.grad, &shape)?;
        same(check, device, i, "m", &t.m, &shape)?;
        same(check, device, i, "v", &t.v, &shape)?;
        same(check, device, i, "m_absmax", &t.m_absmax, &blocks)?;
        same(check, device, i, "v_absmax", &t.v_absmax, &blocks)?;
        state_maxima(check, i, "m_absmax", &t.m_absmax)?;
        state_maxima(check, i, "v_absmax", &t.v_absmax)?;
        if let Some(mask) = &t.mask {
            same(check, device, i, "mask", mask, &shape)?;
        }
        check.disjoint(("param", &t.param), ("grad", &t.grad))?;
        check.disjoint(("m", &t.m), ("grad", &t.grad))?;
        check.disjoint(("v", &t.v), ("grad", &t.grad))?;
        check.disjoint(("m", &t.m), ("param", &t.param))?;
        check.disjoint(("v", &t.v), ("param", &t.param))?;
        check.disjoint(("v", &t.v), ("m", &t.m))?;
        check.disjoint(("v_absmax", &t.v_absmax), ("m_absmax", &t.m_absmax))?;
    }
    match device {
        Device::Cpu => alloc::or_out_of_memory(check.0, || cpu::adamw_8bit(args))?,
        Device::Gpu(gpu) => gpu::adamw_8bit(gpu, args)?,
    }
    Ok(())
}

pub(super) fn param_shape<T: Element>(
    check: Check,
    device: &Device,
    tensor: usize,
    param: &ViewMut<'_, T>,
) -> Result<Vec<usize>> {
    let shape: Vec<usize> = param.shape().iter().map(|&n| n as usize).collect();
    same(check, device, tensor, "param", param, &shape)?;
    Ok(shape)
}

/// `operand` of tensor `tensor` has `shape` and no gaps.
pub(super) fn same(
    check: Check,
    device: &Device,
    tensor: usize,
    field: &str,
    operand: &impl Operand,
    shape: &[usize],
) -> Result<()> {
    let arg = format!("tensors[{tensor}].{field}");
    check.shape(device, &arg, operand, shape)?;
    check.contiguous(&arg, operand)
}

/// Refuses the maxima of a damaged state; one value per 256 elements is cheap to look at.
fn state_maxima(check: Check, tensor: usize, field: &str, maxima: &ViewMut<'_, f32>) -> Result<()> {
    let known = if maxima.is_host() { maxima.extent(0) } else { 0 };
    for i in 0..known {
        let max = maxima.at(i);
        if !max.is_finite() || max < 0.0 {
            let (arg, got) = (format!("tensors[{tensor}].{field}"), format!("{max} at index {i}"));
            return Err(Error::invalid(check.0, arg, got, "finite maxima >= 0"));
        }
    }
    Ok(())
}

pub(super) fn check_settings(check: Check, s: &AdamWSettings) -> Result<()> {
    check.non_negative("lr", s.lr)?;
    let is_decay = |beta: f64| (0.0..1.0).contains(&beta);
    check.that(is_decay(s.beta1), "beta1", s.beta1, "a number in [0, 1)")?;
    check.that(is_decay(s.beta2), "beta2", s.beta2, "a number in [0, 1)")?;
    let eps = s.eps as f32;
    check.that(eps > 0.0 && eps.is_finite(), "eps", s.eps, "a number > 0 in f32")?;
    check.non_negative("weight_decay", s.weight_decay)?;
    check.that(s.step >= 1, "step", s.step, "at least 1")?;
    check.non_negative("grad_scale", s.grad_scale)?;
    let scale = s.grad_scale as f32;
    check.that(scale.is_finite(), "grad_scale", s.grad_scale, "a number in the range of f32")?;
    let c = cpu::Coefficients::new(s);
    check.that(c.step.is_finite(), "lr", s.lr, "lr / (1 - beta1^step) in the range of f32")?;
    let expected = "lr * weight_decay in the range of f32";
    check.that(c.decay.is_finite(), "weight_decay", s.weight_decay, expected)
}
