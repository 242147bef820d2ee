//! ‖g‖ = √Σ g² over all tensors, and the clip coefficient (Pascanu et al. 2013, arXiv:1211.5063,
//! algorithm 1).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::support::dispatch::on_device;
use crate::view::View;

/// Arguments of [`grad_norm`].
#[derive(Debug)]
pub struct GradNorm<'a, T> {
    /// Gradients of any shape, contiguous.
    pub grads: &'a [View<'a, T>],
    /// The result.
    pub norm: &'a mut GlobalNorm,
}

/// A norm over several tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GlobalNorm {
    /// The L2 norm; NaN or infinite if an element is.
    pub value: f64,
    /// True if `value` is finite.
    pub finite: bool,
}

impl GlobalNorm {
    /// min(1, max_norm / (norm + 1e-6)), as torch computes it: what gradients are multiplied by so
    /// that their norm does not exceed `max_norm`.
    ///
    /// # Errors
    /// `InvalidArgument` if `max_norm` is negative or not finite, or if the norm is not finite.
    pub fn clip_coefficient(&self, max_norm: f64) -> Result<f64> {
        let check = Check("clip_coefficient");
        check.non_negative("max_norm", max_norm)?;
        if !self.finite {
            return Err(Error::invalid(check.0, "norm", self.value, "a finite norm"));
        }
        Ok((max_norm / (self.value + 1e-6)).min(1.0))
    }
}

/// `norm = √Σ_tensors Σ_i g[i]²`, in f64.
///
/// Squares are summed in chunks of 4096 elements that start anew with each tensor, 16 interleaved
/// lanes per chunk, and the chunks pairwise in order: the bits depend on the lengths of the tensors
/// and their order only, and are the same on the CPU and on a GPU.
///
/// # Errors
/// `InvalidArgument` for a view with gaps. NaN and infinity are a result, not an error.
///
/// # Cost
/// Reads every element once, 2 flops each. On a GPU the call waits for the result.
///
/// # Example
/// ```
/// use gradus::{Device, View, ops::{GlobalNorm, GradNorm, grad_norm}};
/// let (a, b) = ([3f32], [0f32, 4.0]);
/// let mut norm = GlobalNorm::default();
/// grad_norm(&Device::Cpu, GradNorm { grads: &[a[..].into(), b[..].into()], norm: &mut norm })?;
/// assert_eq!((norm.value, norm.finite), (5.0, true));
/// assert!((norm.clip_coefficient(1.0)? - 0.2).abs() < 1e-6);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn grad_norm<T: Float>(device: &Device, args: GradNorm<'_, T>) -> Result<()> {
    let check = Check("grad_norm");
    for (i, grad) in args.grads.iter().enumerate() {
        let arg = format!("grads[{i}]");
        check.rank(device, &arg, grad, grad.rank())?;
        check.contiguous(&arg, grad)?;
    }
    on_device!(device, check, args: GradNorm<T: Float> => cpu::grad_norm, gpu::grad_norm)
}
